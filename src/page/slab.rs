//! Values for the chunks that were sent, where most of memory may never be.

use std::num::NonZeroU32;

/// Values that stay, allocated several at a time: one by one, each would have the heap of its thread grow, and the kernel
/// lock all of this process's mappings for that.
pub(super) struct Slab<T> {
    pieces: Vec<Vec<T>>,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { pieces: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }

    /// Where it is from now on.
    pub(super) fn push(&mut self, value: T) -> NonZeroU32 {
        if self.len().is_multiple_of(PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        self.pieces.last_mut().expect("there is one with room").push(value);
        u32::try_from(self.len()).ok().and_then(NonZeroU32::new).expect("no more than chunks, and one at least")
    }

    pub(super) fn get(&self, place: NonZeroU32) -> &T {
        let index = place.get() as usize - 1;
        &self.pieces[index / PIECE][index % PIECE]
    }

    pub(super) fn get_mut(&mut self, place: NonZeroU32) -> &mut T {
        let index = place.get() as usize - 1;
        &mut self.pieces[index / PIECE][index % PIECE]
    }
}

/// Values allocated at a time: those for 16 MiB of memory.
const PIECE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_where_they_were_put() {
        let mut slab = Slab::new();
        let places: Vec<_> = (0..3 * PIECE + 1).map(|value| slab.push(value)).collect();
        assert_eq!(slab.len(), 3 * PIECE + 1);
        *slab.get_mut(places[PIECE]) += 1000;
        assert!((0..).zip(&places).all(|(value, place)| *slab.get(*place) == value + if value == PIECE { 1000 } else { 0 }));
    }
}
