//! Memory that is at hand for the destination.
//!
//! The host of a virtual machine takes back what has been free for some seconds, and to find it again costs more than to
//! fill it: milliseconds for each 2 MiB. Which run would meet such memory is a matter of whose turn it is. So a run on a
//! link that is faster than memory begins with as much in the machine as the migration will need, touched before the
//! source's guest is built and given back shortly before the migration; what has been freed last is handed out first.

use anyhow::{Context, Result};
use memmap2::{Advice, MmapMut};

use crate::units::{ByteCount, PAGE_SIZE};

/// Memory that was touched and is held.
#[derive(Debug)]
pub(super) struct Ballast {
    memory: MmapMut,
}

impl Ballast {
    /// Touches as much as a guest with this much in its memory will take.
    ///
    /// # Errors
    /// When the machine does not have it.
    pub(super) fn for_guest(filled: ByteCount) -> Result<Self> {
        let length = usize::try_from(filled.0 + filled.0 / COPIED_ONE_IN + BESIDE.0)?;
        let mut memory = MmapMut::map_anon(length).with_context(|| format!("no {length} bytes to hold for the destination"))?;
        // By whole huge pages where there are any, as these are what a host takes back; a kernel without them has none.
        let _ = memory.advise(Advice::HugePage);
        memory.iter_mut().step_by(PAGE_SIZE).for_each(|byte| *byte = 1);
        Ok(Self { memory })
    }

    /// Leaves it to whoever asks the kernel next.
    pub(super) fn give_back(self) {
        drop(self.memory);
    }
}

/// What both ends need beside the guest's pages at the destination: page tables, buffers, and at the source copies of pages
/// to make differences from, ...
const BESIDE: ByteCount = ByteCount(128 << 20);
/// ... of one page in so many at most.
const COPIED_ONE_IN: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pagemap::Pagemap;

    #[test]
    fn every_page_of_it_is_there() {
        let ballast = Ballast::for_guest(ByteCount(8 << 20)).unwrap();
        let start = ballast.memory.as_ptr() as usize;
        let mut present = 0;
        let range = start..start + ballast.memory.len();
        Pagemap::open().unwrap().present_runs(range, &mut |run| present += run.len()).unwrap();
        assert_eq!(present, 137 << 20);
    }
}
