//! Copies of pages as they were last sent, to make deltas from.
//!
//! Memory for them is bounded, so who gets a place matters. Only pages that are known to be written to do: that a page is
//! sent in round 0 says nothing about whether it will be sent again. And a page keeps its place as long as it comes back
//! round after round: when the working set is larger than the cache, the pages that are in it stay and go as deltas each
//! time, where a cache that lets the newest in would have thrown each one out just before it returns.

use std::collections::HashMap;

use crate::units::{PAGE_SIZE, PageIndex};

/// The cache of one worker.
pub(super) struct Bases {
    /// By number of the page in memory.
    places: HashMap<PageIndex, u32>,
    owners: Vec<Owner>,
    /// Pages in slabs, so that growing moves none and allocates rarely. All but the last are full.
    slabs: Vec<Vec<[u8; PAGE_SIZE]>>,
    /// Where to look next for a place that fell out of use.
    hand: usize,
}

struct Owner {
    page: PageIndex,
    /// The round it was last sent in.
    round: u16,
}

impl Bases {
    pub(super) fn new() -> Self {
        Self { places: HashMap::new(), owners: Vec::new(), slabs: Vec::new(), hand: 0 }
    }

    /// The copy of `page`, if there is one.
    pub(super) fn base(&self, page: PageIndex) -> Option<&[u8; PAGE_SIZE]> {
        let place = *self.places.get(&page)? as usize;
        Some(&self.slabs[place / SLAB_PAGES][place % SLAB_PAGES])
    }

    /// `page`, which was written to before `round`, is sent in it with these contents: keeps them if it has a place already or
    /// there is one to be had. The cache has `limit` places.
    pub(super) fn keep(&mut self, page: PageIndex, contents: &[u8; PAGE_SIZE], round: u16, limit: usize) {
        let place = match self.places.get(&page) {
            Some(place) => *place as usize,
            None => {
                let Some(place) = self.place_for_another(round, limit) else { return };
                self.places.insert(page, u32::try_from(place).expect("fewer places than pages"));
                place
            }
        };
        let owner = Owner { page, round };
        if place < self.owners.len() {
            self.owners[place] = owner;
            self.slabs[place / SLAB_PAGES][place % SLAB_PAGES] = *contents;
        } else {
            self.owners.push(owner);
            if place.is_multiple_of(SLAB_PAGES) {
                self.slabs.push(Vec::with_capacity(SLAB_PAGES));
            }
            self.slabs[place / SLAB_PAGES].extend_from_slice(std::slice::from_ref(contents));
        }
    }

    /// `page` was sent as something that is not worth a place, such as zeros: what is kept of it is out of date.
    pub(super) fn forget(&mut self, page: PageIndex) {
        if let Some(place) = self.places.remove(&page) {
            // Long unused, so that it goes to the next who asks.
            self.owners[place as usize] = Owner { page: NOBODY, round: 0 };
        }
    }

    /// Bytes of the copies.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.owners.len() * PAGE_SIZE
    }

    /// A place that is free: the first that there is none of yet, or one that fell out of use.
    fn place_for_another(&mut self, round: u16, limit: usize) -> Option<usize> {
        let places = self.owners.len();
        if places < limit {
            return Some(places);
        }
        for _ in 0..places.min(LOOKS) {
            let place = self.hand;
            self.hand = (self.hand + 1) % places;
            let owner = &self.owners[place];
            if owner.page == NOBODY {
                return Some(place);
            }
            if round.saturating_sub(owner.round) > PATIENCE_ROUNDS {
                self.places.remove(&owner.page);
                return Some(place);
            }
        }
        None
    }
}

const NOBODY: PageIndex = PageIndex(u64::MAX);
/// Pages for which memory is allocated at once.
const SLAB_PAGES: usize = 64;
/// Rounds for which a page may stay away and keeps its place.
const PATIENCE_ROUNDS: u16 = 2;
/// Places looked at for each page that wants one.
const LOOKS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(page: u64, round: u16) -> [u8; PAGE_SIZE] {
        let mut contents = [0; PAGE_SIZE];
        contents[..8].copy_from_slice(&page.to_le_bytes());
        contents[8..10].copy_from_slice(&round.to_le_bytes());
        contents
    }

    #[test]
    fn a_working_set_twice_the_cache_still_finds_half_its_pages() {
        let mut bases = Bases::new();
        for round in 1..10 {
            let mut hits = 0;
            for page in 0..200 {
                if let Some(base) = bases.base(PageIndex(page)) {
                    hits += 1;
                    assert!(*base == contents(page, round - 1), "what was sent last");
                }
                bases.keep(PageIndex(page), &contents(page, round), round, 100);
            }
            assert_eq!(hits, if round == 1 { 0 } else { 100 }, "round {round}");
        }
        assert_eq!(bases.bytes(), 100 * PAGE_SIZE);
    }

    #[test]
    fn pages_that_stay_away_make_room() {
        let mut bases = Bases::new();
        for round in 1..12 {
            let pages = if round < 4 { 0..100 } else { 500..600 };
            pages.for_each(|page| bases.keep(PageIndex(page), &contents(page, round), round, 100));
        }
        assert_eq!((500..600).filter(|&page| bases.base(PageIndex(page)).is_some()).count(), 100);
        assert_eq!((0..100).filter(|&page| bases.base(PageIndex(page)).is_some()).count(), 0);
    }

    #[test]
    fn a_forgotten_page_leaves_its_place_to_the_next() {
        let mut bases = Bases::new();
        (0..10).for_each(|page| bases.keep(PageIndex(page), &contents(page, 1), 1, 10));
        bases.forget(PageIndex(3));
        assert!(bases.base(PageIndex(3)).is_none());
        bases.keep(PageIndex(77), &contents(77, 1), 1, 10);
        assert!(bases.base(PageIndex(77)).is_some() && bases.bytes() == 10 * PAGE_SIZE);
        bases.keep(PageIndex(78), &contents(78, 1), 1, 10);
        assert!(bases.base(PageIndex(78)).is_none(), "full");
    }
}
