//! The page a test guest keeps its own state in.
//!
//! It lies in guest memory, so it travels with it. Both kinds of guest use the same page; the program of the KVM guest
//! knows it by the offsets below ([`Field`]).
//!
//! | offset | word | who writes it |
//! |---|---|---|
//! | 0 | `Magic`: marks the page as this, version 1 | the VMM, once |
//! | 8 | `Writes`: writes done, set after the words of the write | the guest |
//! | 16 | `LastWrite`: guest time of the last write | the guest |
//! | 24 | `LongestGap`: longest time between two writes so far | the guest |
//! | 32 | `Due`: guest time before which the next write must not happen | the guest |
//! | 40 | `ClockGeneration`: changes whenever scale or offset do | the VMM at arrival |
//! | 48 | `ClockScale`: nanoseconds for 2^32 ticks of the time stamp counter (KVM), 0 (workload) | the VMM at arrival |
//! | 56 | `ClockOffset`: added to the scaled local clock | the VMM at arrival |
//! | 64 | `Period`: from one write to the next, 0 for unpaced | the VMM, once |
//! | 72 | `Backlog`: how far behind its pace the guest may be and still catch up | the VMM, once |
//! | 80 | `Pattern`: position in [`Pattern::ALL`] | the VMM, once |
//! | 88 | `Seed` | the VMM, once |
//! | 96 | `WorkingSet`: pages | the VMM, once |
//! | 104 | `HotPages`: the first of them that the hot share goes to | the VMM, once |
//! | 112 | `HotShare`: of 65536 random writes | the VMM, once |
//!
//! Words are 64 bits, times are nanoseconds; the rest of the page is zeros.
//!
//! # Time across hosts
//! Guest time is the local monotonic clock (KVM: the scaled time stamp counter) plus an offset. At the destination the
//! offset is set so that guest time went on by the real time (`CLOCK_REALTIME`, so the hosts' clocks should agree) that
//! passed since the state was saved. The longest gap therefore holds the downtime as the guest felt it.

use super::pages::{self, Page};
use super::pattern::{Pattern, Writes};
use super::spec::GuestSpec;
use crate::memory::GuestMemory;
use crate::units::{PAGE_WORDS, PageIndex};

/// The guest page number of the control page.
pub(super) const CONTROL_PAGE: u64 = 1;
/// The same as an index.
pub(super) const PAGE: PageIndex = PageIndex(CONTROL_PAGE);
/// How far behind a guest may be and still catch up, nanoseconds.
pub(super) const BACKLOG_NS: u64 = 10_000_000;

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"ferrypg1");

/// The words of the page, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Field {
    Magic,
    Writes,
    LastWrite,
    LongestGap,
    Due,
    ClockGeneration,
    ClockScale,
    ClockOffset,
    Period,
    Backlog,
    Pattern,
    Seed,
    WorkingSet,
    HotPages,
    HotShare,
}

impl Field {
    /// Those that change while the guest lives. All others stay as they were built.
    pub(super) const CHANGING: [Self; 7] =
        [Self::Writes, Self::LastWrite, Self::LongestGap, Self::Due, Self::ClockGeneration, Self::ClockScale, Self::ClockOffset];

    /// Where in the page, in bytes.
    #[cfg(all(test, feature = "kvm", target_arch = "x86_64"))]
    pub(super) fn offset(self) -> usize {
        self as usize * 8
    }
}

/// The control page in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Control<'m> {
    memory: &'m GuestMemory,
}

impl<'m> Control<'m> {
    pub(super) fn new(memory: &'m GuestMemory) -> Self {
        Self { memory }
    }

    #[inline]
    pub(super) fn load(self, field: Field) -> u64 {
        self.memory.chunk(PAGE.chunk()).load_word(PAGE.bit(), field as usize)
    }

    #[inline]
    pub(super) fn store(self, field: Field, value: u64) {
        self.memory.chunk(PAGE.chunk()).store_word(PAGE.bit(), field as usize, value);
    }

    /// Writes the page as it is before the guest's first write.
    pub(super) fn build(self, spec: &GuestSpec) {
        pages::store(self.memory, CONTROL_PAGE, &initial(spec));
    }

    /// Sets the clock of a guest that has arrived: `local_ns` is now guest time `guest_ns`.
    pub(super) fn rebase_clock(self, scale: u64, local_ns: u64, guest_ns: u64) {
        self.store(Field::ClockScale, scale);
        self.store(Field::ClockOffset, guest_ns.wrapping_sub(local_ns));
        self.store(Field::ClockGeneration, self.load(Field::ClockGeneration).wrapping_add(1));
    }
}

/// The page before the first write: what never changes of it can be compared with this.
pub(super) fn initial(spec: &GuestSpec) -> Page {
    let writes = Writes::new(spec);
    let pattern = Pattern::ALL.iter().position(|pattern| *pattern == spec.pattern()).expect("ALL has all patterns");
    let mut page = [0; PAGE_WORDS];
    for (field, value) in [
        (Field::Magic, MAGIC),
        (Field::Period, spec.rate().period_ns()),
        (Field::Backlog, BACKLOG_NS),
        (Field::Pattern, pattern as u64),
        (Field::Seed, spec.seed()),
        (Field::WorkingSet, writes.pages),
        (Field::HotPages, writes.hot_pages),
        (Field::HotShare, writes.hot_share),
    ] {
        page[field as usize] = value;
    }
    page
}
