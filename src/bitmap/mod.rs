//! Sets of pages, one 64-bit word to a chunk.
//!
//! [`PageBitmap`] is owned by one thread at a time and carries a round's work; [`SharedBitmap`] is written by many
//! threads at once and drained into the former. Both keep bit `n` of word `c` for page `n` of chunk `c`, which is also
//! the order of KVM's dirty log and of the masks on the wire, so no conversion happens anywhere.
#![forbid(unsafe_code)]

mod owned;
mod shared;

pub use owned::PageBitmap;
pub use shared::SharedBitmap;

/// The numbers of the bits set in `mask`, from the lowest.
pub(crate) fn bits(mut mask: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(bit)
    })
}
