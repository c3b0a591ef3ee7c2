//! In which order the rest of memory is pushed: around the guest's latest faults.
//!
//! A page that arrives before the guest touches it costs the guest nothing; one that it has to wait for costs a round
//! trip. Programs touch what lies next to what they just touched, so every fault becomes a *pivot*, and the push goes on
//! from there in both directions ("bubbling", Hines, Deshpande and Gopalan, "Post-copy live migration of virtual
//! machines", <https://doi.org/10.1145/1618525.1618528>). Several pivots take turns, one for each place where the guest
//! is at work. Faults that ascend near a pivot make it a run: it goes on forward, almost only, and farther, and
//! gives that up while the guest waits elsewhere only. A pivot that sees no more faults has said what it knows after a while,
//! and makes room for what was written lately, and that for the rest in order.
//!
//! Pure: no threads, no clock. What has been claimed is looked up in [`Remaining`]; cursors only move away from their
//! pivots, so nothing is looked at again and again.

use super::remaining::Remaining;
use crate::units::{CHUNK_PAGES, ChunkIndex, PageIndex};

/// How the push follows the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prepaging {
    /// Nothing is pushed: every page waits until the guest does. To compare with.
    Demand,
    /// In order, whatever the guest does. To compare with.
    Push,
    /// Around the latest fault.
    OnePivot,
    /// Around the latest faults at several places.
    #[default]
    Pivots,
}

/// Some pages of a chunk, to be sent as one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which chunk.
    pub chunk: ChunkIndex,
    /// Which pages of it, at least one.
    pub mask: u64,
}

/// The order of the push.
#[derive(Debug)]
pub struct PushOrder {
    prepaging: Prepaging,
    /// The one that saw a fault last is at the front.
    pivots: Vec<Pivot>,
    /// Counts pieces around pivots.
    turn: u64,
    /// Chunks to push before the rest, the next one at the end.
    hot: Vec<ChunkIndex>,
    /// All chunks before it have been pushed or are hot.
    rest: u32,
}

/// A place where the guest is at work.
#[derive(Debug)]
struct Pivot {
    /// Where the next fault of a run is expected: pages below were passed.
    forward: u64,
    /// Pages from it on were passed.
    backward: u64,
    /// The last fault.
    last: u64,
    /// Ascending faults in a row, each close to the one before; descending ones count down from nothing.
    streak: i32,
    /// When it last had its turn; 0 if it did not since the last fault.
    turn: u64,
    /// Pieces pushed since the last fault.
    pieces: u32,
    /// Pages that may be pushed before the next fault.
    budget: u64,
}

impl PushOrder {
    /// Nothing has faulted yet. `hot` are the chunks to push first as long as nothing does, in this order.
    #[must_use]
    pub fn new(prepaging: Prepaging, mut hot: Vec<ChunkIndex>) -> Self {
        hot.reverse();
        Self { prepaging, pivots: Vec::with_capacity(PIVOTS), turn: 0, hot, rest: 0 }
    }

    /// The guest waits for `page`, or for it to arrive if it is under way. Answers how many pages after it are worth
    /// sending right behind it.
    pub fn fault(&mut self, page: PageIndex) -> u32 {
        let pivots = match self.prepaging {
            Prepaging::Demand | Prepaging::Push => return 0,
            Prepaging::OnePivot => 1,
            Prepaging::Pivots => PIVOTS,
        };
        let pivot = match self.pivots.iter().position(|pivot| pivot.is_near(page.0)) {
            Some(at) => {
                let mut pivot = self.pivots.remove(at);
                pivot.follow(page.0);
                pivot
            }
            None => {
                self.pivots.truncate(pivots - 1);
                Pivot::new(page.0)
            }
        };
        self.pivots.iter_mut().for_each(Pivot::make_room);
        let behind = u32::try_from(pivot.streak.max(0)).expect("not negative").saturating_mul(4).min(MOST_BEHIND);
        self.pivots.insert(0, pivot);
        behind
    }

    /// What to push next: at most `most` pages (at least one) that nobody has claimed; `None` when there are none.
    pub fn next(&mut self, remaining: &Remaining, most: u32) -> Option<Piece> {
        if self.prepaging == Prepaging::Demand {
            return None;
        }
        self.next_of_pivots(remaining, most).or_else(|| self.next_hot(remaining, most)).or_else(|| self.next_of_rest(remaining, most))
    }

    /// Pivots take turns, and one that sees a fault is next.
    fn next_of_pivots(&mut self, remaining: &Remaining, most: u32) -> Option<Piece> {
        while let Some(at) = (0..self.pivots.len()).min_by_key(|&at| self.pivots[at].turn) {
            self.turn += 1;
            self.pivots[at].turn = self.turn;
            if let Some(piece) = self.pivots[at].next(remaining, most) {
                return Some(piece);
            }
            self.pivots.remove(at);
        }
        None
    }

    fn next_hot(&mut self, remaining: &Remaining, most: u32) -> Option<Piece> {
        while let Some(&chunk) = self.hot.last() {
            let mask = lowest(remaining.word(chunk), most);
            if mask != 0 {
                return Some(Piece { chunk, mask });
            }
            self.hot.pop();
        }
        None
    }

    fn next_of_rest(&mut self, remaining: &Remaining, most: u32) -> Option<Piece> {
        while self.rest < remaining.chunks() {
            let chunk = ChunkIndex(self.rest);
            let mask = lowest(remaining.word(chunk), most);
            if mask != 0 {
                return Some(Piece { chunk, mask });
            }
            self.rest += 1;
        }
        None
    }
}

impl Pivot {
    fn new(page: u64) -> Self {
        Self { forward: page + 1, backward: page, last: page, streak: 0, turn: 0, pieces: 0, budget: REACH }
    }

    fn is_near(&self, page: u64) -> bool {
        (self.backward.saturating_sub(NEAR)..self.forward + NEAR).contains(&page)
    }

    /// Takes note of another fault nearby.
    fn follow(&mut self, page: u64) {
        // In a run the next fault is at a page that follows the last, or that follows what was pushed after it.
        let ascends = page > self.last && (page - self.last <= STRIDE || page.abs_diff(self.forward) <= STRIDE);
        let descends = page < self.last && (self.last - page <= STRIDE || page.abs_diff(self.backward) <= STRIDE);
        self.streak = match (ascends, descends) {
            (true, _) => self.streak.max(0).saturating_add(1),
            (_, true) => self.streak.min(0).saturating_sub(1),
            _ if page == self.last => self.streak,
            _ => 0,
        };
        self.turn = 0;
        self.last = page;
        self.pieces = 0;
        self.budget = self.budget.max(REACH << self.streak.unsigned_abs().min(LONGEST_REACH));
        // A run that is ahead of the push is joined where it is; what it passed over it does not seem to need.
        if self.streak >= RUN {
            self.forward = self.forward.max(page + 1);
        } else if self.streak <= -RUN {
            self.backward = self.backward.min(page);
        }
    }

    /// Takes note of a fault elsewhere. A run that sees none meanwhile is ahead of the guest, or the guest has left it: what it
    /// may still push soon is no more than that of any place.
    fn make_room(&mut self) {
        self.budget -= self.budget.saturating_sub(REACH).div_ceil(YIELD);
    }

    fn is_run(&self) -> bool {
        self.streak.abs() >= RUN
    }

    fn next(&mut self, remaining: &Remaining, most: u32) -> Option<Piece> {
        if self.budget == 0 {
            return None;
        }
        let (period, other) = if self.is_run() { (8, 7) } else { (3, 2) };
        let is_other = self.pieces % period == other;
        let ahead = is_other != (self.streak > -RUN);
        self.pieces = self.pieces.wrapping_add(1);
        let piece = if ahead {
            self.next_forward(remaining, most).or_else(|| self.next_backward(remaining, most))
        } else {
            self.next_backward(remaining, most).or_else(|| self.next_forward(remaining, most))
        }?;
        self.budget = self.budget.saturating_sub(u64::from(piece.mask.count_ones()));
        Some(piece)
    }

    /// The next pages above, if there are any not too far away.
    fn next_forward(&mut self, remaining: &Remaining, most: u32) -> Option<Piece> {
        let end = u64::from(remaining.chunks()) * CHUNK_PAGES as u64;
        let far = self.last.max(self.forward).saturating_add(self.budget).min(end);
        while self.forward < far {
            let at = PageIndex(self.forward);
            let mask = lowest(remaining.word(at.chunk()) & (u64::MAX << at.bit()), most);
            let passed = if mask == 0 { CHUNK_PAGES as u64 } else { u64::from(64 - mask.leading_zeros()) };
            self.forward = at.chunk().page(0).0 + passed;
            if mask != 0 {
                return Some(Piece { chunk: at.chunk(), mask });
            }
        }
        None
    }

    /// The next pages below, if there are any not too far away.
    fn next_backward(&mut self, remaining: &Remaining, most: u32) -> Option<Piece> {
        let far = self.last.min(self.backward).saturating_sub(self.budget);
        while self.backward > far {
            let at = PageIndex(self.backward - 1);
            let mask = highest(remaining.word(at.chunk()) & (u64::MAX >> (63 - at.bit())), most);
            let passed = if mask == 0 { 0 } else { u64::from(mask.trailing_zeros()) };
            self.backward = at.chunk().page(0).0 + passed;
            if mask != 0 {
                return Some(Piece { chunk: at.chunk(), mask });
            }
        }
        None
    }
}

/// The lowest `count` bits that are set.
fn lowest(word: u64, count: u32) -> u64 {
    let mut left = word;
    for _ in 0..count.min(word.count_ones()) {
        left &= left - 1;
    }
    word & !left
}

/// The highest `count` bits that are set.
fn highest(word: u64, count: u32) -> u64 {
    lowest(word.reverse_bits(), count).reverse_bits()
}

/// Places that the push follows at once.
const PIVOTS: usize = 8;
/// Pages by which a fault may miss what a pivot has pushed and still belong to it.
const NEAR: u64 = 64;
/// Pages from one fault of a run to the next at most.
const STRIDE: u64 = 64;
/// Pages that a pivot pushes without another fault near it, ...
const REACH: u64 = 512;
/// ... and how many times that is doubled in a run.
const LONGEST_REACH: u32 = 5;
/// The part of what a run has beyond that which each fault elsewhere takes away: one in so many.
const YIELD: u64 = 8;
/// Faults in a row that make a run.
const RUN: i32 = 2;
/// Pages right behind a fault in a run at most.
const MOST_BEHIND: u32 = 15;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::remaining::Granule;
    use super::*;
    use crate::bitmap::PageBitmap;
    use crate::memory::MemoryLayout;
    use crate::units::PageCount;

    fn remaining(chunks: u32) -> Remaining {
        let pages = PageCount(u64::from(chunks) * CHUNK_PAGES as u64);
        let mut missing = PageBitmap::new(chunks);
        missing.insert_run(PageIndex(0), pages);
        Remaining::new(&missing, &MemoryLayout::flat(pages).unwrap(), Granule::Page)
    }

    /// The first page and the number of pages of what comes next, `count` times.
    fn pieces(order: &mut PushOrder, remaining: &Remaining, count: usize) -> Vec<(u64, u32)> {
        let next = |_| {
            let Piece { chunk, mask } = order.next(remaining, 16).expect("there is more");
            assert_eq!(remaining.claim(chunk, mask).pages().0, u64::from(mask.count_ones()));
            (chunk.page(mask.trailing_zeros()).0, mask.count_ones())
        };
        (0..count).map(next).collect()
    }

    fn fault(order: &mut PushOrder, remaining: &Remaining, page: u64) -> u32 {
        let page = PageIndex(page);
        let _ = remaining.claim(page.chunk(), 1 << page.bit());
        order.fault(page)
    }

    #[test]
    fn the_push_goes_both_ways_from_a_fault() {
        let (remaining, mut order) = (remaining(64), PushOrder::new(Prepaging::Pivots, Vec::new()));
        assert_eq!(fault(&mut order, &remaining, 1000), 0);
        assert_eq!(pieces(&mut order, &remaining, 5), [(1001, 16), (1017, 7), (984, 16), (1024, 16), (1040, 16)]);
    }

    #[test]
    fn a_run_is_followed_forward() {
        let (remaining, mut order) = (remaining(64), PushOrder::new(Prepaging::Pivots, Vec::new()));
        let behind = [1000, 1001, 1003, 1010].map(|page| fault(&mut order, &remaining, page));
        assert_eq!(behind, [0, 4, 8, 12]);
        assert_eq!(pieces(&mut order, &remaining, 4), [(1011, 13), (1024, 16), (1040, 16), (1056, 16)]);
    }

    #[test]
    fn a_descending_run_is_followed_backward() {
        let (remaining, mut order) = (remaining(64), PushOrder::new(Prepaging::Pivots, Vec::new()));
        assert_eq!([1000, 999, 998].map(|page| fault(&mut order, &remaining, page)), [0; 3]);
        assert_eq!(pieces(&mut order, &remaining, 3), [(982, 16), (966, 16), (960, 6)]);
    }

    #[test]
    fn places_take_turns_and_the_latest_is_next() {
        let (remaining, mut order) = (remaining(64), PushOrder::new(Prepaging::Pivots, Vec::new()));
        fault(&mut order, &remaining, 640);
        fault(&mut order, &remaining, 2560);
        assert_eq!(pieces(&mut order, &remaining, 4), [(2561, 16), (641, 16), (2577, 16), (657, 16)]);
        fault(&mut order, &remaining, 3840);
        assert_eq!(pieces(&mut order, &remaining, 1), [(3841, 16)]);
        let mut one = PushOrder::new(Prepaging::OnePivot, Vec::new());
        fault(&mut one, &remaining, 640);
        fault(&mut one, &remaining, 1280);
        assert_eq!(pieces(&mut one, &remaining, 2), [(1281, 16), (1297, 16)], "the first is forgotten");
    }

    #[test]
    fn without_faults_what_is_hot_comes_before_the_rest() {
        let hot = vec![ChunkIndex(5), ChunkIndex(2)];
        let (remaining, mut order) = (remaining(8), PushOrder::new(Prepaging::Pivots, hot));
        let firsts: Vec<_> = pieces(&mut order, &remaining, 12).iter().map(|piece| piece.0).collect();
        assert_eq!(firsts, [320, 336, 352, 368, 128, 144, 160, 176, 0, 16, 32, 48]);
        assert_eq!(PushOrder::new(Prepaging::Demand, Vec::new()).next(&remaining, 16), None);
    }

    #[test]
    fn a_place_without_more_faults_is_left_alone() {
        let (remaining, mut order) = (remaining(64), PushOrder::new(Prepaging::Pivots, Vec::new()));
        fault(&mut order, &remaining, 2048);
        let near = pieces(&mut order, &remaining, 60).iter().filter(|piece| piece.0.abs_diff(2048) < 700).map(|piece| piece.1).sum::<u32>();
        assert!((512..600).contains(&near), "{near}");
    }

    #[test]
    fn a_run_that_the_guest_has_left_makes_room_for_the_next() {
        let (remaining, mut order) = (remaining(1024), PushOrder::new(Prepaging::Pivots, Vec::new()));
        (1000..1010).for_each(|page| _ = fault(&mut order, &remaining, page));
        // From now on it works elsewhere, and waits for each piece.
        let mut left = 0;
        let mut at = 40_000;
        for _ in 0..400 {
            fault(&mut order, &remaining, at);
            let pushed = pieces(&mut order, &remaining, 2);
            left += pushed.iter().filter(|piece| piece.0 < 30_000).map(|piece| piece.1).sum::<u32>();
            at = pushed.iter().filter(|piece| piece.0 > at).map(|piece| piece.0 + u64::from(piece.1)).max().unwrap_or(at + 1);
        }
        assert!((512..1200).contains(&left), "{left} pages of a place that the guest has left");
    }

    proptest! {
        #[test]
        fn whatever_faults_every_page_is_pushed_once(
            faults in prop::collection::vec((0u64..640, 0usize..6), 0..60),
            hot in prop::collection::vec(0u32..10, 0..5),
            most in 1u32..=64,
        ) {
            for prepaging in [Prepaging::Push, Prepaging::OnePivot, Prepaging::Pivots] {
                let remaining = remaining(10);
                let mut order = PushOrder::new(prepaging, hot.iter().copied().map(ChunkIndex).collect());
                let mut faults = faults.iter().copied();
                let mut before_next = 0;
                while let Some(Piece { chunk, mask }) = order.next(&remaining, most) {
                    prop_assert!(mask != 0 && mask.count_ones() <= most);
                    prop_assert_eq!(remaining.claim(chunk, mask).pages().0, u64::from(mask.count_ones()), "nobody claims in between");
                    if before_next > 0 {
                        before_next -= 1;
                    } else if let Some((page, wait)) = faults.next() {
                        fault(&mut order, &remaining, page);
                        before_next = wait;
                    }
                }
                prop_assert_eq!(remaining.left(), PageCount(0));
            }
        }
    }
}
