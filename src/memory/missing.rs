//! Guest memory of which pages are missing.

use std::io;
use std::ops::Range;

use super::{Backing, GuestMemory, Region};
use crate::sys::huge;
use crate::sys::missing_pages::{Kinds, MissingPages, PageKind};
use crate::units::HUGE_PAGE_SIZE;

impl GuestMemory {
    /// A descriptor for missing pages of memory of these kinds, with nothing registered on it.
    pub(crate) fn open_missing(&self) -> io::Result<MissingPages> {
        let any = |backing| self.regions().iter().any(|region| region.backing() == backing);
        MissingPages::open(Kinds { shared: any(Backing::Memfd), huge: any(Backing::HugeTlb) })
    }

    /// Registers all regions on `faults`.
    pub(crate) fn register_missing(&self, faults: &MissingPages) -> io::Result<()> {
        self.regions().iter().try_for_each(|region| {
            let kind = if region.backing() == Backing::HugeTlb { PageKind::Huge } else { PageKind::Small };
            // SAFETY: no reference to guest memory claims anything about its contents (see the module's head); the
            // mapping is the region's own.
            unsafe { faults.register(&region.mapping(), kind) }
        })
    }

    /// Has the host no longer put huge pages together out of this memory's pages: it fills those that are missing with
    /// zeros then. Not for memory from the reserve of huge pages.
    pub(crate) fn forbid_huge_pages(&self) {
        let small = self.regions().iter().filter(|region| region.backing() != Backing::HugeTlb);
        small.for_each(|region| region.advise_huge_pages(libc::MADV_NOHUGEPAGE));
    }

    /// Has the host do so again, as far as that is what it does by default.
    pub(crate) fn restore_huge_pages(&self) {
        let by_default = huge::by_default();
        for region in self.regions() {
            let wanted = match region.backing() {
                Backing::Anonymous => by_default.private,
                Backing::Memfd => by_default.shared,
                Backing::HugeTlb => false,
            };
            if wanted {
                region.advise_huge_pages(libc::MADV_HUGEPAGE);
            }
        }
    }
}

impl Region {
    fn advise_huge_pages(&self, advice: libc::c_int) {
        // SAFETY: the range is the region's own mapping, and advice about huge pages changes no contents.
        let result = unsafe { libc::madvise(self.host().as_ptr().cast(), self.len(), advice) };
        if result != 0 {
            // A kernel without huge pages does not know the advice, and does not need it.
            tracing::debug!(error = %io::Error::last_os_error(), "no advice about huge pages taken");
        }
    }

    /// Where it is mapped, huge pages whole.
    pub(crate) fn mapping(&self) -> Range<usize> {
        let start = self.host().as_ptr() as usize;
        let length = if self.backing() == Backing::HugeTlb { self.len().next_multiple_of(HUGE_PAGE_SIZE) } else { self.len() };
        start..start + length
    }
}
