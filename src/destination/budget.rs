//! Memory promised to guests.
//!
//! A destination says yes only to what it can hold: within its own limit, and within what the host has left after
//! everything promised to guests that are still arriving. A promise is given back when its guest is gone.
//!
//! What the host has left has shrunk already by what has arrived of such a guest, so only the rest of its promise counts
//! there. How much that is is not kept by those who place pages, but asked of the kernel, and only when without it the
//! answer would be no: it knows what was populated for nothing, given back, or written by the guest itself. It is asked of
//! each guest once a second at most, whatever peers do. What has arrived since then counts twice, and at worst a guest is
//! refused that would just have fit.
//!
//! Huge pages of the host's pool are no part of what it has left otherwise, and are set aside by the kernel as soon as the
//! guest's memory is mapped.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::admission::Refusal;
use crate::memory::{Backing, GuestMemory, MemoryLayout};
use crate::sync::{Arc as Counted, Mutex};
use crate::sys::{cgroup, huge, meminfo};
use crate::units::ByteCount;
use crate::wire::RefuseReason;

/// What may be promised, and what has been.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    limit: Option<ByteCount>,
    promises: Counted<Mutex<Promises>>,
    /// Held by whoever asks the kernel: others wait for what it says.
    looking: Counted<Mutex<()>>,
    /// Held by whoever maps huge pages: the kernel counts them off the pool before the promise of them is.
    mapping: Counted<Mutex<()>>,
}

/// Memory set aside for one guest; given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    number: u64,
    promises: Counted<Mutex<Promises>>,
}

#[derive(Debug, Default)]
struct Promises {
    /// As many as there have been.
    numbered: u64,
    kept: HashMap<u64, Promise>,
}

#[derive(Debug)]
struct Promise {
    need: Need,
    /// Of `need.small`, as of when it was asked last.
    resident: u64,
    asked: Option<Instant>,
    /// Once there is any, and while none of it is being given back.
    memory: Weak<GuestMemory>,
    /// How many times that has begun: what was asked before it counts no more.
    given_back: u64,
}

/// What a guest needs, in bytes.
#[derive(Clone, Copy, Debug)]
struct Need {
    all: u64,
    /// Of that, in small pages, ...
    small: u64,
    /// ... and in pages of the pool, whole ones.
    pool: u64,
}

/// What there is, in bytes; `None` where that is not known, or not bounded.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    host: Option<ByteCount>,
    /// What the control groups of this process leave.
    groups: Option<ByteCount>,
    pool: Option<ByteCount>,
}

impl Left {
    fn now() -> Self {
        Self { host: meminfo::available(), groups: cgroup::left(), pool: huge::left_in_pool() }
    }
}

impl Need {
    fn of(layout: &MemoryLayout, backing: Backing) -> Self {
        let all = layout.bytes().0;
        match backing {
            Backing::Anonymous | Backing::Memfd => Self { all, small: all, pool: 0 },
            Backing::HugeTlb => {
                let whole = layout.regions().iter().map(|region| region.pages.bytes().0.next_multiple_of(huge::POOL_PAGE_BYTES));
                Self { all, small: 0, pool: whole.sum() }
            }
        }
    }
}

impl Promise {
    /// What is still to be taken from the host.
    fn outstanding(&self) -> u64 {
        self.need.small.saturating_sub(self.resident)
    }
}

impl Budget {
    /// At most `limit` for all guests together; `None` leaves it to the host.
    pub(super) fn new(limit: Option<ByteCount>) -> Self {
        Self { limit, promises: Counted::default(), looking: Counted::default(), mapping: Counted::default() }
    }

    /// To be held from before [`Budget::reserve`] until the memory is mapped: one guest of huge pages at a time.
    pub(super) fn mapping(&self, backing: Backing) -> Option<impl Drop + '_> {
        (backing == Backing::HugeTlb).then(|| self.mapping.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets aside what a guest of `layout` needs, whose memory will be made of `backing`.
    pub(super) fn reserve(&self, layout: &MemoryLayout, backing: Backing) -> Result<Reservation, Refusal> {
        let need = Need::of(layout, backing);
        self.reserve_from(need, Left::now).or_else(|refusal| {
            if need.small == 0 {
                return Err(refusal);
            }
            self.look(Instant::now());
            self.reserve_from(need, Left::now)
        })
    }

    fn reserve_from(&self, need: Need, left: impl FnOnce() -> Left) -> Result<Reservation, Refusal> {
        let mut promises = lock(&self.promises);
        // Read under the lock, so after anything that is known to have arrived did: nothing is there twice.
        let left = left();
        let sum = |of: fn(&Promise) -> u64| promises.kept.values().map(of).sum::<u64>();
        let (all, small, pool) = (sum(|promise| promise.need.all), sum(Promise::outstanding), sum(|promise| promise.need.pool));
        for (needs, of, promised, whose) in [
            (need.all, self.limit, all, "the limit of this receiver"),
            (need.small, left.host, small, "the memory of this host"),
            (need.small, left.groups, small, "the memory limit of this receiver's control group"),
            (need.pool, left.pool, pool, "this host's pool of huge pages"),
        ] {
            let Some(of) = of else { continue };
            // What was promised has not been taken yet, so it still shows as left: count it off.
            let rest = of.0.saturating_sub(promised);
            if needs > rest {
                let (needs, rest, promised) = (ByteCount(needs), ByteCount(rest), ByteCount(promised));
                let detail = format!("the guest needs {needs}, {whose} leaves {rest} ({promised} promised to others)");
                return Err(Refusal::new(RefuseReason::Memory, detail));
            }
        }
        let number = promises.numbered;
        promises.numbered += 1;
        promises.kept.insert(number, Promise { need, resident: 0, asked: None, memory: Weak::new(), given_back: 0 });
        Ok(Reservation { number, promises: Counted::clone(&self.promises) })
    }

    /// Asks the kernel how much has been taken of what was promised.
    fn look(&self, now: Instant) {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |promise: &Promise| promise.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= LOOK_EVERY);
        let due: Vec<_> = {
            let promises = lock(&self.promises);
            let due = promises.kept.iter().filter(|(_, promise)| is_due(promise));
            due.map(|(number, promise)| (*number, promise.given_back, Weak::clone(&promise.memory))).collect()
        };
        for (number, given_back, memory) in due {
            let Some(memory) = memory.upgrade() else { continue };
            // Where it cannot be known, nothing has been.
            let resident = memory.resident().map_or(0, |resident| resident.0);
            drop(memory);
            if let Some(promise) = lock(&self.promises).kept.get_mut(&number).filter(|promise| promise.given_back == given_back) {
                (promise.resident, promise.asked) = (resident, Some(now));
            }
        }
    }
}

impl Reservation {
    /// This is what it was made for.
    pub(super) fn is_for(&self, memory: &Arc<GuestMemory>) {
        self.change(|promise| {
            let small = memory.regions().iter().filter(|region| region.backing() != Backing::HugeTlb);
            promise.need.small = small.map(|region| region.spec().pages.bytes().0).sum();
            // Mapped by now.
            promise.need.pool = 0;
            promise.memory = Arc::downgrade(memory);
        });
    }

    /// Pages of the guest are about to be given back to the host, and are to come again. All of it counts as promised until
    /// that is [done](Reservation::has_shrunk), whoever asks meanwhile.
    pub(super) fn shrinks(&self) {
        self.change(|promise| {
            promise.given_back += 1;
            (promise.resident, promise.memory) = (0, Weak::new());
        });
    }

    /// They have been given back.
    pub(super) fn has_shrunk(&self, memory: &Arc<GuestMemory>) {
        self.change(|promise| (promise.asked, promise.memory) = (None, Arc::downgrade(memory)));
    }

    fn change(&self, change: impl FnOnce(&mut Promise)) {
        change(lock(&self.promises).kept.get_mut(&self.number).expect("kept as long as this lives"));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.promises).kept.remove(&self.number);
    }
}

fn lock(promises: &Mutex<Promises>) -> impl std::ops::DerefMut<Target = Promises> {
    promises.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often the kernel is asked about a guest, which takes a few milliseconds for each of its GiB.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::units::{ChunkIndex, PAGE_SIZE, PageCount};

    const SMALL: fn(u64) -> Need = |all| Need { all, small: all, pool: 0 };
    const ENOUGH: Left = Left { host: Some(ByteCount(1 << 40)), groups: None, pool: None };

    fn refused(budget: &Budget, need: Need, left: Left) -> String {
        let refusal = budget.reserve_from(need, || left).unwrap_err();
        assert_eq!(refusal.reason, RefuseReason::Memory);
        refusal.detail
    }

    #[test]
    fn promises_add_up_and_come_back() {
        let budget = Budget::new(Some(ByteCount(100)));
        let first = budget.reserve_from(SMALL(60), || ENOUGH).unwrap();
        refused(&budget, SMALL(60), ENOUGH);
        drop(first);
        let _second = budget.reserve_from(SMALL(60), || ENOUGH).unwrap();
    }

    #[test]
    fn the_host_must_have_it_too() {
        let budget = Budget::new(None);
        let left = Left { host: Some(ByteCount(100)), ..Left::default() };
        let _first = budget.reserve_from(SMALL(60), || left).unwrap();
        let detail = refused(&budget, SMALL(60), left);
        assert_eq!(detail, "the guest needs 60 B, the memory of this host leaves 40 B (60 B promised to others)");
    }

    #[test]
    fn a_control_group_may_leave_less_than_the_host() {
        let budget = Budget::new(None);
        let left = Left { groups: Some(ByteCount(100)), ..ENOUGH };
        let _first = budget.reserve_from(SMALL(60), || left).unwrap();
        let detail = refused(&budget, SMALL(60), left);
        assert_eq!(detail, "the guest needs 60 B, the memory limit of this receiver's control group leaves 40 B (60 B promised to others)");
    }

    #[test]
    fn what_has_arrived_does_not_count_twice() {
        let budget = Budget::new(None);
        let layout = MemoryLayout::flat(PageCount(512)).unwrap();
        // Not private memory, of which a host may make a huge page by itself.
        let need = Need::of(&layout, Backing::Memfd);
        let host = |bytes: u64| Left { host: Some(ByteCount(bytes)), ..Left::default() };
        let first = budget.reserve_from(need, || host(2 * need.all)).unwrap();
        let memory = Arc::new(GuestMemory::allocate(layout, Backing::Memfd).unwrap());
        first.is_for(&memory);
        for chunk in (0..4).map(ChunkIndex) {
            (0..64).for_each(|bit| memory.chunk(chunk).copy_in(bit, &[7; PAGE_SIZE]));
        }
        // Half of it has come, and the host has so much less.
        let left = host(2 * need.all - need.all / 2);
        refused(&budget, need, left);
        let now = Instant::now();
        budget.look(now);
        let second = budget.reserve_from(need, || left).unwrap();
        refused(&budget, SMALL(1), left);
        drop(second);
        // In post-copy it goes again before it comes.
        first.shrinks();
        refused(&budget, need, left);
        budget.look(now + LOOK_EVERY);
        refused(&budget, need, left);
        first.has_shrunk(&memory);
        budget.look(now + LOOK_EVERY);
        budget.reserve_from(need, || left).unwrap();
    }

    #[test]
    fn the_kernel_is_asked_about_a_guest_only_once_in_a_while() {
        let budget = Budget::new(None);
        let layout = MemoryLayout::flat(PageCount(64)).unwrap();
        let reservation = budget.reserve_from(Need::of(&layout, Backing::Memfd), || ENOUGH).unwrap();
        let memory = Arc::new(GuestMemory::allocate(layout, Backing::Memfd).unwrap());
        reservation.is_for(&memory);
        let resident = || lock(&budget.promises).kept.values().map(|promise| promise.resident).sum::<u64>();
        let now = Instant::now();
        budget.look(now);
        memory.chunk(ChunkIndex(0)).copy_in(5, &[7; PAGE_SIZE]);
        budget.look(now + LOOK_EVERY / 2);
        assert_eq!(resident(), 0);
        budget.look(now + LOOK_EVERY);
        assert_eq!(resident(), PAGE_SIZE as u64);
    }

    #[test]
    fn huge_pages_come_from_their_pool() {
        let budget = Budget::new(None);
        let layout = MemoryLayout::flat(PageCount(513)).unwrap();
        let need = Need::of(&layout, Backing::HugeTlb);
        let left = Left { host: Some(ByteCount(0)), groups: Some(ByteCount(0)), pool: Some(ByteCount(6 << 20)) };
        let first = budget.reserve_from(need, || left).unwrap();
        let detail = refused(&budget, need, left);
        assert_eq!(detail, "the guest needs 4 MiB, this host's pool of huge pages leaves 2 MiB (4 MiB promised to others)");
        // Once it is mapped, which counts in the pool itself: here as if it had been made of small pages.
        first.is_for(&Arc::new(GuestMemory::allocate(layout, Backing::Anonymous).unwrap()));
        budget.reserve_from(need, || left).unwrap();
        let small = Left { host: Some(ByteCount(513 * 4096)), ..left };
        assert!(refused(&budget, SMALL(1), small).contains("the memory of this host leaves 0 B"), "charged to what it is made of");
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;

    #[test]
    fn two_guests_are_not_promised_the_same_memory() {
        loom::model(|| {
            let budget = Budget::new(Some(ByteCount(100)));
            let need = Need { all: 60, small: 60, pool: 0 };
            let reserve = move |budget: &Budget| budget.reserve_from(need, Left::default).ok();
            let other = thread::spawn({
                let budget = budget.clone();
                move || reserve(&budget)
            });
            let mine = reserve(&budget);
            let theirs = other.join().unwrap();
            assert!(mine.is_some() != theirs.is_some());
            drop((mine, theirs));
            assert!(reserve(&budget).is_some(), "a promise did not come back");
        });
    }
}
