//! Bytes into the message decoder: no panic, and what decodes encodes to something that decodes to the same.
//!
//! Checksums are made right first, or no input would come past them.
#![no_main]

#[path = "../shared/signing.rs"]
mod signing;

use libfuzzer_sys::fuzz_target;
use pageferry::wire::decode_message;
use signing::sign_message;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode_message(bytes);
    let mut bytes = bytes.to_vec();
    sign_message(&mut bytes);
    if let Ok(Some((message, length))) = decode_message(&bytes) {
        assert!(length <= bytes.len());
        let mut again = Vec::new();
        message.encode(&mut again).expect("what was decoded is within bounds");
        assert_eq!(decode_message(&again), Ok(Some((message, again.len()))));
    }
});
