//! TLS records into the receiving half of a connection: no panic, and what comes out is what was sealed, in its order, up to
//! the first record that is wrong.
//!
//! Records are sealed with the right key, or none would be opened: the input says what they hold, and where bytes are
//! changed, left out or put in on the way.
#![no_main]

#[path = "../shared/script.rs"]
#[expect(dead_code, reason = "other targets use the rest")]
mod script;
#[path = "../shared/signing.rs"]
mod signing;

use libfuzzer_sys::fuzz_target;
use pageferry::transport::fuzzing::Records;
use script::Script;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let mut records = Records::new();
    let (mut sealed, mut is_whole) = (Vec::new(), true);
    for _ in 0..MOST {
        let Some(kind) = script.below(8) else { break };
        let record = match kind {
            0..5 => {
                let Some(length) = script.wide() else { break };
                let content = vec![kind; usize::from(length) % (MAX_CONTENT + 1)];
                if is_whole {
                    sealed.extend_from_slice(&content);
                }
                records.seal(APPLICATION_DATA, &content)
            }
            5 => {
                let (Some(kind), Some(length)) = (script.of(&KINDS), script.below(8)) else { break };
                let content: Vec<u8> = (0..length).map_while(|_| script.below(32)).collect();
                // Zeros at the end are padding, and what stands before them is the type.
                if is_whole
                    && kind == 0
                    && let Some(at) = content.iter().rposition(|byte| *byte != 0)
                    && content[at] == APPLICATION_DATA
                {
                    sealed.extend_from_slice(&content[..at]);
                }
                records.seal(kind, &content)
            }
            6 => {
                let Some(length) = script.below(64) else { break };
                let stray: Vec<u8> = (0..length).map_while(|_| script.below(u8::MAX)).collect();
                // Whatever comes after these bytes, it begins in the wrong place.
                is_whole &= stray.is_empty();
                stray
            }
            _ => {
                let (Some(at), Some(change)) = (script.wide(), script.below(u8::MAX)) else { break };
                let mut record = records.seal(APPLICATION_DATA, b"changed on the way");
                let at = usize::from(at) % record.len();
                record[at] ^= change + 1;
                is_whole = false;
                record
            }
        };
        records.send(&record);
    }
    let opened = records.receive();
    assert!(sealed.starts_with(&opened), "what nobody sealed was opened");
});

/// Types of content: a change of ciphers (of older versions), an alert, a handshake message, and padding.
const KINDS: [u8; 4] = [20, 21, 22, 0];
const APPLICATION_DATA: u8 = 23;
const MAX_CONTENT: usize = 1 << 14;
/// Records in a row: no more than a socket takes.
const MOST: usize = 8;
