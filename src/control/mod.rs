//! The control connection: messages over a byte stream.
//!
//! The thread that owns the state machine reads and writes, and listens for a bell of its own beside the peer. Both ends
//! use it.
#![forbid(unsafe_code)]

mod bell;
mod leave;

use std::borrow::Cow;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub(crate) use self::bell::Bell;
use self::bell::Woken;
use self::leave::Leave;
use crate::error::Error;
use crate::transport::{Deadline, Stream, TransportError};
use crate::wire::{Announced, Message, SHORT_BODY_BYTES, WireError, decode_message};

/// Writes messages.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    stream: Stream,
    lane: Cow<'static, str>,
    buffer: Vec<u8>,
}

impl MessageWriter {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, lane: CONTROL, buffer: Vec::new() }
    }

    /// Sends one message, now.
    pub(crate) fn send(&mut self, message: &Message) -> Result<(), Error> {
        self.buffer.clear();
        message.encode(&mut self.buffer)?;
        self.stream.write_all(&self.buffer).map_err(|source| broken(&self.lane, source))?;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BYTES);
        Ok(())
    }
}

/// Reads messages.
#[derive(Debug)]
pub(crate) struct MessageReader {
    stream: Stream,
    lane: Cow<'static, str>,
    buffer: Vec<u8>,
    /// Whether to look for more before waiting for it: an encrypted stream may have read on.
    has_more: bool,
}

impl MessageReader {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, lane: CONTROL, buffer: Vec::new(), has_more: true }
    }

    /// The same for a connection that errors are to call `lane`.
    pub(crate) fn of_lane(stream: Stream, lane: &dyn ToString) -> Self {
        Self { lane: lane.to_string().into(), ..Self::new(stream) }
    }

    /// The next message, if all of it was read.
    fn take(&mut self) -> Result<Option<Message>, Error> {
        let Some((message, consumed)) = decode_message(&self.buffer)? else { return Ok(None) };
        self.buffer.drain(..consumed);
        self.buffer.shrink_to(KEPT_BYTES);
        Ok(Some(message))
    }

    /// The first message, which must be whole before `timeout` is over, however slowly its bytes trickle in, and of
    /// bounded size, as it may come from anyone.
    pub(crate) fn next_within(&mut self, timeout: Duration) -> Result<Message, Error> {
        self.next_before(Deadline::within(timeout))
    }

    /// The same before a `deadline` that may hold for more than this message.
    pub(crate) fn next_before(&mut self, deadline: Deadline) -> Result<Message, Error> {
        let late = || TransportError::Late { limit: deadline.limit() };
        loop {
            if let Some(message) = self.take()? {
                self.set_timeout(None)?;
                return Ok(message);
            }
            self.set_timeout(Some(deadline.left().ok_or_else(late)?))?;
            self.fill().map_err(|error| if is_timeout(&error) { late().into() } else { error })?;
            if self.buffer.len() > MAX_OPENING_BYTES {
                return Err(WireError::Opening { limit: MAX_OPENING_BYTES }.into());
            }
        }
    }

    /// The stream, unless something that follows has been read already.
    pub(crate) fn into_stream(self) -> Option<Stream> {
        self.buffer.is_empty().then_some(self.stream)
    }

    /// A writer to the same peer.
    pub(crate) fn writer(&self) -> MessageWriter {
        MessageWriter { lane: self.lane.clone(), ..MessageWriter::new(self.stream.share()) }
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.stream.set_read_timeout(timeout).map_err(|source| broken(&self.lane, source))
    }

    /// Reads some more, once there is any.
    fn fill(&mut self) -> Result<(), Error> {
        self.fill_with(Stream::read)
    }

    /// Reads what has come; whether there was any.
    fn fill_at_once(&mut self) -> Result<bool, Error> {
        match self.fill_with(Stream::read_at_once) {
            Ok(()) => Ok(true),
            Err(Error::Transport(TransportError::Broken { source, .. })) if source.kind() == ErrorKind::WouldBlock => {
                self.has_more = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn fill_with(&mut self, read: impl Fn(&mut Stream, &mut [u8]) -> std::io::Result<usize>) -> Result<(), Error> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            match read(&mut self.stream, &mut piece) {
                Ok(0) => return Err(TransportError::Closed { lane: self.lane.clone().into_owned() }.into()),
                Ok(read) => {
                    // Bounded: `decode_message` refuses a length over its kind's limit once the header is there.
                    self.buffer.extend_from_slice(&piece[..read]);
                    self.has_more = read == piece.len() || self.stream.is_encrypted();
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(broken(&self.lane, source)),
            }
        }
    }
}

/// What came of listening.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    /// This.
    Message(Message),
    /// Bytes of a message that is not whole yet: no more than a sign of life.
    Part,
    /// The same of one that is so long that it takes its time.
    LongPart,
    /// The bell.
    Bell,
    /// Nothing, for as long as it was listened.
    Nothing,
}

/// A control connection in use, written to and read by one thread.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Until writing failed. What the peer had said before may still come in.
    writer: Option<MessageWriter>,
    reader: MessageReader,
    /// Messages heard since the time to listen was over.
    late: u32,
    leave: Leave,
}

impl Connection {
    /// Takes over a connection, of which `reader` may have read some already. No message as long as a guest's state comes in.
    pub(crate) fn new(reader: MessageReader) -> Self {
        let reader = MessageReader { lane: CONTROL, ..reader };
        Self { writer: Some(reader.writer()), reader, late: 0, leave: Leave::none() }
    }

    /// Has `may_come` asked before the body of a long message is read; it says why one may not.
    pub(crate) fn set_leave(&mut self, may_come: impl Fn(Announced) -> Result<(), String> + Send + 'static) {
        self.leave = Leave::of(may_come);
    }

    /// Sends one message, now, unless that has failed before. A failure is not the end: that comes from the other
    /// direction, after all that the peer had to say.
    pub(crate) fn send(&mut self, message: &Message) {
        if let Some(Err(error)) = self.writer.as_mut().map(|writer| writer.send(message)) {
            tracing::debug!(error = %error.in_full(), "nothing can be sent on the control connection any more");
            self.writer = None;
        }
    }

    /// Waits for the next message, or for the bell, for `patience` at most. What the peer has said already comes first,
    /// but one that never stops talking does not keep the time from being over.
    pub(crate) fn listen(&mut self, bell: &Bell, patience: Duration) -> Result<Heard, Error> {
        self.late = if patience.is_zero() { self.late + 1 } else { 0 };
        if self.late > MOST_LATE {
            self.late = 0;
            return Ok(Heard::Nothing);
        }
        let until = Instant::now().checked_add(patience);
        loop {
            if let Some(message) = self.take()? {
                return Ok(Heard::Message(message));
            }
            if self.reader.has_more && self.reader.fill_at_once()? {
                let part = |leave: &Leave| if leave.is_given() { Heard::LongPart } else { Heard::Part };
                return Ok(self.take()?.map_or_else(|| part(&self.leave), Heard::Message));
            }
            let left = until.map_or(patience, |until| until.saturating_duration_since(Instant::now()));
            match bell.wait(Some(self.reader.stream.as_fd()), left)? {
                Woken::Beside => self.reader.has_more = true,
                Woken::Bell => return Ok(Heard::Bell),
                Woken::Late => return Ok(Heard::Nothing),
            }
        }
    }

    /// The next message, if all of it was read and it may come.
    fn take(&mut self) -> Result<Option<Message>, Error> {
        if let Some(room_bytes) = self.leave.ask(&self.reader.buffer)? {
            // It would be doubled step by step otherwise, while the guest stands still.
            // What comes right behind it is read with its last piece.
            self.reader.buffer.reserve_exact((room_bytes + PIECE_BYTES).saturating_sub(self.reader.buffer.len()));
        }
        let message = self.reader.take()?;
        if message.is_some() {
            self.leave.over();
        }
        Ok(message)
    }

    /// [`Connection::listen`] where there may be no connection: then only the bell is listened for.
    pub(crate) fn listen_on(connection: Option<&mut Self>, bell: &Bell, patience: Duration) -> Result<Heard, Error> {
        match connection {
            Some(connection) => connection.listen(bell, patience),
            None => Ok(if bell.wait(None, patience)? == Woken::Late { Heard::Nothing } else { Heard::Bell }),
        }
    }

    /// The next message, whole within `timeout`.
    pub(crate) fn next_within(&mut self, timeout: Duration) -> Result<Message, Error> {
        self.reader.next_within(timeout)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.stream.control().shut_down();
    }
}

/// Whether a read waited for as long as it may.
fn is_timeout(error: &Error) -> bool {
    matches!(error, Error::Transport(TransportError::Broken { source, .. }) if matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

fn broken(lane: &str, source: std::io::Error) -> Error {
    TransportError::Broken { lane: lane.to_owned(), source }.into()
}

const CONTROL: Cow<'static, str> = Cow::Borrowed("control");
/// So many messages are heard although it is too late: what an honest peer said while this process stood still.
const MOST_LATE: u32 = 64;
/// More than the longest Hello.
const MAX_OPENING_BYTES: usize = 64 << 10;
/// Bytes read at a time.
const PIECE_BYTES: usize = 16 << 10;
/// Room that a connection keeps for messages: enough for all but the guest's state.
const KEPT_BYTES: usize = SHORT_BODY_BYTES as usize;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::wire::{ChannelTotals, MESSAGE_HEADER_BYTES};

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn messages_come_whole_and_once_however_their_bytes_do() {
        let (near, mut far) = Stream::pair().unwrap();
        let (mut connection, bell) = (Connection::new(MessageReader::new(near)), Bell::new().unwrap());
        let mut two = Vec::new();
        [Message::Ping, Message::Ready].iter().for_each(|message| message.encode(&mut two).unwrap());
        let mut next = |patience| connection.listen(&bell, patience);
        far.write_all(&two).unwrap();
        assert_eq!(next(SOON).unwrap(), Heard::Message(Message::Ping));
        assert_eq!(next(SOON).unwrap(), Heard::Message(Message::Ready), "which nothing more is read for");
        let (some, rest) = two.split_at(two.len() - 1);
        far.write_all(some).unwrap();
        assert_eq!(next(SOON).unwrap(), Heard::Message(Message::Ping));
        assert_eq!(next(Duration::from_millis(20)).unwrap(), Heard::Nothing, "the other is not whole");
        far.write_all(rest).unwrap();
        assert_eq!(next(SOON).unwrap(), Heard::Message(Message::Ready));
        far.write_all(&two[..1]).unwrap();
        assert_eq!(next(SOON).unwrap(), Heard::Part, "a sign of life");
        drop(far);
        assert!(next(SOON).is_err());
        assert!(next(SOON).is_err(), "and it stays so");
    }

    #[test]
    fn the_bell_is_heard_after_what_the_peer_has_said() {
        let (near, mut far) = Stream::pair().unwrap();
        let (mut connection, bell) = (Connection::new(MessageReader::new(near)), Bell::new().unwrap());
        let mut ping = Vec::new();
        Message::Ping.encode(&mut ping).unwrap();
        far.write_all(&ping).unwrap();
        bell.ring();
        let mut next = || connection.listen(&bell, Duration::from_millis(20)).unwrap();
        assert_eq!([next(), next(), next()], [Heard::Message(Message::Ping), Heard::Bell, Heard::Nothing]);
    }

    #[test]
    fn a_peer_that_never_stops_talking_does_not_stop_the_clock() {
        let (near, mut far) = Stream::pair().unwrap();
        let (mut connection, bell) = (Connection::new(MessageReader::new(near)), Bell::new().unwrap());
        let mut pings = Vec::new();
        (0..3 * MOST_LATE).for_each(|_| Message::Ping.encode(&mut pings).unwrap());
        far.write_all(&pings).unwrap();
        let heard: Vec<_> = (0..3 * MOST_LATE).map(|_| connection.listen(&bell, Duration::ZERO).unwrap()).collect();
        let late: Vec<_> = (0..).zip(&heard).filter(|(_, heard)| **heard == Heard::Nothing).map(|(index, _)| index).collect();
        assert_eq!(late, [MOST_LATE, 2 * MOST_LATE + 1]);
        assert_eq!(connection.listen(&bell, SOON).unwrap(), Heard::Message(Message::Ping), "none is lost");
    }

    #[test]
    fn a_long_message_needs_leave_to_come_in_before_its_body_does() {
        let finish = Message::Finish { totals: vec![ChannelTotals::default()], state: vec![7; 1 << 20], missing: None };
        let mut bytes = Vec::new();
        [&finish, &Message::Ping, &finish].iter().for_each(|message| message.encode(&mut bytes).unwrap());
        let bell = Bell::new().unwrap();
        let connect = || {
            let (near, far) = Stream::pair().unwrap();
            (Connection::new(MessageReader::new(near)), far)
        };
        let next = |connection: &mut Connection| {
            loop {
                match connection.listen(&bell, SOON) {
                    Ok(Heard::LongPart) => {}
                    heard => break heard,
                }
            }
        };
        let (mut without, mut far) = connect();
        far.write_all(&bytes[..MESSAGE_HEADER_BYTES]).unwrap();
        let error = next(&mut without).unwrap_err().in_full();
        assert!(error.starts_with("a Finish message of 1048612 bytes is not taken in: "), "{error}");

        let (mut once, mut far) = connect();
        let asked = AtomicU32::new(0);
        once.set_leave(move |announced| {
            assert_eq!((announced.message, announced.length), ("Finish", 1_048_612));
            if asked.fetch_add(1, Ordering::Relaxed) == 0 { Ok(()) } else { Err("one is enough".into()) }
        });
        let writer = std::thread::spawn(move || far.write_all(&bytes));
        assert_eq!(next(&mut once).unwrap(), Heard::Message(finish));
        assert_eq!(next(&mut once).unwrap(), Heard::Message(Message::Ping));
        assert!(next(&mut once).unwrap_err().in_full().ends_with("is not taken in: one is enough"));
        drop(once);
        let _ = writer.join().unwrap();
    }

    #[test]
    fn a_first_message_is_bounded_also_if_it_is_whole() {
        let (near, mut far) = Stream::pair().unwrap();
        let mut bytes = vec![0; MAX_OPENING_BYTES + 1];
        let mut pings = Vec::new();
        Message::Ping.encode(&mut pings).unwrap();
        bytes[..pings.len()].copy_from_slice(&pings);
        let writer = std::thread::spawn(move || far.write_all(&bytes));
        let mut reader = MessageReader::new(near);
        assert_eq!(reader.next_within(Duration::from_secs(10)).unwrap(), Message::Ping, "what follows is another matter");
        assert!(reader.buffer.len() <= MAX_OPENING_BYTES);
        drop(reader);
        let _ = writer.join().unwrap();
    }
}
