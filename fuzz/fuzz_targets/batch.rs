//! Text into the reader of `--batch` files. No panic; what was read is within the limits that it is refused beyond, in the
//! order of priorities, and written down again it reads as the same.
#![no_main]

use std::collections::HashSet;
use std::fmt::Write;

use libfuzzer_sys::fuzz_target;
use pageferry::cli::batch::Batch;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(batch) = Batch::parse(text) else { return };
    assert!(!batch.guests.is_empty() && batch.guests.len() <= MOST && batch.concurrency.get() <= MOST);
    assert!(batch.guests.is_sorted_by(|earlier, later| earlier.priority >= later.priority));
    let names: HashSet<_> = batch.guests.iter().map(|guest| &guest.name).collect();
    assert_eq!(names.len(), batch.guests.len());
    assert_eq!(Batch::parse(&written(&batch)), Ok(batch));
});

/// A file that says the same.
fn written(batch: &Batch) -> String {
    let mut text = format!("concurrency {}\n", batch.concurrency);
    for guest in &batch.guests {
        writeln!(text, "{} name={} priority={}", guest.spec, guest.name, guest.priority).expect("into memory");
    }
    text
}

/// Guests, and migrations at a time.
const MOST: usize = 10_000;
