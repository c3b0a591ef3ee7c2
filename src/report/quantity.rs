//! Figures for people: units, prefixes, digits.
//!
//! Everything on a page goes through here, so that a figure looks the same in a picture, in its table and in a heading.
//! Prefixes are decimal, as links are measured. Thousands are set apart by a narrow space.

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Milliseconds.
    Millis,
    /// Seconds of processor time.
    CpuSeconds,
    /// Bytes.
    Bytes,
    /// Bits a second.
    BitsPerSec,
    /// Pages.
    Pages,
    /// Pages a second.
    PagesPerSec,
    /// Writes a second.
    WritesPerSec,
    /// A ratio.
    Times,
}

/// A prefix: what to divide by, and how the unit is then called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    pub(super) divisor: f64,
    pub(super) name: &'static str,
}

impl Unit {
    /// A figure with its unit: `145.1 ms`, `2.346 s`, `193.4 MB`.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Times => format!("{} ×", self.digits(value, self.scale(value))),
            Self::Pages => number(value, 0),
            _ => {
                let scale = self.scale(value);
                format!("{}\u{a0}{}", self.digits(value, scale), scale.name)
            }
        }
    }

    /// The prefix for figures up to `largest`.
    pub(super) fn scale(self, largest: f64) -> Scale {
        let prefixes: &[(f64, &str)] = match self {
            Self::Millis => &[(1.0, "ms"), (1e3, "s")],
            Self::CpuSeconds => &[(1.0, "s")],
            Self::Bytes => &[(1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")],
            Self::BitsPerSec => &[(1.0, "bit/s"), (1e3, "kbit/s"), (1e6, "Mbit/s"), (1e9, "Gbit/s"), (1e12, "Tbit/s")],
            Self::Pages => &[(1.0, "pages")],
            Self::PagesPerSec => &[(1.0, "pages/s")],
            Self::WritesPerSec => &[(1.0, "writes/s")],
            Self::Times => &[(1.0, "×")],
        };
        let (divisor, name) = prefixes.iter().rev().find(|(divisor, _)| largest >= *divisor).unwrap_or(&prefixes[0]);
        Scale { divisor: *divisor, name }
    }

    /// The prefix for labels of an axis up to `largest`, where many digits have no room.
    pub(super) fn axis_scale(self, largest: f64) -> Scale {
        match self {
            Self::PagesPerSec if largest >= 1e5 => Scale { divisor: 1e3, name: "1000 pages/s" },
            Self::Pages if largest >= 1e6 => Scale { divisor: 1e3, name: "1000 pages" },
            _ => self.scale(largest),
        }
    }

    fn digits(self, value: f64, scale: Scale) -> String {
        if value == 0.0 {
            return "0".to_owned();
        }
        let value = value / scale.divisor;
        let decimals: i32 = match self {
            // Seconds keep their milliseconds as long as these say something.
            Self::Millis if scale.divisor > 1.0 => {
                if value < 100.0 {
                    3
                } else {
                    1
                }
            }
            Self::Pages | Self::PagesPerSec | Self::WritesPerSec => 0,
            Self::Bytes if scale.divisor <= 1.0 => 0,
            Self::Times | Self::CpuSeconds => {
                if value < 10.0 {
                    2
                } else {
                    1
                }
            }
            _ => {
                if value < 10.0 {
                    2
                } else {
                    1
                }
            }
        };
        let least = 0.1_f64.powi(decimals);
        let decimals = decimals.unsigned_abs() as usize;
        // Rounded it would be nothing, which is more than is known.
        if value.abs() < least / 2.0 { format!("< {}", number(least, decimals)) } else { number(value, decimals) }
    }
}

/// Digits with the thousands set apart.
pub(super) fn number(value: f64, decimals: usize) -> String {
    let printed = format!("{value:.decimals$}");
    let (whole, fraction) = printed.split_once('.').map_or((printed.as_str(), None), |(whole, fraction)| (whole, Some(fraction)));
    let mut digits = String::new();
    for (position, digit) in whole.chars().enumerate() {
        // Four digits are read at a glance.
        if position > 0 && whole.len() > 4 && (whole.len() - position).is_multiple_of(3) {
            digits.push('\u{202f}');
        }
        digits.push(digit);
    }
    match fraction {
        Some(fraction) => format!("{digits}.{fraction}"),
        None => digits,
    }
}

/// A share as a percentage; `< 0.1 %` rather than a nought for something.
pub(super) fn share(part: f64, whole: f64) -> String {
    let percent = if whole > 0.0 { part / whole * 100.0 } else { 0.0 };
    if percent > 0.0 && percent < 0.1 { "< 0.1\u{a0}%".to_owned() } else { format!("{percent:.1}\u{a0}%") }
}

/// Text cut to `longest` characters.
pub(super) fn shortened(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest { text.to_owned() } else { text.chars().take(longest - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_carry_their_units() {
        for (unit, value, shown) in [
            (Unit::Millis, 0.0, "0 ms"),
            (Unit::Times, 0.0, "0 ×"),
            (Unit::Millis, 9.871, "9.87 ms"),
            (Unit::Millis, 145.078, "145.1 ms"),
            (Unit::Millis, 2345.678, "2.346 s"),
            (Unit::Millis, 1_302_510.0, "1302.5 s"),
            (Unit::CpuSeconds, 0.8412, "0.84 s"),
            (Unit::Bytes, 512.0, "512 B"),
            (Unit::Bytes, 193_409_497.0, "193.4 MB"),
            (Unit::BitsPerSec, 1e9, "1.00 Gbit/s"),
            (Unit::BitsPerSec, 496.3e6, "496.3 Mbit/s"),
            (Unit::Pages, 65_541.0, "65 541"),
            (Unit::Pages, 4096.0, "4096"),
            (Unit::PagesPerSec, 1_234_567.8, "1 234 568 pages/s"),
            (Unit::Times, 0.456, "0.46 ×"),
        ] {
            assert_eq!(unit.show(value).replace(['\u{a0}', '\u{202f}'], " "), shown);
        }
    }

    #[test]
    fn something_is_never_shown_as_nothing() {
        assert_eq!(share(1.0, 1e6), "< 0.1\u{a0}%");
        assert_eq!(share(0.0, 1e6), "0.0\u{a0}%");
        assert_eq!(share(1.0, 0.0), "0.0\u{a0}%");
        assert_eq!(share(1.0, 8.0), "12.5\u{a0}%");
        assert_eq!([0.0049, 0.006, 0.0].map(|ratio| Unit::Times.show(ratio)), ["< 0.01 ×", "0.01 ×", "0 ×"]);
        assert_eq!((Unit::Millis.show(0.001), Unit::PagesPerSec.show(0.2)), ("< 0.01\u{a0}ms".to_owned(), "< 1\u{a0}pages/s".to_owned()));
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(shortened("ünïcode", 4), "ünï…");
        assert_eq!(shortened("four", 4), "four");
    }
}
