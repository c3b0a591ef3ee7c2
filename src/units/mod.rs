//! Quantities with their units in the type.
//!
//! A page number, an address and a byte count are all integers and all get mixed up; these newtypes keep them apart at
//! every module edge. Arithmetic that makes sense is spelled out, the rest is left out.

pub mod text;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bytes in a page: the granule of tracking and sending.
pub const PAGE_SIZE: usize = 4096;
/// 64-bit words in a page.
pub const PAGE_WORDS: usize = PAGE_SIZE / 8;
/// Pages in a chunk: one bitmap word, one frame, one unit of work.
pub const CHUNK_PAGES: usize = 64;
/// Bytes in a chunk.
pub const CHUNK_SIZE: usize = CHUNK_PAGES * PAGE_SIZE;
/// Bytes in a huge page of the host's.
pub(crate) const HUGE_PAGE_SIZE: usize = 1 << HUGE_PAGE_SHIFT;
/// The same as a power of two.
pub(crate) const HUGE_PAGE_SHIFT: u8 = 21;

/// A page of the guest, counted through the layout: `chunk * 64 + position in the chunk`.
///
/// Regions start at a chunk of their own, so this is not the guest-physical page number once there is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// The chunk this page lies in.
    #[must_use]
    pub fn chunk(self) -> ChunkIndex {
        ChunkIndex(u32::try_from(self.0 / CHUNK_PAGES as u64).expect("page indices come from a bounded layout"))
    }

    /// Position in its chunk, 0 to 63: the bit of the chunk's word.
    #[must_use]
    pub fn bit(self) -> u32 {
        u32::try_from(self.0 % CHUNK_PAGES as u64).expect("less than 64")
    }
}

/// A chunk of 64 pages: the index of a bitmap word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

impl ChunkIndex {
    /// The page at position `bit` of this chunk.
    #[must_use]
    pub fn page(self, bit: u32) -> PageIndex {
        PageIndex(u64::from(self.0) * CHUNK_PAGES as u64 + u64::from(bit))
    }

    /// As an index into a slice of words.
    #[must_use]
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// A number of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageCount(pub u64);

impl PageCount {
    /// The bytes these pages hold.
    #[must_use]
    pub fn bytes(self) -> ByteCount {
        ByteCount(self.0.saturating_mul(PAGE_SIZE as u64))
    }
}

impl std::ops::Add for PageCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::AddAssign for PageCount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl std::iter::Sum for PageCount {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self(0), std::ops::Add::add)
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.0)
    }
}

/// A guest-physical address in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddr(pub u64);

impl fmt::Display for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// Whole pages in these bytes, rounded up.
    #[must_use]
    pub fn pages(self) -> PageCount {
        PageCount(self.0.div_ceil(PAGE_SIZE as u64))
    }
}

impl std::ops::Add for ByteCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::AddAssign for ByteCount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl std::iter::Sum for ByteCount {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self(0), std::ops::Add::add)
    }
}

impl fmt::Display for ByteCount {
    /// Binary units, as sizes of memory are given: `256 MiB`, `1.50 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if value.fract() == 0.0 { write!(f, "{value:.0} {}", UNITS[unit]) } else { write!(f, "{value:.2} {}", UNITS[unit]) }
    }
}

/// A rate in bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BytesPerSec(pub f64);

impl BytesPerSec {
    /// How long `bytes` take at this rate; [`Duration::MAX`] when the rate is nothing.
    #[must_use]
    pub fn time_for(self, bytes: ByteCount) -> Duration {
        if bytes.0 == 0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(bytes.0 as f64 / self.0).unwrap_or(Duration::MAX)
    }

    /// Whole bytes that go in so long.
    #[must_use]
    pub fn bytes_in(self, time: Duration) -> ByteCount {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
        ByteCount((self.0 * time.as_secs_f64()) as u64)
    }
}

impl fmt::Display for BytesPerSec {
    /// In bits, as links are measured: `1.00 Gbit/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0 * 8.0;
        if bits >= 1e9 {
            write!(f, "{:.2} Gbit/s", bits / 1e9)
        } else if bits >= 1e6 {
            write!(f, "{:.1} Mbit/s", bits / 1e6)
        } else {
            write!(f, "{:.1} kbit/s", bits / 1e3)
        }
    }
}

/// A rate in pages a second: how fast a guest dirties memory, or a link moves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PagesPerSec(pub f64);

impl PagesPerSec {
    /// How long `pages` take at this rate; [`Duration::MAX`] when the rate is nothing.
    #[must_use]
    pub fn time_for(self, pages: PageCount) -> Duration {
        if pages.0 == 0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(pages.0 as f64 / self.0).unwrap_or(Duration::MAX)
    }
}

impl fmt::Display for PagesPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} pages/s", self.0)
    }
}

/// How much of the time a guest may run: from a hundredth to all of it.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunShare(f64);

impl RunShare {
    /// All the time.
    pub const FULL: Self = Self(1.0);
    /// No guest is slowed down further.
    pub const LEAST: Self = Self(0.01);

    /// The nearest share to `share` that there is, to a thousandth.
    #[must_use]
    pub fn new(share: f64) -> Self {
        // Not a number: no reason to slow anything down.
        if share.is_nan() { Self::FULL } else { Self((share.clamp(Self::LEAST.0, Self::FULL.0) * 1e3).round() / 1e3) }
    }

    /// The part of `time` that a guest runs.
    #[must_use]
    pub fn of(self, time: Duration) -> Duration {
        if self == Self::FULL { time } else { Duration::try_from_secs_f64(time.as_secs_f64() * self.0).unwrap_or(Duration::MAX) }
    }

    /// From 0.01 to 1.
    #[must_use]
    pub fn value(self) -> f64 {
        self.0
    }
}

impl fmt::Display for RunShare {
    /// As a percentage: `40 %`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} %", self.0 * 100.0)
    }
}

/// A duration for people to read: `145.1 ms`, `8.590 s`, `1302.5 s`.
///
/// Displays padded as a whole, so that columns line up.
#[derive(Clone, Copy, Debug)]
pub struct HumanTime(pub Duration);

impl fmt::Display for HumanTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        let text = if self.0 == Duration::MAX {
            "for ever".to_owned()
        } else if seconds < 1.0 {
            format!("{:.1} ms", seconds * 1e3)
        } else if seconds < 100.0 {
            format!("{seconds:.3} s")
        } else {
            format!("{seconds:.1} s")
        };
        // The precision was used up above; what is left is the padding.
        match f.width() {
            Some(width) => write!(f, "{text:>width$}"),
            None => f.write_str(&text),
        }
    }
}
