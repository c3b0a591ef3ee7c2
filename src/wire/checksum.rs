//! xxh3 (64 bits, seed 0): of a whole buffer, or piece by piece.
//!
//! <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>

use std::hash::Hasher;

use twox_hash::XxHash3_64;
use twox_hash::xxhash3_64::{DEFAULT_SECRET_LENGTH, RawHasher, SecretBuffer};

/// The checksum of `bytes`.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// A checksum under way. Allocates nothing.
pub(super) struct Checksum {
    hasher: RawHasher<&'static [u8; DEFAULT_SECRET_LENGTH]>,
}

impl Checksum {
    pub(super) fn new() -> Self {
        Self { hasher: RawHasher::new(SecretBuffer::default()) }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.write(bytes);
    }

    pub(super) fn finish(&self) -> u64 {
        self.hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    proptest! {
        #[test]
        fn pieces_and_whole_agree_with_another_implementation(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1usize..300) {
            let mut pieces = Checksum::new();
            bytes.chunks(piece).for_each(|piece| pieces.update(piece));
            prop_assert_eq!(checksum(&bytes), xxh3_64(&bytes));
            prop_assert_eq!(pieces.finish(), xxh3_64(&bytes));
        }
    }
}
