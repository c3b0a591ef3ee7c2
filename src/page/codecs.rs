//! Which forms of pages two ends have agreed on.

use std::fmt;

use super::Compression;

/// A set of forms that not every end can take; zero, uniform and raw pages need no agreement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Codecs(u32);

impl Codecs {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// LZ4 blocks.
    pub const LZ4: Self = Self(1);
    /// Zstandard frames.
    pub const ZSTD: Self = Self(1 << 1);
    /// Unchanged pages, and differences to what was sent before.
    pub const DELTA: Self = Self(1 << 2);
    /// Columns.
    pub const COLUMNS: Self = Self(1 << 3);

    /// All that is built in.
    #[must_use]
    pub const fn built_in() -> Self {
        Self(Self::LZ4.0 | Self::DELTA.0 | Self::COLUMNS.0 | if cfg!(feature = "zstd") { Self::ZSTD.0 } else { 0 })
    }

    /// As on the wire. Bits of a later version name forms that this end does not know.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// As on the wire.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// All that is built in and that this kind of compression may use.
    #[must_use]
    pub const fn offered(compression: Compression) -> Self {
        let all = Self::built_in();
        match compression {
            Compression::None => Self(all.0 & Self::DELTA.0),
            _ => all,
        }
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this one only.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Codecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Codecs({:#b})", self.0)
    }
}
