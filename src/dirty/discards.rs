//! Pages that went away, found by what is left.
//!
//! Giving pages back to the host (a balloon, hole punching) turns them into zeros without a write. Where the mechanism
//! does not see that, the populated pages of two harvests are compared: what was there and is gone was discarded. A
//! page that was discarded and written again is reported by the mechanism itself.
//!
//! One case escapes: a page of *shared* memory that is punched out and then only *read* again between two harvests is
//! populated (with zeros) at both. A VMM that punches holes into shared guest memory marks them
//! ([`Marks::discard`](super::Marks::discard)). One that marks all its discards says so
//! ([`Marks::with_discards`](super::Marks::with_discards)) and saves the comparison, some milliseconds to the GiB.

use std::io;
use std::sync::Arc;

use super::Tracked;
use crate::bitmap::PageBitmap;
use crate::memory::{GuestMemory, Region};
use crate::sys::pagemap::Doubtful;

/// What was populated at the last look, in the regions that need it.
#[derive(Debug)]
pub(super) struct Discards {
    memory: Arc<GuestMemory>,
    regions: Vec<usize>,
    before: PageBitmap,
    now: PageBitmap,
}

impl Discards {
    /// Watches the regions for which `watch` says so; none if the VMM marks its discards itself.
    pub(super) fn new(tracked: &Tracked, watch: impl Fn(&Region) -> bool) -> Self {
        let memory = &tracked.memory;
        let regions = (0..memory.regions().len()).filter(|&index| !tracked.marks.include_discards() && watch(&memory.regions()[index])).collect();
        let empty = PageBitmap::new(memory.layout().chunks());
        Self { memory: Arc::clone(memory), regions, before: empty.clone(), now: empty }
    }

    /// Begins: what is there now can go away.
    pub(super) fn start(&mut self) -> io::Result<()> {
        self.before.clear();
        look(&self.memory, &self.regions, &mut self.before)
    }

    /// Adds to `into` what went away since the last look.
    pub(super) fn harvest(&mut self, into: &mut PageBitmap) -> io::Result<()> {
        if self.regions.is_empty() {
            return Ok(());
        }
        self.now.clear();
        look(&self.memory, &self.regions, &mut self.now)?;
        self.before.subtract(&self.now);
        into.union_with(&self.before);
        std::mem::swap(&mut self.before, &mut self.now);
        Ok(())
    }
}

fn look(memory: &GuestMemory, regions: &[usize], into: &mut PageBitmap) -> io::Result<()> {
    regions.iter().try_for_each(|&index| memory.regions()[index].populated_into(into, Doubtful::Empty))
}
