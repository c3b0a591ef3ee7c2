//! Hashes of pages, keyed for one migration.
//!
//! The source remembers what it sent by hashes, and takes a page whose hash is the same for the same page. A guest that
//! could make two pages with one hash could thereby have its own memory arrive wrong; so the hash is keyed with a secret
//! that no guest sees. A page is hashed in blocks of 512 bytes, which tell where a page has changed without a copy of
//! it; the hash of a page is the hash of its blocks' hashes, and costs about what hashing it whole would.

use std::fmt;
use std::sync::Arc;

use twox_hash::XxHash3_64;

use crate::units::PAGE_SIZE;

/// Blocks in a page.
pub(super) const BLOCKS: usize = 8;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = PAGE_SIZE / BLOCKS;

/// The hashes of a page's blocks.
pub(super) type BlockHashes = [u64; BLOCKS];

/// The key of one migration's hashes. Clones are cheap and the same key.
#[derive(Clone)]
pub struct PageKey {
    /// What XXH3 mixes its input with.
    secret: Arc<[u8; SECRET_BYTES]>,
}

impl PageKey {
    /// The key that both ends derive from what only they know: word `i` of XXH3's secret is XXH3 with seed `i` of
    /// `token`.
    #[must_use]
    pub fn derive(token: &[u8; 16]) -> Self {
        let mut secret = [0; SECRET_BYTES];
        for (index, word) in (0..).zip(secret.as_chunks_mut::<8>().0) {
            *word = XxHash3_64::oneshot_with_seed(index, token).to_le_bytes();
        }
        Self { secret: Arc::new(secret) }
    }

    /// The hashes of the blocks of `page`.
    pub(super) fn blocks(&self, page: &[u8; PAGE_SIZE]) -> BlockHashes {
        let mut hashes = [0; BLOCKS];
        for (hash, block) in hashes.iter_mut().zip(page.as_chunks::<BLOCK_BYTES>().0) {
            *hash = self.hash(block);
        }
        hashes
    }

    /// The hash of the page with these blocks; never 0.
    pub(super) fn page(&self, blocks: &BlockHashes) -> u64 {
        let mut bytes = [0; BLOCKS * 8];
        for (to, hash) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(blocks) {
            *to = hash.to_le_bytes();
        }
        self.hash(&bytes).max(1)
    }

    /// What a delta's result is checked by: the low half of its hash.
    pub(super) fn check(&self, page: &[u8; PAGE_SIZE]) -> [u8; 4] {
        check_of(self.page(&self.blocks(page)))
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_secret(&self.secret[..], bytes).expect("the secret is long enough")
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKey(..)")
    }
}

/// The part of a page's hash that travels with its delta.
pub(super) fn check_of(hash: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = hash.to_le_bytes();
    [a, b, c, d]
}

/// As long as XXH3's own secret.
const SECRET_BYTES: usize = 192;

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::{xxh3_64_with_secret, xxh3_64_with_seed};

    use super::*;

    #[test]
    fn another_implementation_comes_to_the_same_hashes() {
        let token = *b"sixteen bytes of";
        let secret: Vec<u8> = (0..24).flat_map(|seed| xxh3_64_with_seed(&token, seed).to_le_bytes()).collect();
        let mut page = [0; PAGE_SIZE];
        page.iter_mut().zip(0..).for_each(|(byte, index): (_, u32)| *byte = index.wrapping_mul(2_654_435_761).to_be_bytes()[0]);
        let key = PageKey::derive(&token);
        let blocks = key.blocks(&page);
        let expected: Vec<u64> = page.chunks(512).map(|block| xxh3_64_with_secret(block, &secret)).collect();
        assert_eq!(blocks[..], expected);
        let joined: Vec<u8> = expected.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        assert_eq!(key.page(&blocks), xxh3_64_with_secret(&joined, &secret));
    }

    #[test]
    fn another_key_makes_other_hashes() {
        let page = [7; PAGE_SIZE];
        let [one, other] = [[1; 16], [2; 16]].map(|token| PageKey::derive(&token).blocks(&page));
        assert!(one.iter().zip(other).all(|(one, other)| *one != other));
    }
}
