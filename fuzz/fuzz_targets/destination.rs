//! Operations into the destination's state machine: whatever a peer says and a driver does, in any order, the guest runs only
//! for one Commit, and is not dropped once it may run.
//!
//! The first byte says whether it is a session of post-copy, the second where it begins; what follows are operations.
#![no_main]

#[path = "../shared/operations.rs"]
mod operations;
#[path = "../../tests/protocol/pair.rs"]
mod pair;
#[path = "../../tests/protocol/post_copy/torment.rs"]
#[expect(dead_code, reason = "the tests and the other end's target use the rest")]
mod post_copy;
#[path = "../shared/script.rs"]
mod script;
#[path = "../shared/signing.rs"]
mod signing;
#[path = "../../tests/protocol/torment.rs"]
#[expect(dead_code, reason = "the tests and the other end's target use the rest")]
mod torment;

use libfuzzer_sys::fuzz_target;
use pair::Point;
use script::Script;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let (Some(is_post_copy), Some(point)) = (script.below(2), script.of(&Point::ALL)) else { return };
    if is_post_copy == 1 {
        post_copy::torment_destination(point, operations::of_post_copy(script));
    } else {
        torment::torment_destination(point, operations::of_pre_copy(script));
    }
});
