//! Copies of pages as they were last sent, to make deltas from.
//!
//! Memory for them is bounded, so who gets a place matters. Only pages that are known to be written to do: that a page is
//! sent in round 0 says nothing about whether it will be sent again. A page that no compressor makes smaller takes the place
//! of one that some does: its changed blocks, which would go otherwise, cost it all they hold. And a page keeps its place
//! against its like as long as it comes back round after round: when the working set is larger than the cache, the pages
//! that are in it stay and go as deltas each time, where a cache that lets the newest in would have thrown each one out just
//! before it returns.
//!
//! Whether more copies are made at all is for the [encoder](super::Keep) to be told: where the link is not what
//! all wait for they cost more than they save. Those that there are stay of use.

use std::num::NonZeroU32;

use super::entropy::Entropy;
use super::slab::Slab;
use crate::units::{CHUNK_PAGES, ChunkIndex, PAGE_SIZE};

/// The cache of one worker.
pub(super) struct Bases {
    /// Of each chunk, where the places of its pages are.
    chunks: Vec<Option<NonZeroU32>>,
    places: Slab<[Option<Place>; CHUNK_PAGES]>,
    owners: Vec<Owner>,
    /// Pages in slabs, so that growing moves none and allocates rarely. All but the last are full.
    slabs: Vec<Vec<[u8; PAGE_SIZE]>>,
    /// Where to look next for a place that may be had.
    hand: usize,
}

/// A place by its number, plus one.
#[derive(Clone, Copy)]
struct Place(NonZeroU32);

impl Place {
    fn new(index: usize) -> Self {
        Self(u32::try_from(index + 1).ok().and_then(NonZeroU32::new).expect("fewer places than pages"))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Whose a place is.
struct Owner {
    /// None: nobody's.
    page: Option<(ChunkIndex, u32)>,
    /// The round it was last sent in.
    round: u16,
    entropy: Entropy,
}

impl Bases {
    /// For memory of `chunks` chunks.
    pub(super) fn new(chunks: u32) -> Self {
        Self { chunks: vec![None; chunks as usize], places: Slab::new(), owners: Vec::new(), slabs: Vec::new(), hand: 0 }
    }

    fn place(&self, chunk: ChunkIndex, bit: u32) -> Option<usize> {
        let places = self.places.get(self.chunks[chunk.as_usize()]?);
        places[bit as usize].map(Place::index)
    }

    /// The copy of a page, if there is one. Who changes it makes it what is sent now, and says so ([`Bases::kept_up`]).
    pub(super) fn base(&mut self, chunk: ChunkIndex, bit: u32) -> Option<&mut [u8; PAGE_SIZE]> {
        let place = self.place(chunk, bit)?;
        Some(&mut self.slabs[place / SLAB_PAGES][place % SLAB_PAGES])
    }

    /// The copy of a page was made what is sent in `round`.
    pub(super) fn kept_up(&mut self, chunk: ChunkIndex, bit: u32, round: u16) {
        let place = self.place(chunk, bit).expect("there is a copy");
        self.owners[place].round = round;
    }

    /// A page that was written to before `round` is sent in it with these contents: keeps them if it has a place already or
    /// there is one to be had. The cache has `limit` places, or as many as it has if that is more.
    pub(super) fn keep(&mut self, (chunk, bit): (ChunkIndex, u32), contents: &[u8; PAGE_SIZE], round: u16, limit: usize, entropy: Entropy) {
        if let Some(place) = self.place(chunk, bit) {
            let owner = &mut self.owners[place];
            (owner.round, owner.entropy) = (round, entropy);
            self.slabs[place / SLAB_PAGES][place % SLAB_PAGES] = *contents;
            return;
        }
        let Some(place) = self.place_for_another(round, entropy, limit) else { return };
        let owner = Owner { page: Some((chunk, bit)), round, entropy };
        let all = &mut self.places;
        let places = *self.chunks[chunk.as_usize()].get_or_insert_with(|| all.push([None; CHUNK_PAGES]));
        all.get_mut(places)[bit as usize] = Some(Place::new(place));
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

    /// A page was sent as something that is not worth a place, such as zeros: what is kept of it is out of date.
    pub(super) fn forget(&mut self, chunk: ChunkIndex, bit: u32) {
        if let Some(place) = self.vacate(chunk, bit) {
            self.owners[place].page = None;
        }
    }

    /// Takes its place from a page.
    fn vacate(&mut self, chunk: ChunkIndex, bit: u32) -> Option<usize> {
        let places = self.places.get_mut(self.chunks[chunk.as_usize()]?);
        places[bit as usize].take().map(Place::index)
    }

    /// Bytes that finding the copies takes.
    pub(super) fn index_bytes(&self) -> usize {
        self.places.len() * size_of::<[Option<Place>; CHUNK_PAGES]>()
    }

    /// Bytes of the copies.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.owners.len() * PAGE_SIZE
    }

    /// A place that is free: the first that there is none of yet, or one that fell out of use, or whose owner needs it less.
    fn place_for_another(&mut self, round: u16, entropy: Entropy, limit: usize) -> Option<usize> {
        let places = self.owners.len();
        if places < limit {
            return Some(places);
        }
        for _ in 0..places.min(LOOKS) {
            let place = self.hand;
            self.hand = (self.hand + 1) % places;
            let owner = &self.owners[place];
            let Some((chunk, bit)) = owner.page else { return Some(place) };
            if round.saturating_sub(owner.round) > PATIENCE_ROUNDS || (owner.entropy == Entropy::Low && entropy == Entropy::High) {
                self.vacate(chunk, bit);
                return Some(place);
            }
        }
        None
    }
}

/// Pages for which memory is allocated at once.
const SLAB_PAGES: usize = 64;
/// Rounds for which a page may stay away and keeps its place.
const PATIENCE_ROUNDS: u16 = 2;
/// Places looked at for each page that wants one.
const LOOKS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// The cache of a guest of 1024 pages.
    fn bases() -> Bases {
        Bases::new(16)
    }

    /// Where a page is.
    fn at(page: u32) -> (ChunkIndex, u32) {
        (ChunkIndex(page / 64), page % 64)
    }

    fn contents(page: u32, round: u16) -> [u8; PAGE_SIZE] {
        let mut contents = [0; PAGE_SIZE];
        contents[..4].copy_from_slice(&page.to_le_bytes());
        contents[8..10].copy_from_slice(&round.to_le_bytes());
        contents
    }

    /// How many of the pages are there, each with what it held in `round`.
    fn held(bases: &mut Bases, pages: impl IntoIterator<Item = u32>, round: u16) -> usize {
        let is_there = |page: &u32| {
            let base = bases.base(at(*page).0, at(*page).1);
            base.map(|base| assert!(*base == contents(*page, round), "what was sent last")).is_some()
        };
        pages.into_iter().filter(is_there).count()
    }

    #[test]
    fn a_working_set_twice_the_cache_still_finds_half_its_pages() {
        let mut bases = bases();
        for round in 1..10 {
            assert_eq!(held(&mut bases, 0..200, round - 1), if round == 1 { 0 } else { 100 }, "round {round}");
            (0..200).for_each(|page| bases.keep(at(page), &contents(page, round), round, 100, Entropy::High));
        }
        assert_eq!(bases.bytes(), 100 * PAGE_SIZE);
    }

    #[test]
    fn pages_that_stay_away_make_room() {
        let mut bases = bases();
        for round in 1..12 {
            let pages = if round < 4 { 0..100 } else { 500..600 };
            pages.for_each(|page| bases.keep(at(page), &contents(page, round), round, 100, Entropy::High));
        }
        assert_eq!((held(&mut bases, 500..600, 11), held(&mut bases, 0..100, 3)), (100, 0));
    }

    #[test]
    fn pages_that_no_compressor_makes_smaller_take_the_place_of_others_and_keep_it() {
        let mut bases = bases();
        for round in 1..6 {
            let entropy = |page: u32| if page.is_multiple_of(2) { Entropy::Low } else { Entropy::High };
            (0..160).for_each(|page| bases.keep(at(page), &contents(page, round), round, 100, entropy(page)));
            assert_eq!((held(&mut bases, (1..160).step_by(2), round), held(&mut bases, (0..160).step_by(2), round)), (80, 20), "round {round}");
        }
        assert_eq!(bases.bytes(), 100 * PAGE_SIZE);
    }

    #[test]
    fn a_page_that_has_become_random_keeps_its_place_against_others_like_it() {
        let mut bases = bases();
        bases.keep(at(5), &contents(5, 1), 1, 1, Entropy::Low);
        bases.keep(at(5), &contents(5, 2), 2, 1, Entropy::High);
        bases.keep(at(6), &contents(6, 2), 2, 1, Entropy::High);
        assert_eq!((held(&mut bases, [5], 2), held(&mut bases, [6], 2)), (1, 0));
        bases.keep(at(5), &contents(5, 3), 3, 1, Entropy::Low);
        bases.keep(at(6), &contents(6, 3), 3, 1, Entropy::High);
        assert_eq!((held(&mut bases, [5], 3), held(&mut bases, [6], 3)), (0, 1));
    }

    #[test]
    fn no_place_is_given_away_where_no_copies_are_to_be_made_and_those_there_are_stay() {
        let mut bases = bases();
        bases.keep(at(1), &contents(1, 1), 1, 0, Entropy::High);
        assert_eq!((held(&mut bases, [1], 1), bases.bytes()), (0, 0));
        bases.keep(at(1), &contents(1, 1), 1, 1, Entropy::High);
        bases.keep(at(1), &contents(1, 2), 2, 0, Entropy::High);
        assert_eq!(held(&mut bases, [1], 2), 1);
    }

    #[test]
    fn a_forgotten_page_leaves_its_place_to_the_next() {
        let mut bases = bases();
        (0..10).for_each(|page| bases.keep(at(page), &contents(page, 1), 1, 10, Entropy::High));
        bases.forget(at(3).0, at(3).1);
        assert_eq!(held(&mut bases, 0..10, 1), 9);
        bases.keep(at(77), &contents(77, 1), 1, 10, Entropy::Low);
        assert!(held(&mut bases, [77], 1) == 1 && bases.bytes() == 10 * PAGE_SIZE);
        bases.keep(at(78), &contents(78, 1), 1, 10, Entropy::Low);
        assert_eq!(held(&mut bases, [78], 1), 0, "full");
    }

    #[test]
    fn a_copy_that_was_kept_up_counts_as_sent() {
        let mut bases = bases();
        bases.keep(at(5), &contents(5, 1), 1, 1, Entropy::High);
        *bases.base(at(5).0, at(5).1).unwrap() = contents(5, 7);
        bases.kept_up(at(5).0, at(5).1, 7);
        bases.keep(at(6), &contents(6, 8), 8, 1, Entropy::High);
        assert_eq!((held(&mut bases, [5], 7), held(&mut bases, [6], 8)), (1, 0), "it came back a round ago");
    }
}
