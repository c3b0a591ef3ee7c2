//! A stretch of network between a sender and a receiver that can be made to fail at an exact place.
//!
//! It passes connections through and looks at each piece of what the sender says. On the control connection pieces are
//! whole messages, or whole TLS records; on the others they are what was read. The first connection of a migration is
//! the control connection, the next ones carry memory, and one that comes after those is a source in doubt.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use pageferry::wire::{Message, decode_message};

/// What becomes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on, with whatever was done to it.
    Pass,
    /// It goes on, and every connection ends: for a message, once its answer is on the way, which is lost. Sooner the
    /// receiver might see that its other connections have ended before it comes to the message.
    PassThenCut,
    /// It is lost, and every connection ends.
    Cut,
}

/// Decides about the pieces that the sender sends.
pub(crate) trait Tamper: Send + Sync + 'static {
    /// A message of the sender on its control connection.
    fn message(&self, _message: &Message) -> Fate {
        Fate::Pass
    }

    /// A TLS record of so many bytes in its place.
    fn record(&self, _length: usize) -> Fate {
        Fate::Pass
    }

    /// Bytes of a connection that carries memory, from `offset` on.
    fn memory(&self, _offset: usize, _bytes: &mut Vec<u8>) -> Fate {
        Fate::Pass
    }

    /// Whether connections get through once they were cut.
    fn heals(&self) -> bool {
        true
    }
}

/// Listens until the test is over.
pub(crate) struct Proxy {
    pub(crate) address: String,
}

struct Network<T> {
    tamper: T,
    receiver: String,
    open: Mutex<Vec<TcpStream>>,
    is_cut: AtomicBool,
    /// Whatever the receiver says is lost, and then every connection ends.
    is_deaf: AtomicBool,
}

impl Proxy {
    /// Before the receiver at an address.
    pub(crate) fn start(receiver: &str, tamper: impl Tamper) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let network = Arc::new(Network {
            tamper,
            receiver: receiver.to_owned(),
            open: Mutex::new(Vec::new()),
            is_cut: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
        });
        std::thread::spawn(move || {
            for (index, sender) in listener.incoming().enumerate() {
                let Ok(sender) = sender else { break };
                // A connection that fails just ends, as connections do.
                let _ = network.connect(index, sender);
            }
        });
        Ok(Self { address })
    }
}

impl<T: Tamper> Network<T> {
    fn connect(self: &Arc<Self>, index: usize, sender: TcpStream) -> Result<()> {
        if self.is_cut.load(Ordering::SeqCst) && !self.tamper.heals() {
            return Ok(());
        }
        let receiver = TcpStream::connect(&self.receiver)?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).extend([sender.try_clone()?, receiver.try_clone()?]);
        let (network, from, to) = (Arc::clone(self), receiver.try_clone()?, sender.try_clone()?);
        std::thread::spawn(move || {
            let _ = network.pass_back(&from, &to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let network = Arc::clone(self);
        std::thread::spawn(move || {
            let _ = if index == 0 { network.pass_messages(&sender, &receiver) } else { network.pass_memory(&sender, &receiver) };
            let _ = receiver.shutdown(Shutdown::Both);
        });
        Ok(())
    }

    fn pass_back(&self, mut receiver: &TcpStream, mut sender: &TcpStream) -> Result<()> {
        let mut bytes = [0; 1 << 16];
        loop {
            let count = receiver.read(&mut bytes)?;
            if self.is_deaf.swap(false, Ordering::SeqCst) {
                self.cut();
            }
            if count == 0 {
                return Ok(());
            }
            sender.write_all(&bytes[..count])?;
        }
    }

    fn pass_messages(&self, mut sender: &TcpStream, receiver: &TcpStream) -> Result<()> {
        let (mut waiting, mut bytes) = (Vec::new(), [0; 1 << 16]);
        loop {
            let count = sender.read(&mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            waiting.extend_from_slice(&bytes[..count]);
            while let Some((fate, length)) = self.judge(&waiting)? {
                if fate == Fate::PassThenCut {
                    self.is_deaf.store(true, Ordering::SeqCst);
                    self.pass(Fate::Pass, &waiting[..length], receiver)?;
                } else {
                    self.pass(fate, &waiting[..length], receiver)?;
                }
                waiting.drain(..length);
            }
        }
    }

    /// What becomes of the message or TLS record at the front, once all of it is there, and its length.
    fn judge(&self, waiting: &[u8]) -> Result<Option<(Fate, usize)>> {
        if !matches!(waiting.first(), Some(20..=23)) {
            return Ok(decode_message(waiting)?.map(|(message, length)| (self.tamper.message(&message), length)));
        }
        let Some(&[_, _, _, high, low]) = waiting.first_chunk() else { return Ok(None) };
        let length = 5 + usize::from(u16::from_be_bytes([high, low]));
        Ok((waiting.len() >= length).then(|| (self.tamper.record(length), length)))
    }

    fn pass_memory(&self, mut sender: &TcpStream, receiver: &TcpStream) -> Result<()> {
        let (mut offset, mut bytes) = (0, [0; 1 << 16]);
        loop {
            let count = sender.read(&mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            let mut piece = bytes[..count].to_vec();
            let fate = self.tamper.memory(offset, &mut piece);
            self.pass(fate, &piece, receiver)?;
            offset += count;
        }
    }

    fn pass(&self, fate: Fate, bytes: &[u8], mut receiver: &TcpStream) -> Result<()> {
        if fate != Fate::Cut {
            receiver.write_all(bytes)?;
        }
        if fate != Fate::Pass {
            self.cut();
        }
        Ok(())
    }

    /// What was written still arrives: the connections end, they are not reset.
    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
