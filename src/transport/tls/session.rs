//! A connection after its handshake: two halves and what renews their keys.
//!
//! Each half has a lock of its own, so one thread reads while another writes; the lock of the keys is taken by either
//! half for a moment, while it holds its own.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rustls::AlertDescription;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use socket2::Socket;

use super::check::Explain;
use super::error::TlsError;
use super::incoming::{End, Incoming, KEY_UPDATE, Patience, Request};
use super::outgoing::Outgoing;
use super::record::{ALERT, HANDSHAKE, RecordKey};
use crate::transport::PeerCertificate;

/// What a [`Stream`](crate::transport::Stream) with TLS has beside its socket.
pub(in crate::transport) struct Session {
    socket: Arc<Socket>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
    keys: Mutex<Keys>,
    /// The peer wants this end's key renewed before the next data.
    owes_update: AtomicBool,
    /// Records after which a key is renewed.
    records_per_key: u64,
    explain: Arc<dyn Explain>,
    peer: Option<PeerCertificate>,
}

/// Gives the next key of either direction.
pub(super) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Session {
    pub(super) fn new(
        socket: Arc<Socket>,
        halves: (Outgoing, Incoming),
        keys: Keys,
        explain: Arc<dyn Explain>,
        peer: Option<PeerCertificate>,
    ) -> Self {
        let (outgoing, incoming) = (Mutex::new(halves.0), Mutex::new(halves.1));
        let owes_update = AtomicBool::new(false);
        Self { socket, incoming, outgoing, keys: Mutex::new(keys), owes_update, records_per_key: RECORDS_PER_KEY, explain, peer }
    }

    /// The certificate that the peer has shown.
    pub(in crate::transport) fn peer(&self) -> Option<&PeerCertificate> {
        self.peer.as_ref()
    }

    /// Renews keys more often than anyone would.
    #[cfg(test)]
    pub(super) fn set_records_per_key(&mut self, records_per_key: u64) {
        self.records_per_key = records_per_key;
    }

    /// Sends so many records without data.
    #[cfg(test)]
    pub(super) fn say_nothing(&self, records: u32) {
        let mut outgoing = lock(&self.outgoing);
        for _ in 0..records {
            outgoing.seal_other(super::record::APPLICATION_DATA, &[]);
        }
        outgoing.flush(&self.socket).unwrap();
    }

    /// As `read(2)`.
    pub(in crate::transport) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_with(|data| copy(data, buffer))
    }

    /// As `recv(2)` with `MSG_DONTWAIT`: of a record that is not whole yet what has come is kept.
    pub(in crate::transport) fn read_at_once(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_some(Patience::None, |data| copy(data, buffer))
    }

    /// Shows `take` what has come, at least a byte unless it is the end, and lets it say how much of that it took.
    pub(in crate::transport) fn read_with(&self, take: impl FnOnce(&[u8]) -> usize) -> io::Result<usize> {
        self.read_some(Patience::OfSocket, take)
    }

    fn read_some(&self, patience: Patience, take: impl FnOnce(&[u8]) -> usize) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        while incoming.data().is_empty() {
            match incoming.fill(&self.socket, patience)? {
                Some(Request::Rekey { both }) => {
                    incoming.rekey(lock(&self.keys).next_incoming()?);
                    if both {
                        // Release pairs with the Acquire in `renew`: nothing else hangs on it.
                        self.owes_update.store(true, Ordering::Release);
                    }
                }
                None => match incoming.end() {
                    None => {}
                    Some(End::Closed) => break,
                    Some(End::Alert(alert)) => return Err(io::Error::other(self.explain.alert(alert))),
                    Some(End::Nonsense(alert)) => {
                        self.farewell(alert);
                        return Err(io::Error::new(ErrorKind::InvalidData, TlsError::Records));
                    }
                },
            }
        }
        let taken = take(incoming.data());
        incoming.take(taken);
        Ok(taken)
    }

    /// As `writev(2)`. After an error nothing more can be written.
    pub(in crate::transport) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        outgoing.check()?;
        self.renew(&mut outgoing)?;
        let bytes = outgoing.seal(parts);
        outgoing.flush(&self.socket)?;
        Ok(bytes)
    }

    /// Announces and takes the next key, if the peer wants it or the old one has sealed enough.
    fn renew(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        // Acquire: see `read_with`.
        let is_owed = self.owes_update.load(Ordering::Acquire) && self.owes_update.swap(false, Ordering::AcqRel);
        if is_owed || outgoing.sealed() >= self.records_per_key {
            outgoing.seal_other(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0]);
            outgoing.rekey(lock(&self.keys).next_outgoing()?);
        }
        Ok(())
    }

    /// Says the last word, unless a write is under way.
    fn farewell(&self, alert: AlertDescription) {
        let mut outgoing = match self.outgoing.try_lock() {
            Ok(outgoing) => outgoing,
            Err(TryLockError::Poisoned(outgoing)) => outgoing.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        outgoing.seal_other(ALERT, &[if alert == AlertDescription::CloseNotify { WARNING } else { FATAL }, alert.into()]);
        outgoing.flush_at_once(&self.socket);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.farewell(AlertDescription::CloseNotify);
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Nothing of the keys.
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Keys {
    fn next_incoming(&mut self) -> io::Result<RecordKey> {
        let secrets = match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        };
        secrets.ok().and_then(RecordKey::new).ok_or_else(|| io::Error::other("there is no next key"))
    }

    fn next_outgoing(&mut self) -> io::Result<RecordKey> {
        let secrets = match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        };
        secrets.ok().and_then(RecordKey::new).ok_or_else(|| io::Error::other("there is no next key"))
    }
}

/// As much as fits; how much that was.
fn copy(data: &[u8], buffer: &mut [u8]) -> usize {
    let bytes = data.len().min(buffer.len());
    buffer[..bytes].copy_from_slice(&data[..bytes]);
    bytes
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // What panics while it holds one is a failed assertion about that half; the other goes on until it is shut down.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

const WARNING: u8 = 1;
const FATAL: u8 = 2;
/// Well below the 2^24.5 records after which AES-GCM wants another key (RFC 8446, section 5.5): 128 GiB.
const RECORDS_PER_KEY: u64 = 1 << 23;
