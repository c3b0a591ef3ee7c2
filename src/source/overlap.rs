//! Whole pages that keep the link busy while differences keep the processors busy.
//!
//! What a guest writes during round 0 is left out there and goes whole in a later round: the link is what that waits for. If
//! the guest writes to all of it again meanwhile, the next round is differences, of a few bytes each: the processors are what
//! that waits for, and the link idles. So some of the whole pages are held back and go with the differences, as many as the
//! link carries in the time that it would idle.
//!
//! Once in a migration: the pages that were held back go with the next round whatever that holds. Too many or too few do no
//! harm beyond what they save, because the round after is short either way.

use std::thread::available_parallelism;
use std::time::Duration;

use crate::bitmap::PageBitmap;
use crate::policy::Bottleneck;
use crate::units::{ByteCount, BytesPerSec, PageCount};

/// What is known about that from the rounds so far.
#[derive(Debug, Default)]
pub(super) struct Overlap {
    /// Pages a second that the link carried when they went whole, if it was what the round waited for.
    rate: Option<f64>,
    was_used: bool,
}

impl Overlap {
    /// A round of whole pages has sent so many that hold something, in so many bytes; things arrive at `rate`.
    pub(super) fn after_whole_pages(&mut self, bottleneck: Bottleneck, pages: PageCount, bytes: ByteCount, rate: BytesPerSec) {
        let carried = rate.0 * pages.0 as f64 / bytes.0 as f64;
        self.rate = (bottleneck == Bottleneck::Link && carried.is_finite()).then_some(carried);
    }

    /// The pages of a round to hold back for the one after it, in which the link idles for `idle` for each page. Those of
    /// `never_sent` go whole.
    pub(super) fn hold_back(&mut self, round: &PageBitmap, never_sent: &PageBitmap, idle: Duration) -> Option<PageBitmap> {
        let rate = self.rate.filter(|_| !self.was_used)?;
        let mut whole = round.clone();
        whole.intersect_with(never_sent);
        let (all, whole_pages) = (round.count().0, whole.count().0);
        if whole_pages < LEAST_PAGES || whole_pages * 2 < all {
            return None;
        }
        // The next round is at worst all pages of this one.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
        let fill = (rate * idle.as_secs_f64() * all as f64) as u64;
        let held_back = (fill > 0).then(|| whole.spread(PageCount(fill.min(all / MOST))));
        self.was_used = held_back.is_some();
        held_back
    }
}

/// How long the link idles for each page that `workers` send as a difference.
pub(super) fn idle_for_a_difference(workers: usize) -> Duration {
    let processors = available_parallelism().map_or(1, usize::from).min(workers);
    DIFFERENCE / u32::try_from(processors).unwrap_or(u32::MAX).max(1)
}

/// What a page costs that goes as a difference, of a processor's time: reading, hashing and comparing it, with a guest that
/// writes beside it (the last rounds of `pageferry bench --scenario heavy-1gbit`).
const DIFFERENCE: Duration = Duration::from_nanos(3600);
/// Whole pages from which on it matters: 16 MiB.
const LEAST_PAGES: u64 = 4096;
/// At most one page in so many.
const MOST: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ChunkIndex, PageIndex};

    const IDLE: Duration = Duration::from_nanos(1800);

    /// So many chunks, all of them full.
    fn chunks(count: u32) -> PageBitmap {
        let mut pages = PageBitmap::new(4096);
        (0..count).for_each(|chunk| pages.insert_word(ChunkIndex(chunk), u64::MAX));
        pages
    }

    fn overlap(bottleneck: Bottleneck, bytes_per_second: f64) -> Overlap {
        let mut overlap = Overlap::default();
        overlap.after_whole_pages(bottleneck, PageCount(1000), ByteCount(2_000_000), BytesPerSec(bytes_per_second));
        overlap
    }

    #[test]
    fn as_many_as_the_link_carries_meanwhile_are_held_back_all_over_memory() {
        let round = chunks(1024);
        // 118 ms, in which 60 pages a millisecond go.
        let held_back = overlap(Bottleneck::Link, 120e6).hold_back(&round, &round, IDLE).unwrap();
        assert!((6500..7200).contains(&held_back.count().0), "{:?}", held_back.count());
        let quarters = [0, 256, 512, 768].map(|first| (first..first + 256).map(|chunk| held_back.word(ChunkIndex(chunk)).count_ones()).sum::<u32>());
        assert!(quarters.into_iter().all(|pages| pages > 1500), "{quarters:?}");
        // A slow link carries few.
        assert!(overlap(Bottleneck::Link, 12e6).hold_back(&round, &round, IDLE).unwrap().count().0 < 800);
        // A fast one not so many that the next round is like this one.
        assert_eq!(overlap(Bottleneck::Link, 10e9).hold_back(&round, &round, IDLE).unwrap().count().0, 65536 / MOST);
    }

    #[test]
    fn nothing_is_held_back_where_it_does_not_help() {
        let round = chunks(1024);
        assert_eq!(Overlap::default().hold_back(&round, &round, IDLE), None, "nothing is known yet");
        assert_eq!(overlap(Bottleneck::Processor, 120e6).hold_back(&round, &round, IDLE), None);
        assert_eq!(overlap(Bottleneck::Link, 120e6).hold_back(&round, &chunks(500), IDLE), None, "mostly differences as it is");
        assert_eq!(overlap(Bottleneck::Link, 120e6).hold_back(&chunks(63), &round, IDLE), None, "little");
        let mut nothing_sent = Overlap::default();
        nothing_sent.after_whole_pages(Bottleneck::Link, PageCount(0), ByteCount(0), BytesPerSec(120e6));
        assert_eq!(nothing_sent.hold_back(&round, &round, IDLE), None);
    }

    #[test]
    fn only_pages_of_the_round_that_go_whole_are_held_back_and_only_once() {
        let (mut round, mut never_sent) = (chunks(1024), chunks(1024));
        round.words_mut()[7] = 0;
        never_sent.words_mut()[8] = 0;
        let mut overlap = overlap(Bottleneck::Link, 120e6);
        let held_back = overlap.hold_back(&round, &never_sent, IDLE).unwrap();
        assert!(!held_back.contains(PageIndex(7 * 64)) && !held_back.contains(PageIndex(8 * 64)));
        assert_eq!(overlap.hold_back(&round, &never_sent, IDLE), None);
    }

    #[test]
    fn workers_share_the_work_as_far_as_there_are_processors() {
        assert_eq!(idle_for_a_difference(1), DIFFERENCE);
        assert_eq!(idle_for_a_difference(0), DIFFERENCE);
        assert!(idle_for_a_difference(64) >= DIFFERENCE / u32::try_from(available_parallelism().unwrap().get()).unwrap());
    }
}
