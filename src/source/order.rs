//! In which order a first round goes through memory: far from where the guest writes first.
//!
//! A page that is sent and then written has to be sent again, a page that is written before its turn does not: it is sent
//! once, in a later round (see [`Job::skip`](super::worker::Job)). So what the guest is busy with should come last. At the
//! beginning little is known about that: a few milliseconds of writes. But what a guest writes lies together (a heap, a
//! table, the arena of one process), so the distance to what it was seen writing tells more than the writes themselves.

use crate::bitmap::PageBitmap;
use crate::units::ChunkIndex;

/// The chunks of `pages`, the farthest from any chunk of `hot` first; in the order of memory where nothing is hot.
pub(super) fn coldest_first(pages: &PageBitmap, hot: &PageBitmap) -> Vec<ChunkIndex> {
    let mut order: Vec<ChunkIndex> = pages.occupied().map(|(chunk, _)| chunk).collect();
    let hot: Vec<u32> = hot.occupied().map(|(chunk, _)| chunk.0).collect();
    if !hot.is_empty() {
        order.sort_by_cached_key(|chunk| std::cmp::Reverse(distance(&hot, chunk.0)));
    }
    order
}

/// To the nearest of `sorted`, which is not empty.
fn distance(sorted: &[u32], chunk: u32) -> u32 {
    let after = sorted.partition_point(|&hot| hot < chunk);
    let ahead = sorted.get(after).map_or(u32::MAX, |hot| hot - chunk);
    let behind = after.checked_sub(1).map_or(u32::MAX, |before| chunk - sorted[before]);
    ahead.min(behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(chunks: &[u32]) -> PageBitmap {
        let mut bitmap = PageBitmap::new(100);
        chunks.iter().for_each(|&chunk| bitmap.insert_word(ChunkIndex(chunk), 1 << (chunk % 64)));
        bitmap
    }

    fn order(pages: &[u32], hot: &[u32]) -> Vec<u32> {
        coldest_first(&bitmap(pages), &bitmap(hot)).into_iter().map(|chunk| chunk.0).collect()
    }

    #[test]
    fn what_is_far_from_the_writes_comes_first() {
        assert_eq!(order(&[1, 5, 9, 50], &[]), [1, 5, 9, 50]);
        assert_eq!(order(&[1, 5, 9, 50], &[5]), [50, 1, 9, 5]);
        assert_eq!(order(&[0, 10, 20, 99], &[0, 98]), [20, 10, 99, 0]);
        assert_eq!(order(&[3, 4], &[40]), [3, 4], "a hot page need not be among them");
        assert_eq!(order(&[], &[1]), [0; 0]);
    }
}
