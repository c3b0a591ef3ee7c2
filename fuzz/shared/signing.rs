//! What a peer signs, which a fuzzer cannot guess: magic and checksums, made right so that inputs come past them.

use pageferry::wire::MESSAGE_HEADER_BYTES;
use xxhash_rust::xxh3::xxh3_64;

/// Puts the right magic and checksums where they belong in a message, as far as there are bytes.
pub fn sign_message(bytes: &mut [u8]) {
    if bytes.len() < MESSAGE_HEADER_BYTES {
        return;
    }
    let (header, body) = bytes.split_at_mut(MESSAGE_HEADER_BYTES);
    let announced = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    let length = usize::try_from(announced).map_or(body.len(), |length| length.min(body.len()));
    header[..8].copy_from_slice(b"PGFERRY\n");
    header[16..24].copy_from_slice(&xxh3_64(&body[..length]).to_le_bytes());
    let checksum = xxh3_64(&header[..24]);
    header[24..].copy_from_slice(&checksum.to_le_bytes());
}
