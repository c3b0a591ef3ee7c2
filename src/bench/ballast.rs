//! Memory that is at hand for the destination.
//!
//! The host of a virtual machine takes back what has been free for some seconds, and to find it again costs more than to
//! fill it: milliseconds for each 2 MiB. Which run would meet such memory is a matter of whose turn it is. So a run on a
//! link that is faster than memory begins with as much in the machine as the migration will need, touched before the
//! source's guest is built and given back shortly before the migration: what has been freed last is handed out first.

use anyhow::{Context, Result};
use memmap2::{Advice, MmapMut};

use crate::guests::GuestImage;
use crate::page::DeltaCache;
use crate::units::{ByteCount, PAGE_SIZE};

/// Memory that was touched and is held until it is dropped: whoever asks the kernel next gets it then.
#[derive(Debug)]
pub(super) struct Ballast {
    #[cfg_attr(not(test), expect(dead_code, reason = "to be held"))]
    memory: MmapMut,
}

impl Ballast {
    /// Touches as much as a guest of this `image` and with so much `memory` will take.
    ///
    /// # Errors
    /// When the machine does not have it.
    pub(super) fn for_guest(image: &GuestImage, memory: ByteCount) -> Result<Self> {
        let pages = ByteCount(image.contents() * PAGE_SIZE as u64);
        let copies = DeltaCache::Auto.for_guest(memory).min(pages);
        Self::of_size(ByteCount(pages.0 + copies.0 + BESIDE.0))
    }

    fn of_size(bytes: ByteCount) -> Result<Self> {
        let length = usize::try_from(bytes.0)?;
        let mut memory = MmapMut::map_anon(length).with_context(|| format!("no {length} bytes to hold for the destination"))?;
        // By whole huge pages where there are any, as these are what a host takes back; a kernel without them has none.
        let _ = memory.advise(Advice::HugePage);
        memory.iter_mut().step_by(PAGE_SIZE).for_each(|byte| *byte = 1);
        Ok(Self { memory })
    }
}

/// What both ends need beside the guest's pages at the destination, and copies of them at the source to make differences
/// from: page tables and buffers.
const BESIDE: ByteCount = ByteCount(128 << 20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pagemap::Pagemap;

    #[test]
    fn every_page_of_it_is_there() {
        let image = |keys: &str| GuestImage::new(&format!("kvm:memory=64MiB,{keys}").parse().unwrap()).unwrap();
        let length = |keys: &str| Ballast::for_guest(&image(keys), ByteCount(64 << 20)).unwrap().memory.len() >> 20;
        assert_eq!((length("fill=32MiB,working-set=1MiB"), length("fill=0,working-set=32MiB")), (166, 166));
        let ballast = Ballast::of_size(ByteCount(137 << 20)).unwrap();
        let start = ballast.memory.as_ptr() as usize;
        let mut present = 0;
        let range = start..start + ballast.memory.len();
        Pagemap::open().unwrap().present_runs(range, &mut |run| present += run.len()).unwrap();
        assert_eq!(present, 137 << 20);
    }
}
