//! The handshake, over a blocking socket, with a limit in time.
//!
//! Records are read one at a time, so nothing that follows the handshake is taken from the socket before the keys have
//! been handed out.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::CommonState;
use rustls::ExtractedSecrets;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use socket2::Socket;

use super::check::Explain;
use super::error::TlsError;
use super::incoming::Incoming;
use super::outgoing::Outgoing;
use super::record::{ALERT, HANDSHAKE, HEADER_BYTES, RecordKey};
use super::session::{Keys, Session};
use crate::transport::{Deadline, PeerCertificate, Stream};

/// What rustls's two kinds of connections have in common here.
pub(super) trait Connection: std::ops::Deref<Target: std::ops::Deref<Target = CommonState>> {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), rustls::Error>;
}

impl Connection for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
        self.dangerous_into_kernel_connection().map(|(secrets, keys)| (secrets, Keys::Client(keys)))
    }
}

impl Connection for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
        self.dangerous_into_kernel_connection().map(|(secrets, keys)| (secrets, Keys::Server(keys)))
    }
}

/// Shakes hands before the `deadline` and gives the stream back, secure.
pub(super) fn run(connection: impl Connection, stream: Stream, explain: Arc<dyn Explain>, deadline: Deadline) -> Result<Stream, TlsError> {
    let socket = stream.into_socket();
    let mut shake = Shake { connection, socket: &socket, explain: &*explain, deadline, incoming: Vec::new(), outgoing: Vec::new() };
    if let Err(error) = shake.until_done() {
        if !matches!(error, TlsError::Io(_) | TlsError::Left { .. } | TlsError::Closed { .. }) {
            shake.give_up();
        }
        return Err(error);
    }
    socket.set_read_timeout(None).map_err(TlsError::Io)?;
    let peer = shake.connection.peer_certificates().and_then(|chain| chain.first()).map(|own| PeerCertificate::new(own));
    let (ExtractedSecrets { tx, rx }, keys) = shake.connection.into_keys().map_err(|error| explain.failure(error))?;
    let unknown = || explain.failure(rustls::Error::General("a cipher that is not built in".into()));
    let halves = (Outgoing::new(RecordKey::new(tx).ok_or_else(unknown)?), Incoming::new(RecordKey::new(rx).ok_or_else(unknown)?));
    let session = Session::new(Arc::clone(&socket), halves, keys, explain, peer);
    Ok(Stream::with_session(socket, session))
}

/// A handshake under way.
struct Shake<'h, C> {
    connection: C,
    socket: &'h Socket,
    explain: &'h dyn Explain,
    deadline: Deadline,
    /// Whole records that rustls is not done with.
    incoming: Vec<u8>,
    /// What it wants sent.
    outgoing: Vec<u8>,
}

/// What rustls wants next.
enum Next {
    Step,
    Read,
    Done,
    Fail(TlsError),
}

impl<C: Connection> Shake<'_, C> {
    fn until_done(&mut self) -> Result<(), TlsError> {
        loop {
            match self.step() {
                Next::Step => {}
                Next::Done if !self.connection.is_handshaking() => return Ok(()),
                Next::Read | Next::Done => self.read_record()?,
                Next::Fail(error) => return Err(error),
            }
        }
    }

    /// One step of rustls's.
    fn step(&mut self) -> Next {
        let UnbufferedStatus { discard, state, .. } = self.connection.process(&mut self.incoming);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, &mut self.outgoing);
                Next::Step
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                let mut socket = self.socket;
                let sent = socket.write_all(&self.outgoing);
                self.outgoing.clear();
                data.done();
                sent.map_or_else(|error| Next::Fail(TlsError::Io(error)), |()| Next::Step)
            }
            Ok(ConnectionState::BlockedHandshake) => Next::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Next::Fail(TlsError::Left { peer: self.explain.role().peer() }),
            Ok(_) => Next::Fail(self.explain.failure(rustls::Error::General("data before the end of the handshake".into()))),
            Err(error) => Next::Fail(self.explain.failure(error)),
        };
        self.incoming.drain(..discard);
        next
    }

    /// Appends the peer's next record.
    fn read_record(&mut self) -> Result<(), TlsError> {
        let mut header = [0; HEADER_BYTES];
        self.read_exact(&mut header)?;
        // ChangeCipherSpec, alerts, handshake messages, sealed records: nothing else has a place here.
        let is_tls = (ALERT - 1..=HANDSHAKE + 1).contains(&header[0]) && header[1] == 3;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if !is_tls || length > MAX_HANDSHAKE_RECORD || self.incoming.len() > MAX_WAITING {
            return Err(TlsError::NotTls { peer: self.explain.role().peer() });
        }
        let mut incoming = std::mem::take(&mut self.incoming);
        let start = incoming.len() + HEADER_BYTES;
        incoming.extend_from_slice(&header);
        incoming.resize(start + length, 0);
        let read = self.read_exact(&mut incoming[start..]);
        self.incoming = incoming;
        read
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), TlsError> {
        let peer = self.explain.role().peer();
        while !buffer.is_empty() {
            let Some(left) = self.deadline.left() else { return Err(TlsError::Slow { peer, limit: self.deadline.limit() }) };
            self.socket.set_read_timeout(Some(left)).map_err(TlsError::Io)?;
            let mut socket = self.socket;
            match socket.read(buffer) {
                Ok(0) => return Err(self.gone()),
                Ok(read) => buffer = &mut buffer[read..],
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(self.gone()),
                Err(error) => return Err(TlsError::Io(error)),
            }
        }
        Ok(())
    }

    /// The peer has left: before it said anything in TLS, or after.
    fn gone(&self) -> TlsError {
        let peer = self.explain.role().peer();
        if self.connection.protocol_version().is_none() { TlsError::Closed { peer } } else { TlsError::Left { peer } }
    }

    /// Tells the peer why there will be no connection, and leaves it the time to hear it: what it has sent meanwhile is
    /// read, because closing with unread bytes resets the connection and takes the last word with it.
    fn give_up(&mut self) {
        // An alert waits to be sent. A record that could not be opened is still there, and rustls must not try again: it has
        // an alert for each time, and takes a second one for a bug of its own.
        let steps = if self.incoming.is_empty() { 4 } else { 1 };
        for _ in 0..steps {
            if !matches!(self.step(), Next::Step) {
                break;
            }
        }
        let mut socket = self.socket;
        // What fails from here on does not matter.
        let _ = socket.write_all(&self.outgoing);
        let _ = socket.shutdown(Shutdown::Write);
        let until = Instant::now() + LAST_WORD;
        let mut ignored = [0; 4 << 10];
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let read = self.socket.set_read_timeout(Some(left)).and_then(|()| socket.read(&mut ignored));
            if read.map_or_else(|error| error.kind() != ErrorKind::Interrupted, |read| read == 0) {
                break;
            }
        }
    }
}

/// Appends what rustls has to send.
fn encode<D>(mut data: EncodeTlsData<'_, D>, to: &mut Vec<u8>) {
    let start = to.len();
    let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut []) else { return };
    to.resize(start + required_size, 0);
    data.encode(&mut to[start..]).expect("as long as it asked for");
}

/// A record's contents during a handshake, sealed or not.
const MAX_HANDSHAKE_RECORD: usize = (1 << 14) + 256;
/// Of a handshake message that comes in many records: longer than any chain of certificates.
const MAX_WAITING: usize = 128 << 10;
/// How long to wait for the peer to hang up after it was told no.
const LAST_WORD: Duration = Duration::from_secs(1);
