//! Bytes into the message decoder: no panic, and what decodes encodes to something that decodes to the same.
//!
//! Checksums are made right first, or no input would come past them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pageferry::wire::{MESSAGE_HEADER_BYTES, decode_message};
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode_message(bytes);
    let mut bytes = bytes.to_vec();
    sign(&mut bytes);
    if let Ok(Some((message, length))) = decode_message(&bytes) {
        assert!(length <= bytes.len());
        let mut again = Vec::new();
        message.encode(&mut again).expect("what was decoded is within bounds");
        assert_eq!(decode_message(&again), Ok(Some((message, again.len()))));
    }
});

/// Puts the right magic and checksums where they belong, as far as there are bytes.
fn sign(bytes: &mut [u8]) {
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
