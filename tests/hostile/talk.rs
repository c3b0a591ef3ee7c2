//! One connection of a hostile peer: says anything, and listens.

use std::io::{Read, Write};
use std::time::Duration;

use pageferry::transport::{Endpoint, Stream};
use pageferry::wire::{Message, decode_message};

/// Long enough for whatever the other side does on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Talk {
    stream: Stream,
    heard: Vec<u8>,
}

impl Talk {
    pub(crate) fn to(endpoint: &Endpoint) -> Self {
        Self::over(Stream::connect(endpoint, PATIENCE).unwrap())
    }

    pub(crate) fn over(stream: Stream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, heard: Vec::new() }
    }

    pub(crate) fn say(&mut self, message: &Message) {
        self.say_bytes(&encoded(message));
    }

    /// The other side may have had enough already; what it thinks of it is heard, not written.
    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next message that is not a sign of life; `None` when the connection has ended.
    pub(crate) fn hear(&mut self) -> Option<Message> {
        loop {
            if let Some((message, length)) = decode_message(&self.heard).expect("the engine speaks its own protocol") {
                self.heard.drain(..length);
                if matches!(message, Message::Ping | Message::Progress { .. }) {
                    continue;
                }
                return Some(message);
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(read) => self.heard.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("heard nothing, not even an end, for {PATIENCE:?}"),
                Err(_) => return None,
            }
        }
    }

    /// Listens to the end; the last message.
    pub(crate) fn last_words(&mut self) -> Option<Message> {
        let mut last = None;
        while let Some(message) = self.hear() {
            last = Some(message);
        }
        last
    }

    pub(crate) fn close(&self) {
        self.stream.control().shut_down();
    }

    /// Whether the other side has ended the connection; takes what it has said.
    pub(crate) fn is_over(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut piece = [0; 4096];
        let read = self.stream.read(&mut piece);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        !matches!(read, Ok(1..)) && !matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    pub(crate) fn into_stream(self) -> Stream {
        assert!(self.heard.is_empty(), "bytes after the last message: {:?}", self.heard);
        self.stream
    }
}

/// The bytes of `message`.
pub(crate) fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}
