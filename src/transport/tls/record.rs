//! One record: sealing and opening it in place (RFC 8446, section 5.2).
//!
//! ```text
//! | type 23 | version 3.3 | length | sealed: content, type of content, zeros as padding | tag |
//! |--------- header, 5 ------------|-------- at most 16384 + 256 together ---------------------|
//! ```
//! The header is authenticated along with the rest. The nonce is the count of records since the key was new, xored into
//! the key's own vector; it never repeats, as the count only goes up and a key is replaced long before it could overflow.

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// What seals or opens the records of one direction, until it is replaced.
pub(super) struct RecordKey {
    key: LessSafeKey,
    vector: [u8; 12],
    /// Records sealed or opened with it.
    count: u64,
}

/// A record that was not sealed with this key, or not in this place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forged;

/// What a record was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// The type of its content; 0 if it has none, which is an error of the peer's.
    pub(super) content: u8,
    /// Its length.
    pub(super) bytes: usize,
}

impl RecordKey {
    /// From what rustls hands out: the count to go on from, and the secrets.
    pub(super) fn new((count, secrets): (u64, ConnectionTrafficSecrets)) -> Option<Self> {
        let (algorithm, key, vector): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        Self::with(algorithm, key.as_ref(), vector.as_ref(), count)
    }

    /// From their parts; `None` if those do not fit the algorithm.
    pub(super) fn with(algorithm: &'static Algorithm, key: &[u8], vector: &[u8], count: u64) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
        Some(Self { key, vector: vector.try_into().ok()?, count })
    }

    /// How many records it has sealed or opened.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Makes a record of `record`, in which `content_bytes` of content stand at [`HEADER_BYTES`] already. Panics unless it
    /// has room for the rest, [`OVERHEAD`] in all, exactly.
    pub(super) fn seal(&mut self, record: &mut [u8], content: u8, content_bytes: usize) {
        assert!(record.len() == content_bytes + OVERHEAD && content_bytes <= MAX_CONTENT, "no room for a record");
        let (header, rest) = record.split_at_mut(HEADER_BYTES);
        let (sealed, tag) = rest.split_at_mut(content_bytes + 1);
        sealed[content_bytes] = content;
        let length = u16::try_from(content_bytes + 1 + TAG_BYTES).expect("at most 16401");
        header[..3].copy_from_slice(&[APPLICATION_DATA, 3, 3]);
        header[3..].copy_from_slice(&length.to_be_bytes());
        let nonce = self.nonce();
        let made = self.key.seal_in_place_separate_tag(nonce, Aad::from(&*header), sealed).expect("far shorter than the limit of any cipher");
        tag.copy_from_slice(made.as_ref());
    }

    /// Opens the record at `record` of `bytes`, which ends where they end, and puts its content at their front.
    pub(super) fn open(&mut self, bytes: &mut [u8], record: usize) -> Result<Opened, Forged> {
        let header: [u8; HEADER_BYTES] = bytes[record..][..HEADER_BYTES].try_into().expect("as long as a header");
        let nonce = self.nonce();
        let content = self.key.open_within(nonce, Aad::from(header), bytes, record + HEADER_BYTES..).map_err(|_| Forged)?;
        let length = content.iter().rposition(|&byte| byte != 0);
        Ok(length.map_or(Opened { content: 0, bytes: 0 }, |bytes| Opened { content: content[bytes], bytes }))
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.vector;
        for (byte, count) in nonce[4..].iter_mut().zip(self.count.to_be_bytes()) {
            *byte ^= count;
        }
        self.count = self.count.checked_add(1).expect("no connection lives for 2^64 records");
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The whole length of the record that begins with `bytes`, once its header is there. `Err` if it is none that may come
/// after a handshake.
pub(super) fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, Forged> {
    let Some(&[kind, major, _, high, low]) = bytes.first_chunk() else { return Ok(None) };
    let sealed = usize::from(u16::from_be_bytes([high, low]));
    if kind != APPLICATION_DATA || major != 3 || !(1 + TAG_BYTES..=MAX_SEALED).contains(&sealed) {
        return Err(Forged);
    }
    Ok(Some(HEADER_BYTES + sealed))
}

/// Types of content.
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

/// The most a record holds.
pub(super) const MAX_CONTENT: usize = 1 << 14;
/// The most it is long.
pub(super) const MAX_RECORD: usize = HEADER_BYTES + MAX_SEALED;
/// How much longer a record is than its content, as sealed here: without padding.
pub(super) const OVERHEAD: usize = HEADER_BYTES + 1 + TAG_BYTES;
pub(super) const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
const MAX_SEALED: usize = MAX_CONTENT + 256;
