//! Text into everything that reads a line of it: descriptions of guests (which come from a peer, too), addresses, and
//! quantities. No panic, and what was read prints as something that reads as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pageferry::cli::units::parse_volume;
use pageferry::guests::GuestSpec;
use pageferry::transport::Endpoint;
use pageferry::units::text::{Exact, parse_page_rate, parse_rate, parse_size, parse_time};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(spec) = text.parse::<GuestSpec>() {
        assert_eq!(spec.to_string().parse(), Ok(spec));
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
    }
    if let Ok(size) = parse_size(text) {
        assert_eq!(parse_size(&Exact(size).to_string()), Ok(size));
    }
    if let Ok(time) = parse_time(text) {
        assert_eq!(parse_time(&Exact(time).to_string()), Ok(time));
    }
    if let Ok(rate) = parse_rate(text) {
        assert!(rate.0.is_finite() && rate.0 > 0.0);
    }
    if let Ok(rate) = parse_page_rate(text) {
        assert!(rate.0.is_finite() && rate.0 >= 0.0);
    }
    let _ = parse_volume(text);
});
