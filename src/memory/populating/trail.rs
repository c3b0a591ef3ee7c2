//! Whether a lane is amid memory that comes filled.
//!
//! A lane knows nothing of how far the others are, and what they have left out does not show. But it gets the same share of
//! chunks everywhere. So it looks at its own last chunks that came filled: where those lie as close together as its share
//! lets them, memory is filled, and what comes beside them is likely to be as well.

use crate::units::ChunkIndex;

/// The chunks of one lane that came filled for the most part, the last few of them.
#[derive(Clone, Debug)]
pub(in crate::memory) struct Trail {
    chunks: [Option<ChunkIndex>; LENGTH as usize],
    oldest: usize,
    /// As many chunks as the trail may stretch over.
    reach: u32,
}

impl Trail {
    /// Of a lane that brings one of so many chunks.
    pub(in crate::memory) fn of_one_in(lanes: u16) -> Self {
        Self { chunks: [None; LENGTH as usize], oldest: 0, reach: u32::from(lanes) * LENGTH * 3 / 2 }
    }

    /// `chunk` comes filled for the most part.
    pub(in crate::memory) fn follow(&mut self, chunk: ChunkIndex) {
        self.chunks[self.oldest] = Some(chunk);
        self.oldest = (self.oldest + 1) % self.chunks.len();
    }

    /// Whether two chunks of three around `chunk` have come filled, or will on other lanes.
    pub(in crate::memory) fn is_dense_at(&self, chunk: ChunkIndex) -> bool {
        self.chunks.iter().all(|known| known.is_some_and(|known| known.0.abs_diff(chunk.0) <= self.reach))
    }
}

/// Two extents' worth of chunks, if two lanes share them.
const LENGTH: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// The lane that a chunk comes on: any that has its share of all places.
    fn lane_of(chunk: ChunkIndex, lanes: u16) -> usize {
        let mixed = u64::from(chunk.0.wrapping_mul(0x9E37_79B1));
        usize::try_from((mixed * u64::from(lanes)) >> 32).unwrap()
    }

    /// How many of `chunks` are amid dense memory for the lane that brings them, if they come in this order.
    fn dense(chunks: impl Iterator<Item = u32>, lanes: u16) -> usize {
        let mut trails = vec![Trail::of_one_in(lanes); usize::from(lanes)];
        let is_dense = |chunk: &ChunkIndex| {
            let trail = &mut trails[lane_of(*chunk, lanes)];
            let dense = trail.is_dense_at(*chunk);
            trail.follow(*chunk);
            dense
        };
        chunks.map(ChunkIndex).filter(is_dense).count()
    }

    #[test]
    fn filled_memory_is_dense_after_a_few_chunks_whatever_the_lanes() {
        for lanes in [1, 2, 3, 4, 8, 13, 64] {
            let few = usize::from(lanes) * (LENGTH as usize + 1);
            assert!((4096 - few..4096).contains(&dense(0..4096, lanes)), "{lanes} lanes");
            assert!((4096 - few..4096).contains(&dense((0..4096).rev(), lanes)), "{lanes} lanes, backwards");
        }
    }

    #[test]
    fn sparse_memory_is_not() {
        for lanes in [1, 2, 3, 8, 64] {
            for every in [2, 3, 8] {
                let found = dense((0..4096).step_by(every), lanes);
                assert!(found < 4096 / every / 8, "{lanes} lanes, one chunk of {every}: {found}");
            }
        }
    }

    #[test]
    fn a_new_place_is_looked_at_anew() {
        let mut trail = Trail::of_one_in(1);
        (0..100).for_each(|chunk| trail.follow(ChunkIndex(chunk)));
        assert!(trail.is_dense_at(ChunkIndex(100)) && !trail.is_dense_at(ChunkIndex(112)) && !trail.is_dense_at(ChunkIndex(5000)));
    }
}
