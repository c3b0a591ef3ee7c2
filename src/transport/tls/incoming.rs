//! The receiving half: the socket's bytes to records, records to what they hold.
//!
//! The buffer holds what was opened and not taken yet, then what is still sealed. A record is opened to where the last
//! one's content ends, so that the contents of many are one string of bytes, and are taken from here to their place
//! with one copy.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::sys::socket::{MsgFlags, recv};
use rustls::AlertDescription;
use socket2::Socket;

use super::record::{ALERT, APPLICATION_DATA, Forged, HANDSHAKE, MAX_RECORD, Opened, RecordKey, record_bytes};

/// Records on their way in.
pub(super) struct Incoming {
    key: RecordKey,
    buffer: Vec<u8>,
    opened: Span,
    sealed: Span,
    end: Option<End>,
    /// Records in a row that carried no data.
    idle: u32,
}

/// Why nothing comes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer said that it is done, or just closed.
    Closed,
    /// The peer said what is wrong.
    Alert(AlertDescription),
    /// What came is no TLS; what to tell the peer.
    Nonsense(AlertDescription),
}

/// What a record that was not data asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// The peer's next record is sealed with its next key.
    Rekey {
        /// It wants the same of this end.
        both: bool,
    },
}

/// How long to wait for the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as it is set to.
    OfSocket,
    /// Not at all.
    None,
}

/// Part of the buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: usize,
    end: usize,
}

impl Patience {
    fn read(self, mut socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::OfSocket => socket.read(buffer),
            Self::None => Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?),
        }
    }
}

impl Incoming {
    pub(super) fn new(key: RecordKey) -> Self {
        Self { key, buffer: Vec::new(), opened: Span::default(), sealed: Span::default(), end: None, idle: 0 }
    }

    /// What is there to be taken, after [`Incoming::fill`]; nothing at the end.
    pub(super) fn data(&self) -> &[u8] {
        &self.buffer[self.opened.start..self.opened.end]
    }

    /// Takes some of it.
    pub(super) fn take(&mut self, bytes: usize) {
        assert!(bytes <= self.data().len(), "more taken than there is");
        self.opened.start += bytes;
    }

    /// Why nothing comes any more.
    pub(super) fn end(&self) -> Option<End> {
        self.end
    }

    /// Opens what comes from now on with another key.
    pub(super) fn rekey(&mut self, key: RecordKey) {
        self.key = key;
    }

    /// Waits until there is data or the end, or the peer asks for something, which is to be done before anything else.
    ///
    /// # Errors
    /// As the socket's, its time-out included. What has come so far is kept.
    pub(super) fn fill(&mut self, socket: &Socket, patience: Patience) -> io::Result<Option<Request>> {
        let mut since = None;
        loop {
            if let Some(request) = self.open() {
                return Ok(Some(request));
            }
            if !self.data().is_empty() || self.end.is_some() {
                return Ok(None);
            }
            // A record that comes in bit by bit does not hold up whoever has a time limit.
            let since = *since.get_or_insert_with(Instant::now);
            if patience == Patience::OfSocket
                && self.sealed.start < self.sealed.end
                && socket.read_timeout()?.is_some_and(|limit| since.elapsed() >= limit)
            {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.make_room();
            match patience.read(socket, &mut self.buffer[self.sealed.end..])? {
                0 => self.end = Some(End::Closed),
                read => self.sealed.end += read,
            }
        }
    }

    /// Opens all whole records that are there, up to a request.
    fn open(&mut self) -> Option<Request> {
        while self.end.is_none() {
            let length = match record_bytes(&self.buffer[self.sealed.start..self.sealed.end]) {
                Ok(Some(length)) if length <= self.sealed.end - self.sealed.start => length,
                Ok(_) => return None,
                Err(Forged) => return self.end_with(End::Nonsense(AlertDescription::UnexpectedMessage)),
            };
            let (front, next) = (self.opened.end, self.sealed.start + length);
            let record = self.sealed.start - front;
            let Ok(Opened { content, bytes }) = self.key.open(&mut self.buffer[front..next], record) else {
                return self.end_with(End::Nonsense(AlertDescription::BadRecordMac));
            };
            self.sealed.start = next;
            if content == APPLICATION_DATA && bytes > 0 {
                self.opened.end += bytes;
                self.idle = 0;
                continue;
            }
            self.idle += 1;
            if self.idle > MAX_IDLE {
                return self.end_with(End::Nonsense(AlertDescription::UnexpectedMessage));
            }
            match other(content, &self.buffer[front..][..bytes]) {
                Ok(None) => {}
                Ok(request) => return request,
                Err(end) => return self.end_with(end),
            }
        }
        None
    }

    fn end_with(&mut self, end: End) -> Option<Request> {
        self.end = Some(end);
        None
    }

    /// All was taken: what is left moves to the front, and the buffer grows if it was full.
    fn make_room(&mut self) {
        let is_full = self.sealed.end == self.buffer.len();
        self.buffer.copy_within(self.sealed.start..self.sealed.end, 0);
        self.sealed = Span { start: 0, end: self.sealed.end - self.sealed.start };
        self.opened = Span::default();
        if is_full && self.buffer.len() < MOST {
            self.buffer.resize((self.buffer.len() * 2).clamp(MAX_RECORD, MOST), 0);
        }
    }
}

/// What a record says that is not data.
fn other(content: u8, bytes: &[u8]) -> Result<Option<Request>, End> {
    match (content, bytes) {
        (APPLICATION_DATA, []) => Ok(None),
        (ALERT, &[_, description]) => match AlertDescription::from(description) {
            AlertDescription::CloseNotify => Err(End::Closed),
            AlertDescription::UserCanceled => Ok(None),
            description => Err(End::Alert(description)),
        },
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, both @ (0 | 1)]) => Ok(Some(Request::Rekey { both: both == 1 })),
        // For the next connection, which will not use it.
        (HANDSHAKE, &[NEW_SESSION_TICKET, ..]) => Ok(None),
        _ => Err(End::Nonsense(AlertDescription::UnexpectedMessage)),
    }
}

pub(super) const KEY_UPDATE: u8 = 24;
const NEW_SESSION_TICKET: u8 = 4;
/// Records without data after which a peer is taken to only keep this end busy.
const MAX_IDLE: u32 = 64;
/// Bytes read at once, at most: a few records, and little enough to stay in the processor's cache from one copy to the
/// next.
const MOST: usize = 128 << 10;
