//! Times when the whole host stood still, as a virtual machine does that is saved or moved, or one that has no processor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Watches from now on.
pub(crate) fn watch() {
    thread::spawn(|| {
        loop {
            let before = Instant::now();
            thread::sleep(TICK);
            let stood = before.elapsed();
            if stood > LONG {
                println!("the host stood still for {:.1} s", stood.as_secs_f64());
                COUNT.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
}

/// How often it did.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::SeqCst)
}

static COUNT: AtomicU64 = AtomicU64::new(0);
const TICK: Duration = Duration::from_millis(20);
/// As long as a migration here takes, and half as long as a peer is waited for.
const LONG: Duration = Duration::from_secs(1);
