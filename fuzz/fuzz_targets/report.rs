//! Bytes into the reader of reports, and what it makes of them into a page: no panic, and a page whatever is drawn.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pageferry::report;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(documents) = report::read("file", bytes) {
        assert!(report::page(&documents).ends_with("</html>\n"));
    }
});
