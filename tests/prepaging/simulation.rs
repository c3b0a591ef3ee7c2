//! A guest, a link and a push in virtual time: how often does the guest wait, and for how long?
//!
//! The link is one queue: the push keeps it filled for [`AHEAD`] only, and what is urgent goes behind that. The guest's
//! threads touch one page after the other, each at its own rate; one that touches a missing page waits until it is there,
//! and does not make up for it. A request takes half a round trip to the source and its answer as long to come back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use pageferry::bitmap::PageBitmap;
use pageferry::memory::MemoryLayout;
use pageferry::source::{Granule, Prepaging, PushOrder, Remaining};
use pageferry::units::{ChunkIndex, PAGE_SIZE, PageCount, PageIndex};

/// Where a guest thread goes, as the test guests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Page after page, round and round.
    Sweep,
    /// Nine in ten in the first tenth, the others in the rest, at random.
    HotCold,
    /// Anywhere.
    Random,
}

/// What happens where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Bits a second.
    pub(crate) link: u64,
    /// There and back, nanoseconds.
    pub(crate) round_trip: u64,
    /// Pages that are missing when the guest starts.
    pub(crate) missing: u64,
    /// Of these, where the guest is at work: the first, and how many.
    pub(crate) working_set: (u64, u64),
    /// In a sweep each has its own part of the working set.
    pub(crate) threads: u64,
    /// Pages that all threads together touch in a second.
    pub(crate) rate: u64,
}

impl Scenario {
    /// Whether all that is missing is in use, and the guest faster than the link.
    pub(crate) fn is_starved(&self) -> bool {
        self.working_set.1 == self.missing && self.rate * PAGE_SIZE as u64 * 8 > self.link
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Times that a thread had to wait.
    pub(crate) faults: u64,
    /// How long all threads waited in all, nanoseconds.
    pub(crate) lost: u64,
    /// When the last page arrived, nanoseconds; none when not all had within [`LIMIT`].
    pub(crate) finished: Option<u64>,
}

/// Runs `scenario` from the moment the guest starts until everything is there.
pub(crate) fn run(scenario: &Scenario, pattern: Pattern, prepaging: Prepaging) -> Outcome {
    let mut world = World::new(*scenario, pattern, prepaging);
    while let Some(Reverse((now, event))) = world.events.pop() {
        if now > LIMIT {
            break;
        }
        world.happen(now, event);
        if world.remaining.left() == PageCount(0) {
            break;
        }
    }
    world.conclude()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A thread touches its next page.
    Touch { thread: usize },
    /// A request is at the source.
    Asked { page: u64 },
    /// The link has room for the push.
    Push,
}

struct World {
    scenario: Scenario,
    pattern: Pattern,
    remaining: Remaining,
    order: PushOrder,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    /// Until when the link is taken.
    link_free: u64,
    /// When each page is there, once that is known.
    arrives: Vec<Option<u64>>,
    /// Threads that wait for a page, and since when.
    waiting: BTreeMap<u64, Vec<(usize, u64)>>,
    /// Pages that each thread has touched.
    touched: Vec<u64>,
    faults: u64,
    lost: u64,
}

impl World {
    fn new(scenario: Scenario, pattern: Pattern, prepaging: Prepaging) -> Self {
        let layout = MemoryLayout::flat(PageCount(scenario.missing)).expect("a plausible guest");
        let mut missing = PageBitmap::new(layout.chunks());
        missing.insert_run(PageIndex(0), PageCount(scenario.missing));
        let threads = index(scenario.threads);
        let mut events: BinaryHeap<_> = (0..threads).map(|thread| Reverse((0, Event::Touch { thread }))).collect();
        events.push(Reverse((0, Event::Push)));
        Self {
            scenario,
            pattern,
            remaining: Remaining::new(&missing, &layout, Granule::Page),
            order: PushOrder::new(prepaging, Vec::new()),
            events,
            link_free: 0,
            arrives: vec![None; index(scenario.missing)],
            waiting: BTreeMap::new(),
            touched: vec![0; threads],
            faults: 0,
            lost: 0,
        }
    }

    fn happen(&mut self, now: u64, event: Event) {
        match event {
            Event::Touch { thread } => self.touch(now, thread),
            Event::Asked { page } => self.answer(now, page),
            Event::Push => self.push(now),
        }
    }

    fn touch(&mut self, now: u64, thread: usize) {
        let page = self.page_of(thread);
        match self.arrives[index(page)] {
            Some(at) if at <= now => {
                self.touched[thread] += 1;
                self.events.push(Reverse((now + 1_000_000_000 * self.scenario.threads / self.scenario.rate, Event::Touch { thread })));
            }
            known => {
                self.faults += 1;
                let waiting = self.waiting.entry(page).or_default();
                if waiting.is_empty() {
                    self.events.push(Reverse((now + REQUEST + self.scenario.round_trip / 2, Event::Asked { page })));
                }
                waiting.push((thread, now));
                if let Some(at) = known {
                    self.wake(page, at);
                }
            }
        }
    }

    /// The page that `thread` touches next.
    fn page_of(&self, thread: usize) -> u64 {
        let (first, pages) = self.scenario.working_set;
        let nth = self.touched[thread];
        let (thread, part) = (thread as u64, pages / self.scenario.threads);
        let x = mix(thread, nth + 1);
        let within = match self.pattern {
            // From somewhere in the middle, as a guest that was interrupted.
            Pattern::Sweep => thread * part + (nth + part / 3) % part,
            Pattern::Random => x % pages,
            Pattern::HotCold if x >> 32 & 0xffff < 58_982 => x % (pages / 10),
            Pattern::HotCold => pages / 10 + x % (pages - pages / 10),
        };
        first + within
    }

    fn answer(&mut self, now: u64, page: u64) {
        let page = PageIndex(page);
        self.send(now, page.chunk(), 1 << page.bit());
        let behind = self.order.fault(page);
        let run = ((1u64 << behind) - 1).checked_shl(page.bit() + 1).unwrap_or(0);
        self.send(now, page.chunk(), run);
    }

    fn push(&mut self, now: u64) {
        if self.link_free <= now + AHEAD {
            match self.order.next(&self.remaining, PIECE) {
                Some(piece) => self.send(now, piece.chunk, piece.mask),
                None => return,
            }
        }
        self.events.push(Reverse((self.link_free.saturating_sub(AHEAD).max(now + 1), Event::Push)));
    }

    /// Puts what is left of these pages on the link.
    fn send(&mut self, now: u64, chunk: ChunkIndex, mask: u64) {
        let claim = self.remaining.claim(chunk, mask);
        for (chunk, word) in claim.frames() {
            let bits = (u64::from(word.count_ones()) * PAGE_SIZE as u64 + FRAME_BYTES) * 8;
            self.link_free = self.link_free.max(now) + bits * 1_000_000_000 / self.scenario.link;
            let at = self.link_free + self.scenario.round_trip / 2 + INSTALL;
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                let page = chunk.page(bit).0;
                self.arrives[index(page)] = Some(at);
                self.wake(page, at);
            }
        }
    }

    /// Whoever waits for `page` goes on at `at`.
    fn wake(&mut self, page: u64, at: u64) {
        for (thread, since) in self.waiting.get_mut(&page).map(std::mem::take).unwrap_or_default() {
            self.lost += at - since;
            self.events.push(Reverse((at, Event::Touch { thread })));
        }
    }

    fn conclude(&self) -> Outcome {
        Outcome {
            faults: self.faults,
            lost: self.lost,
            finished: self.arrives.iter().copied().collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()),
        }
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page).expect("a plausible guest")
}

/// Number `n` of a random sequence (`SplitMix64`).
fn mix(seed: u64, n: u64) -> u64 {
    let x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Pages in one piece of the push.
const PIECE: u32 = 16;
/// For how long the push fills the link in advance, nanoseconds.
const AHEAD: u64 = 500_000;
/// From the touch of a page until its request is on the link, nanoseconds.
const REQUEST: u64 = 20_000;
/// From the arrival of a page until the guest runs, nanoseconds.
const INSTALL: u64 = 15_000;
/// Bytes of a frame beside its pages.
const FRAME_BYTES: u64 = 104;
/// Virtual time at most, nanoseconds.
pub(crate) const LIMIT: u64 = 60_000_000_000;

/// The patterns to run.
pub(crate) const PATTERNS: [Pattern; 3] = [Pattern::Sweep, Pattern::HotCold, Pattern::Random];

const MIB: u64 = (1 << 20) / PAGE_SIZE as u64;

/// What a guest may meet.
pub(crate) const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "at once, 1 Gbit/s",
        link: 1_000_000_000,
        round_trip: 200_000,
        missing: 128 * MIB,
        working_set: (64 * MIB, 16 * MIB),
        threads: 1,
        rate: 20_000,
    },
    Scenario {
        name: "at once, 1 Gbit/s, 4 threads",
        link: 1_000_000_000,
        round_trip: 200_000,
        missing: 128 * MIB,
        working_set: (64 * MIB, 32 * MIB),
        threads: 4,
        rate: 20_000,
    },
    Scenario {
        name: "at once, 10 Gbit/s",
        link: 10_000_000_000,
        round_trip: 100_000,
        missing: 1024 * MIB,
        working_set: (512 * MIB, 64 * MIB),
        threads: 4,
        rate: 100_000,
    },
    Scenario {
        name: "after rounds, 1 Gbit/s, a busy guest",
        link: 1_000_000_000,
        round_trip: 200_000,
        missing: 64 * MIB,
        working_set: (0, 64 * MIB),
        threads: 2,
        rate: 100_000,
    },
    Scenario {
        name: "at once, 100 Mbit/s, 10 ms away",
        link: 100_000_000,
        round_trip: 10_000_000,
        missing: 64 * MIB,
        working_set: (32 * MIB, 16 * MIB),
        threads: 1,
        rate: 20_000,
    },
];
