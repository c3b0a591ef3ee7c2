//! How the pages of a chunk travel.

use super::{CHECK_BYTES, Codecs, LENGTH_BYTES, MAX_COLUMNS_BYTES, MAX_DELTA_BYTES, MAX_PACKED_BYTES, PACKED_LENGTH_BYTES, WORD_BYTES};
use crate::stats::Encodings;
use crate::units::{PAGE_SIZE, PageCount};

/// The forms of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All zeros: no bytes.
    Zero,
    /// One word repeated, not zero: the word.
    Uniform,
    /// What was last sent, not zeros: no bytes.
    Unchanged,
    /// The difference to what was last sent, of at most [`MAX_DELTA_BYTES`].
    Delta,
    /// Columns of words that are alike, in at most [`MAX_COLUMNS_BYTES`].
    Columns,
    /// An LZ4 block of at most [`MAX_PACKED_BYTES`].
    Lz4,
    /// Part of the chunk's Zstandard frame.
    Zstd,
    /// As it is.
    Raw,
}

impl Form {
    /// All of them, in the order of their masks on the wire.
    pub const ALL: [Self; 8] = [Self::Zero, Self::Uniform, Self::Unchanged, Self::Delta, Self::Columns, Self::Lz4, Self::Zstd, Self::Raw];
}

/// How the pages of a chunk travel: each mask names pages by their bits, and no page is in two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// [`Form::Zero`].
    pub zero: u64,
    /// [`Form::Uniform`].
    pub uniform: u64,
    /// [`Form::Unchanged`].
    pub unchanged: u64,
    /// [`Form::Delta`].
    pub delta: u64,
    /// [`Form::Columns`].
    pub columns: u64,
    /// [`Form::Lz4`].
    pub lz4: u64,
    /// [`Form::Zstd`].
    pub zstd: u64,
    /// [`Form::Raw`].
    pub raw: u64,
}

impl Masks {
    /// From the masks in the order of [`Form::ALL`].
    #[must_use]
    pub fn from_array([zero, uniform, unchanged, delta, columns, lz4, zstd, raw]: [u64; 8]) -> Self {
        Self { zero, uniform, unchanged, delta, columns, lz4, zstd, raw }
    }

    /// The masks in the order of [`Form::ALL`].
    #[must_use]
    pub fn to_array(self) -> [u64; 8] {
        [self.zero, self.uniform, self.unchanged, self.delta, self.columns, self.lz4, self.zstd, self.raw]
    }

    /// Puts `page`, a mask of one bit, into the mask of `form`.
    pub(super) fn insert(&mut self, form: Form, page: u64) {
        *match form {
            Form::Zero => &mut self.zero,
            Form::Uniform => &mut self.uniform,
            Form::Unchanged => &mut self.unchanged,
            Form::Delta => &mut self.delta,
            Form::Columns => &mut self.columns,
            Form::Lz4 => &mut self.lz4,
            Form::Zstd => &mut self.zstd,
            Form::Raw => &mut self.raw,
        } |= page;
    }

    /// Every page named by any of the masks.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.to_array().into_iter().fold(0, |all, mask| all | mask)
    }

    /// How many pages that is.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(u64::from(self.all().count_ones()))
    }

    /// Whether no page is named twice.
    #[must_use]
    pub fn is_disjoint(&self) -> bool {
        self.to_array().into_iter().map(u64::count_ones).sum::<u32>() == self.all().count_ones()
    }

    /// The pages of which the destination needs to have memory, and of those only the ones whose contents come along.
    #[must_use]
    pub fn filled(&self) -> u64 {
        self.uniform | self.columns | self.lz4 | self.zstd | self.raw
    }

    /// How many pages go in each form.
    #[must_use]
    pub fn encodings(&self) -> Encodings {
        let [zero, uniform, unchanged, delta, columns, lz4, zstd, raw] = self.to_array().map(|mask| PageCount(u64::from(mask.count_ones())));
        Encodings { zero, uniform, unchanged, delta, columns, lz4, zstd, raw }
    }

    /// Bytes of the raw pages.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.raw.count_ones() as usize * PAGE_SIZE
    }
}

/// How the deltas and columns of a chunk travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    #[default]
    Plain,
    /// All together in an LZ4 block.
    Lz4,
    /// All together in a Zstandard frame.
    Zstd,
}

/// How the pages of a chunk travel, and what that takes after the raw ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// The form of each page.
    pub masks: Masks,
    /// How deltas and columns travel; plain where there are none.
    pub packing: Packing,
    /// Bytes after the raw pages.
    pub meta_bytes: u32,
}

impl Pages {
    /// What has to be agreed on for this.
    #[must_use]
    pub fn codecs(&self) -> Codecs {
        let need = |needed: bool, codec| if needed { codec } else { Codecs::NONE };
        let Masks { unchanged, delta, columns, lz4, zstd, .. } = self.masks;
        need(unchanged | delta != 0, Codecs::DELTA)
            .or(need(columns != 0, Codecs::COLUMNS))
            .or(need(lz4 != 0 || self.packing == Packing::Lz4, Codecs::LZ4))
            .or(need(zstd != 0 || self.packing == Packing::Zstd, Codecs::ZSTD))
    }

    /// Whether deltas and columns are packed only where there are any, and there may be so many meta bytes.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let count = |mask: u64| mask.count_ones() as usize;
        let Masks { uniform, delta, columns, lz4, zstd, .. } = self.masks;
        let packed = self.packing != Packing::Plain;
        let fixed = count(uniform) * WORD_BYTES
            + count(delta) * (CHECK_BYTES + LENGTH_BYTES)
            + (count(columns) + count(lz4)) * LENGTH_BYTES
            + if packed { PACKED_LENGTH_BYTES } else { 0 };
        let least = if packed { 1 } else { count(delta) + count(columns) } + count(lz4) + usize::from(zstd != 0);
        let most = count(delta) * MAX_DELTA_BYTES + count(columns) * MAX_COLUMNS_BYTES + (count(lz4) + count(zstd)) * MAX_PACKED_BYTES;
        (delta | columns != 0 || !packed) && (fixed + least..=fixed + most).contains(&(self.meta_bytes as usize))
    }
}
