//! What the fuzz target of records drives: the receiving half on a socket, and a peer that has its key.

use socket2::{Domain, Socket, Type};

use super::incoming::{Incoming, Patience};
use super::record::{OVERHEAD, RecordKey};

/// One direction of a connection, both ends of it.
pub struct Records {
    key: RecordKey,
    peer: Socket,
    socket: Socket,
    incoming: Incoming,
}

impl Records {
    /// A connection on which nothing has been sent.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for one caller")]
    pub fn new() -> Self {
        let key = || RecordKey::with(&ring::aead::AES_128_GCM, &[7; 16], &[9; 12], 0).expect("of the lengths that it takes");
        let (peer, socket) = Socket::pair(Domain::UNIX, Type::STREAM, None).expect("two sockets");
        [&peer, &socket].into_iter().for_each(|socket| socket.set_nonblocking(true).expect("a socket"));
        Self { key: key(), peer, socket, incoming: Incoming::new(key()) }
    }

    /// The peer's next record.
    pub fn seal(&mut self, content: u8, bytes: &[u8]) -> Vec<u8> {
        let mut record = vec![0; bytes.len() + OVERHEAD];
        record[super::record::HEADER_BYTES..][..bytes.len()].copy_from_slice(bytes);
        self.key.seal(&mut record, content, bytes.len());
        record
    }

    /// Puts bytes on the way; those are lost for which the socket has no room.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.peer.send(bytes);
    }

    /// Takes all that has come, or up to what is wrong.
    pub fn receive(&mut self) -> Vec<u8> {
        let mut received = Vec::new();
        // The key is not changed at a request, so nothing is opened after one that was meant.
        while self.incoming.end().is_none() {
            match self.incoming.fill(&self.socket, Patience::OfSocket) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    received.extend_from_slice(self.incoming.data());
                    self.incoming.take(self.incoming.data().len());
                }
                Err(_) => break,
            }
        }
        received
    }
}
