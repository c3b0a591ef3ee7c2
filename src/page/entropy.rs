//! Whether a page looks random, from a sample of its bytes.
//!
//! Zstandard works on a chunk as a whole, and random pages (ciphertext, video, compressed files) would cost it as much as
//! all others for nothing. The test is how often two bytes of the sample are equal: for random bytes one pair in 256 is,
//! whatever else compresses at all has more. <https://en.wikipedia.org/wiki/R%C3%A9nyi_entropy> (collision entropy)

use crate::units::PAGE_SIZE;

/// Whether nothing is to be gained by compressing `page`, as far as a sample tells.
pub(super) fn looks_random(page: &[u8; PAGE_SIZE]) -> bool {
    let mut counts = [0u16; 256];
    let words = page.as_chunks::<8>().0;
    words.iter().step_by(STRIDE_WORDS).flatten().for_each(|byte| counts[usize::from(*byte)] += 1);
    let equal_pairs: u32 = counts.iter().map(|&count| u32::from(count) * u32::from(count.saturating_sub(1))).sum();
    equal_pairs < RANDOM_PAIRS
}

/// Every so many words one is sampled: odd, so that all fields of a record come up.
const STRIDE_WORDS: usize = 7;
const SAMPLE_BYTES: u32 = 512u32.div_ceil(7) * 8;
const _: () = assert!(SAMPLE_BYTES as usize == (PAGE_SIZE / 8).div_ceil(STRIDE_WORDS) * 8);
/// Random bytes have a 256th of the pairs, 1350 here, give or take 100; this is a quarter more.
const RANDOM_PAIRS: u32 = SAMPLE_BYTES * (SAMPLE_BYTES - 1) / 256 * 5 / 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: impl FnMut(u32) -> u8) -> [u8; PAGE_SIZE] {
        let bytes: Vec<u8> = (0..4096).map(byte).collect();
        bytes.try_into().unwrap()
    }

    /// Scrambles a number (the finalizer of splitmix64).
    fn mix(number: u32) -> u64 {
        let number = u64::from(number).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^ (number >> 31)
    }

    #[test]
    fn random_pages_look_random_and_others_do_not() {
        for seed in 0..500 {
            assert!(looks_random(&page(|index| mix(seed << 12 | index).to_le_bytes()[0])), "seed {seed}");
        }
        assert!(!looks_random(&page(|index| b"the quick brown fox jumps over the lazy dog "[(index % 44) as usize])), "text");
        assert!(
            !looks_random(&page(|index| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[(mix(index) % 64) as usize])),
            "base64"
        );
        assert!(!looks_random(&page(|index| if index % 8 < 6 { mix(index).to_le_bytes()[0] } else { 0 })), "pointers");
        assert!(!looks_random(&page(|index| if index % 32 < 16 { mix(index).to_le_bytes()[0] } else { 0 })), "half zeros");
    }
}
