//! What flags take beside the quantities of [`text`](crate::units::text).

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::policy::VolumeLimit;
use crate::units::text::{Exact, UnitError, as_float, parse_size};

/// Reads a limit of volume: a size, or `10x` for so many times the guest's memory.
///
/// # Errors
/// When it is none.
pub fn parse_volume(text: &str) -> Result<VolumeLimit, UnitError> {
    let times = text.strip_suffix(['x', 'X']).map(|number| as_float(number).map(VolumeLimit::Times));
    let limit = times.unwrap_or_else(|| parse_size(text).ok().map(VolumeLimit::Bytes));
    limit.ok_or_else(|| UnitError::new(text, "volume", "a size such as 64GiB, or 10x for ten times the guest's memory"))
}

/// Reads whole numbers in `range`.
pub fn number_in<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, UnitError> + Clone + Send + Sync
where
    T: FromStr + PartialOrd + fmt::Display + Clone + Send + Sync,
{
    move |text| {
        let number = T::from_str(text).ok().filter(|number| range.contains(number));
        number.ok_or_else(|| UnitError::new(text, "valid number", format!("{} to {}", range.start(), range.end())))
    }
}

impl fmt::Display for Exact<VolumeLimit> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            VolumeLimit::Bytes(bytes) => Exact(bytes).fmt(f),
            VolumeLimit::Times(times) => write!(f, "{times}x"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::ByteCount;
    use crate::units::text::tests::NONSENSE;

    #[test]
    fn volumes_are_sizes_or_multiples() {
        let table = [("10x", VolumeLimit::Times(10.0)), ("2.5X", VolumeLimit::Times(2.5)), ("64GiB", VolumeLimit::Bytes(ByteCount(64 << 30)))];
        for (text, limit) in table {
            assert_eq!(parse_volume(text), Ok(limit), "{text}");
        }
        for text in NONSENSE.iter().chain(&["10 x", "xx", "-1x", "infx"]) {
            assert!(parse_volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn multiples_print_as_people_write_them() {
        assert_eq!([10.0, 2.5].map(|times| Exact(VolumeLimit::Times(times)).to_string()), ["10x", "2.5x"]);
    }

    #[test]
    fn numbers_keep_to_their_range() {
        let parse = number_in(1_u16..=64);
        assert_eq!((parse("1"), parse("64")), (Ok(1), Ok(64)));
        for text in ["0", "65", "-1", "70000", "two", ""] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("{text:?} is not a valid number: expected 1 to 64"));
        }
    }

    proptest! {
        #[test]
        fn a_volume_that_is_printed_parses_to_the_same(bytes: u64, times in 0.0_f64..1e6) {
            for limit in [VolumeLimit::Bytes(ByteCount(bytes)), VolumeLimit::Times(times)] {
                prop_assert_eq!(parse_volume(&Exact(limit).to_string()), Ok(limit));
            }
        }

        #[test]
        fn no_volume_panics(text in ".*", number in "[0-9.]{0,60}(|x|TiB)") {
            let _ = (parse_volume(&text), parse_volume(&number));
        }
    }
}
