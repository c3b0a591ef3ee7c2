//! The control connection: messages over a byte stream.
//!
//! One thread reads and hands messages over; whoever owns the state machine writes. Both ends use it.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded, never};

use crate::error::Error;
use crate::sys::priority;
use crate::transport::{Deadline, Stream, StreamControl, TransportError};
use crate::wire::{Message, WireError, decode_message};

/// Writes messages.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    stream: Stream,
    buffer: Vec<u8>,
}

impl MessageWriter {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends one message, now.
    pub(crate) fn send(&mut self, message: &Message) -> Result<(), Error> {
        self.buffer.clear();
        message.encode(&mut self.buffer)?;
        self.stream.write_all(&self.buffer).map_err(|source| broken(CONTROL, source))?;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BYTES);
        Ok(())
    }
}

/// Reads messages.
#[derive(Debug)]
pub(crate) struct MessageReader {
    stream: Stream,
    buffer: Vec<u8>,
}

impl MessageReader {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next message, with some more bytes if need be; none if it is not whole then.
    fn advance(&mut self) -> Result<Option<Message>, Error> {
        let message = self.take()?;
        if message.is_some() {
            return Ok(message);
        }
        self.fill()?;
        self.take()
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
        MessageWriter::new(self.stream.share())
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.stream.set_read_timeout(timeout).map_err(|source| broken(CONTROL, source))
    }

    fn fill(&mut self) -> Result<(), Error> {
        let mut piece = [0; 16 << 10];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(TransportError::Closed { lane: CONTROL.to_owned() }.into()),
                Ok(read) => {
                    // Bounded: `decode_message` refuses a length over its kind's limit once the header is there.
                    self.buffer.extend_from_slice(&piece[..read]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(broken(CONTROL, source)),
            }
        }
    }
}

/// What the reading thread hands over: messages, nothing for bytes of one that is not whole yet, and at the end exactly
/// one error.
pub(crate) type Inbound = Result<Option<Message>, Error>;

/// A control connection in use: messages go out from here, and come in on a thread of their own.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Until writing failed. What the peer had said before may still come in.
    writer: Option<MessageWriter>,
    inbound: Receiver<Inbound>,
    control: StreamControl,
    reader: Option<JoinHandle<()>>,
}

impl Connection {
    /// Takes over a connection, of which `reader` may have read some already.
    pub(crate) fn new(mut reader: MessageReader) -> Result<Self, Error> {
        // Bounded: a flood of messages, which may be large, waits in the socket. The reader drops its end after an error, or ends when this
        // end is dropped.
        let (to, inbound) = bounded(4);
        let (writer, control) = (Some(reader.writer()), reader.stream.control());
        let reader = std::thread::Builder::new()
            .name("pf-control-read".into())
            .spawn(move || {
                priority::be_prompt();
                loop {
                    let next = reader.advance();
                    let ended = next.is_err();
                    if to.send(next).is_err() || ended {
                        break;
                    }
                }
            })
            .map_err(|source| Error::System { action: "start a thread", source })?;
        Ok(Self { writer, inbound, control, reader: Some(reader) })
    }

    /// Sends one message, now, unless that has failed before. A failure is not the end: that comes from the other
    /// direction, after all that the peer had to say.
    pub(crate) fn send(&mut self, message: &Message) {
        if let Some(Err(error)) = self.writer.as_mut().map(|writer| writer.send(message)) {
            tracing::debug!(error = %error.in_full(), "nothing can be sent on the control connection any more");
            self.writer = None;
        }
    }

    /// What comes in.
    pub(crate) fn inbound(&self) -> &Receiver<Inbound> {
        &self.inbound
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.control.shut_down();
        // Lets a reader that waits for room go.
        self.inbound = never();
        if let Some(reader) = self.reader.take() {
            // A panic there was reported by the panic hook.
            let _ = reader.join();
        }
    }
}

/// Whether a read waited for as long as it may.
fn is_timeout(error: &Error) -> bool {
    matches!(error, Error::Transport(TransportError::Broken { source, .. }) if matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

fn broken(lane: &str, source: std::io::Error) -> Error {
    TransportError::Broken { lane: lane.to_owned(), source }.into()
}

const CONTROL: &str = "control";
/// More than the longest Hello.
const MAX_OPENING_BYTES: usize = 64 << 10;
/// Room that a connection keeps for messages: enough for all but the guest's state.
const KEPT_BYTES: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_and_once_however_their_bytes_do() {
        let (near, mut far) = Stream::pair().unwrap();
        let connection = Connection::new(MessageReader::new(near)).unwrap();
        let mut two = Vec::new();
        [Message::Ping, Message::Ready].iter().for_each(|message| message.encode(&mut two).unwrap());
        let next = || connection.inbound().recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
        far.write_all(&two).unwrap();
        assert_eq!([next(), next()], [Some(Message::Ping), Some(Message::Ready)]);
        let (some, rest) = two.split_at(two.len() - 1);
        far.write_all(some).unwrap();
        assert_eq!(next(), Some(Message::Ping));
        assert!(connection.inbound().recv_timeout(Duration::from_millis(20)).is_err(), "the other is not whole");
        far.write_all(rest).unwrap();
        assert_eq!(next(), Some(Message::Ready));
        drop(far);
        assert!(connection.inbound().recv_timeout(Duration::from_secs(10)).unwrap().is_err());
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
