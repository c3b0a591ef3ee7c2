//! Whether a page, or something else, looks random, from a sample of its bytes.
//!
//! Zstandard works on a chunk as a whole, and random pages (ciphertext, video, compressed files) would cost it as much as
//! all others for nothing. The test is how often two bytes of the sample are equal: for random bytes one pair in 256 is,
//! whatever else compresses at all has more. <https://en.wikipedia.org/wiki/R%C3%A9nyi_entropy> (collision entropy)

/// Whether a compressor makes a page smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entropy {
    /// It does.
    Low,
    /// It does not.
    High,
}

/// Whether nothing is to be gained by compressing `bytes`, at most a chunk, as far as a sample tells.
pub(super) fn looks_random(bytes: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    let words = bytes.as_chunks::<8>().0;
    // So many that the sample of a page is a seventh of it; odd, so that all fields of a record come up.
    let stride = (words.len() / SAMPLE_WORDS) | 1;
    words.iter().step_by(stride).flatten().for_each(|byte| counts[usize::from(*byte)] += 1);
    let sampled: u32 = counts.iter().sum();
    let equal_pairs: u32 = counts.iter().map(|&count| count * count.saturating_sub(1)).sum();
    // Random bytes have a 256th of the pairs, for a page 1350 give or take 100; this is a quarter more.
    equal_pairs < sampled * sampled.saturating_sub(1) / 256 * 5 / 4
}

const SAMPLE_WORDS: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: impl FnMut(u32) -> u8) -> Vec<u8> {
        (0..4096).map(byte).collect()
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
