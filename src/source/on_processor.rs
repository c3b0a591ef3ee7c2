//! How long a method had a processor.
//!
//! Compression is judged by that: how long a thread waits meanwhile is up to those it shares the processor with, the receiver
//! of these very pages among them, and says nothing about the method.

use std::time::Instant;

use crate::page::{Encoded, Method, Packed};
use crate::sys::processor_time;

/// Has `encode` make something of a chunk, by `method`. Of the time that this took the method, only that counts in which the
/// thread had a processor.
pub(super) fn on_processor(method: Method, encode: impl FnOnce() -> Encoded) -> Encoded {
    // Raw takes no time of its own, and to ask may end this thread's turn.
    if method == Method::Raw {
        return encode();
    }
    let (began, run_before) = (Instant::now(), processor_time::of_this_thread());
    let Encoded { pages, packed } = encode();
    let (elapsed, run) = (began.elapsed(), processor_time::of_this_thread().saturating_sub(run_before));
    if run.is_zero() || run >= elapsed {
        return Encoded { pages, packed };
    }
    // Waits are taken to be spread evenly. Not so where all of them do not explain it: memory that is copied may have to be
    // read from a disk first.
    let even = packed.took.mul_f64(run.as_secs_f64() / elapsed.as_secs_f64());
    Encoded { pages, packed: Packed { took: even.max(packed.took.saturating_sub(elapsed - run)), ..packed } }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn waits_do_not_count_as_a_methods_time() {
        let pause = Duration::from_millis(50);
        let encode = || {
            std::thread::sleep(pause);
            Encoded { packed: Packed { took: pause, ..Packed::default() }, ..Encoded::default() }
        };
        if processor_time::of_this_thread().is_zero() {
            eprintln!("skipped: the system does not say how long a thread has run");
            return;
        }
        assert!(on_processor(Method::Lz4, encode).packed.took < pause / 2);
        assert_eq!(on_processor(Method::Raw, encode).packed.took, pause);
    }
}
