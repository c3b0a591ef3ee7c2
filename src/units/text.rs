//! Quantities as people write them, and back.
//!
//! What is printed parses to the same value again. A unit is required where leaving it out would be a guess: `300` is
//! no time, and `64M` no size, because half of the readers would be wrong about it. Upper and lower case are the same, except that
//! bytes are always `B`: `1Gb/s` is bits to some.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{ByteCount, BytesPerSec, PAGE_SIZE, PagesPerSec};

/// Text that is not the quantity it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: expected {accepted}")]
pub struct UnitError {
    /// What was given.
    pub text: String,
    /// What it should have been.
    pub what: &'static str,
    /// What would be.
    pub accepted: String,
}

impl UnitError {
    pub(crate) fn new(text: &str, what: &'static str, accepted: impl Into<String>) -> Self {
        Self { text: text.to_owned(), what, accepted: accepted.into() }
    }
}

/// Reads a size: `64MiB`, `1.5GiB`, `100MB`, `4096`.
///
/// # Errors
/// When it is none, or is over 2^64 bytes.
pub fn parse_size(text: &str) -> Result<ByteCount, UnitError> {
    let bytes = scaled(text, SIZE_UNITS).and_then(|bytes| u64::try_from(bytes).ok());
    bytes.map(ByteCount).ok_or_else(|| UnitError::new(text, "size", "64MiB, 1.5GiB, 100MB or a number of bytes"))
}

/// Reads a time: `300ms`, `1.5s`, `2m`.
///
/// # Errors
/// When it is none, or is over 584 years.
pub fn parse_time(text: &str) -> Result<Duration, UnitError> {
    let nanos = if text == "0" { Some(0) } else { scaled(text, TIME_UNITS).and_then(|nanos| u64::try_from(nanos).ok()) };
    nanos.map(Duration::from_nanos).ok_or_else(|| UnitError::new(text, "time", "300ms, 1.5s, 2m or 1h (units ns, us, ms, s, m, h)"))
}

/// Reads a rate of bytes: `1Gbit/s`, `100MB/s`, `100MiB/s`. Nothing is not a rate.
///
/// # Errors
/// When it is none.
pub fn parse_rate(text: &str) -> Result<BytesPerSec, UnitError> {
    let rate = bytes_per_sec(text).filter(|rate| *rate > 0.0);
    rate.map(BytesPerSec).ok_or_else(|| UnitError::new(text, "rate", "1Gbit/s, 100MB/s or 100MiB/s, above zero"))
}

/// Reads a rate of pages: `20000`, `20000pages/s`, or in bytes, `80MiB/s`. Zero is an idle guest.
///
/// # Errors
/// When it is none.
pub fn parse_page_rate(text: &str) -> Result<PagesPerSec, UnitError> {
    let (number, unit) = split_unit(text).unwrap_or_default();
    let rate = match unit.to_ascii_lowercase().as_str() {
        "" | "/s" | "pages/s" => as_float(number),
        _ => bytes_per_sec(text).map(|bytes| bytes / PAGE_SIZE as f64),
    };
    rate.map(PagesPerSec).ok_or_else(|| UnitError::new(text, "page rate", "20000, 20000pages/s or 80MiB/s"))
}

/// Prints a quantity so that it parses to the same value: `64MiB`, `300ms`, `1Gbit/s`.
#[derive(Clone, Copy, Debug)]
pub struct Exact<T>(pub T);

impl fmt::Display for Exact<ByteCount> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_whole(f, self.0.0.into(), &SIZE_UNITS[BINARY_SIZES], "")
    }
}

impl fmt::Display for Exact<Duration> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_whole(f, self.0.as_nanos(), TIME_UNITS, "0")
    }
}

impl fmt::Display for Exact<BytesPerSec> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.0 * 8.0;
        let unit = RATE_UNITS[BIT_RATES].iter().find(|(_, factor)| bits >= *factor && (bits / factor).fract() == 0.0);
        match unit {
            Some((name, factor)) => write!(f, "{}{name}", bits / factor),
            None => write!(f, "{bits}bit/s"),
        }
    }
}

impl fmt::Display for Exact<PagesPerSec> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}pages/s", self.0.0)
    }
}

/// Whole units: the largest that leaves no remainder.
fn write_whole(f: &mut fmt::Formatter<'_>, value: u128, units: &[(&str, u128)], zero: &str) -> fmt::Result {
    match units.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor)) {
        Some((name, factor)) => write!(f, "{}{name}", value / factor),
        None if value == 0 && !zero.is_empty() => f.write_str(zero),
        None => write!(f, "{value}"),
    }
}

/// Units of sizes in bytes, largest first. The first [`BINARY_SIZES`] are those that are printed.
const SIZE_UNITS: &[(&str, u128)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
    ("", 1),
];
const BINARY_SIZES: std::ops::RangeTo<usize> = ..4;

/// Units of times in nanoseconds, largest first.
const TIME_UNITS: &[(&str, u128)] =
    &[("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

/// Units of rates in bits a second. The first [`BIT_RATES`] are those that are printed, largest first.
const RATE_UNITS: &[(&str, f64)] = &[
    ("Tbit/s", 1e12),
    ("Gbit/s", 1e9),
    ("Mbit/s", 1e6),
    ("kbit/s", 1e3),
    ("bit/s", 1.0),
    ("GiB/s", 8.0 * 1_073_741_824.0),
    ("MiB/s", 8.0 * 1_048_576.0),
    ("KiB/s", 8.0 * 1024.0),
    ("GB/s", 8e9),
    ("MB/s", 8e6),
    ("kB/s", 8e3),
    ("B/s", 8.0),
];
const BIT_RATES: std::ops::RangeTo<usize> = ..5;

/// A number with a unit, in the smallest unit, rounded down. Exact: floats lose bytes of large sizes.
fn scaled(text: &str, units: &[(&str, u128)]) -> Option<u128> {
    let (number, unit) = split_unit(text)?;
    let (_, factor) = units.iter().find(|(name, _)| is_unit(name, unit))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let tenths = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits = u128::from_str(whole).ok()?.checked_mul(tenths)?.checked_add(u128::from_str(fraction).ok()?)?;
    Some(digits.checked_mul(*factor)? / tenths)
}

fn bytes_per_sec(text: &str) -> Option<f64> {
    let (number, unit) = split_unit(text)?;
    let (_, bits) = RATE_UNITS.iter().find(|(name, _)| is_unit(name, unit))?;
    Some(as_float(number)? * bits / 8.0).filter(|rate| rate.is_finite())
}

/// Digits with at most one point between them: no sign, no exponent, no infinity.
pub(crate) fn as_float(number: &str) -> Option<f64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    f64::from_str(number).ok().filter(|value| value.is_finite())
}

fn is_unit(name: &str, text: &str) -> bool {
    name.eq_ignore_ascii_case(text) && (!name.contains('B') || text.contains('B'))
}

/// `1.5GiB` as `1.5` and `GiB`; a space between them is fine.
fn split_unit(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    as_float(number).map(|_| (number, unit.strip_prefix(' ').unwrap_or(unit)))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is no quantity of any kind.
    pub(crate) const NONSENSE: [&str; 16] =
        ["", " ", "x", "-1", "+1", "1e3", "inf", "NaN", "1.", ".5", "1.2.3", "1 GiB/s/s", "１MiB", "0x10", "MiB", "1MiB "];

    #[test]
    fn sizes_are_bytes_with_or_without_a_unit() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64MiB", 64 << 20),
            ("64miB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("0.3KiB", 307),
            ("100MB", 100_000_000),
            ("1kB", 1000),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
            ("15.99999999999999999999999GiB", 17_179_869_183),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), Ok(ByteCount(bytes)), "{text}");
        }
        for text in NONSENSE.iter().chain(&[
            "64M",
            "64Mi",
            "64mb",
            "64mib",
            "1s",
            "18446744073709551616",
            "16777216TiB",
            "99999999999999999999999999999999999999999",
        ]) {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        let table = [
            ("0", 0),
            ("0s", 0),
            ("300ms", 300_000_000),
            ("1.5s", 1_500_000_000),
            ("2m", 120_000_000_000),
            ("1h", 3_600_000_000_000),
            ("10us", 10_000),
            ("7ns", 7),
            ("0.5ns", 0),
        ];
        for (text, nanos) in table {
            assert_eq!(parse_time(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in NONSENSE.iter().chain(&["300", "1MiB", "1d", "9999999h"]) {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_bits_or_bytes_a_second() {
        let table = [
            ("1Gbit/s", 125e6),
            ("1gbit/s", 125e6),
            ("2.5Gbit/s", 312.5e6),
            ("100MB/s", 1e8),
            ("100MiB/s", 104_857_600.0),
            ("8bit/s", 1.0),
            ("10kB/s", 1e4),
        ];
        for (text, rate) in table {
            assert_eq!(parse_rate(text), Ok(BytesPerSec(rate)), "{text}");
        }
        for text in NONSENSE.iter().chain(&["0", "0Gbit/s", "1", "1Gbit", "1Gb/s", "1Gbps", "1GiB"]) {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn page_rates_are_pages_or_bytes_a_second() {
        let table = [("0", 0.0), ("20000", 2e4), ("20000/s", 2e4), ("20000pages/s", 2e4), ("20000 pages/s", 2e4), ("80MiB/s", 20_480.0)];
        for (text, rate) in table {
            assert_eq!(parse_page_rate(text), Ok(PagesPerSec(rate)), "{text}");
        }
        for text in NONSENSE.iter().chain(&["1MiB", "1pages", "max"]) {
            assert!(parse_page_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn errors_name_the_value_and_what_is_accepted() {
        let message = parse_size("64M").unwrap_err().to_string();
        assert_eq!(message, r#""64M" is not a size: expected 64MiB, 1.5GiB, 100MB or a number of bytes"#);
    }

    #[test]
    fn quantities_print_as_people_write_them() {
        assert_eq!(Exact(ByteCount(64 << 20)).to_string(), "64MiB");
        assert_eq!(Exact(ByteCount(4097)).to_string(), "4097");
        assert_eq!(Exact(ByteCount(0)).to_string(), "0");
        assert_eq!(Exact(Duration::from_millis(300)).to_string(), "300ms");
        assert_eq!(Exact(Duration::from_millis(1500)).to_string(), "1500ms");
        assert_eq!(Exact(Duration::ZERO).to_string(), "0");
        assert_eq!(Exact(BytesPerSec(125e6)).to_string(), "1Gbit/s");
        assert_eq!(Exact(PagesPerSec(2e4)).to_string(), "20000pages/s");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(bytes: u64, shift in 0_u32..50, nanos: u64, rate in 1e-3_f64..1e15) {
            for bytes in [ByteCount(bytes), ByteCount(bytes >> shift << shift), ByteCount(1 << shift)] {
                prop_assert_eq!(parse_size(&Exact(bytes).to_string()), Ok(bytes));
            }
            for time in [Duration::from_nanos(nanos), Duration::from_secs(nanos >> 40), Duration::from_millis(nanos >> 30)] {
                prop_assert_eq!(parse_time(&Exact(time).to_string()), Ok(time));
            }
            for rate in [rate, rate.round() + 1.0, (rate / 1e6).round() * 1e6 + 125e6] {
                prop_assert_eq!(parse_rate(&Exact(BytesPerSec(rate)).to_string()), Ok(BytesPerSec(rate)));
                prop_assert_eq!(parse_page_rate(&Exact(PagesPerSec(rate)).to_string()), Ok(PagesPerSec(rate)));
            }
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (parse_size(&text), parse_time(&text), parse_rate(&text), parse_page_rate(&text));
        }

        #[test]
        fn no_number_panics(text in "[0-9.]{0,60}(|s|h|B|TiB|Gbit/s|pages/s)") {
            let _ = (parse_size(&text), parse_time(&text), parse_rate(&text), parse_page_rate(&text));
        }
    }
}
