//! How long a method had a processor.
//!
//! Compression is judged by that: how long a thread waits meanwhile is up to those it shares the processor with, the receiver
//! of these very pages among them, and says nothing about the method.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::page::{Encoded, Method, Packed};

/// Has `encode` make something of a chunk, by `method`. Of the time that this took the method, only that counts in which the
/// thread had a processor.
pub(super) fn on_processor(method: Method, encode: impl FnOnce() -> Encoded) -> Encoded {
    // To read the clock has the scheduler look whether it is another thread's turn, and raw takes no time of its own.
    if method == Method::Raw {
        return encode();
    }
    let (began, run_before) = (Instant::now(), run());
    let Encoded { pages, packed } = encode();
    let (elapsed, run) = (began.elapsed().as_secs_f64(), run().saturating_sub(run_before).as_secs_f64());
    let share = if run > 0.0 && run < elapsed { run / elapsed } else { 1.0 };
    Encoded { pages, packed: Packed { took: packed.took.mul_f64(share), ..packed } }
}

/// What the calling thread has had of a processor; nothing where the system does not say.
fn run() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_do_not_count_as_a_methods_time() {
        let pause = Duration::from_millis(50);
        let encode = || {
            std::thread::sleep(pause);
            Encoded { packed: Packed { took: pause, ..Packed::default() }, ..Encoded::default() }
        };
        if run().is_zero() {
            eprintln!("skipped: the system does not say how long a thread has run");
            return;
        }
        assert!(on_processor(Method::Lz4, encode).packed.took < pause / 2);
        assert_eq!(on_processor(Method::Raw, encode).packed.took, pause);
    }
}
