//! Writers and harvests at once, with peeks in between: no write may be lost.
//!
//! Writers count up words of random pages. What a peek shows, the next one and the harvest must show too. Each harvest is followed by copying what it reported to a shadow; at the end
//! the shadow must equal the memory. The writers take a breath after each write: a page must come round so seldom that
//! one lost write is not healed by the next, and a harvest must find few pages written, or none could slip through
//! between reading and re-arming.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::mman::MmapAdvise;
use pageferry::bitmap::PageBitmap;
use pageferry::dirty::Tracked;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout};
use pageferry::units::{ChunkIndex, PAGE_SIZE, PageCount, PageIndex};

use crate::subject::{Subject, Writer, advise, each_tracker};

const PAGES: u64 = 16384;
const LASTING: Duration = Duration::from_secs(2);
/// Harvests to a race at least: on an emulated machine they are slow.
const HARVESTS: u32 = 20;
/// Writes to a turn: how long a pause has to wait.
const TURN: u32 = 64;
/// Spins after a write: some microseconds.
const BREATH: u32 = 300;

#[test]
fn no_write_is_lost_in_anonymous_memory() {
    each_tracker(&MemoryLayout::flat(PageCount(PAGES)).unwrap(), Backing::Anonymous, |subject| race(subject, MmapAdvise::MADV_NOHUGEPAGE));
}

#[test]
fn no_write_is_lost_in_transparent_huge_pages() {
    each_tracker(&MemoryLayout::flat(PageCount(PAGES)).unwrap(), Backing::Anonymous, |subject| race(subject, MmapAdvise::MADV_HUGEPAGE));
}

#[test]
fn no_write_is_lost_in_shared_memory() {
    each_tracker(&MemoryLayout::flat(PageCount(PAGES)).unwrap(), Backing::Memfd, |subject| race(subject, MmapAdvise::MADV_NORMAL));
}

fn race(subject: &mut Subject, advice: MmapAdvise) {
    let memory = Arc::clone(&subject.memory);
    let region = &memory.regions()[0];
    advise(region, advice);
    subject.start();
    let mut shadow = vec![0u8; region.len()];
    let harvests = match std::mem::replace(&mut subject.writer, Writer::Host) {
        #[cfg(feature = "kvm")]
        Writer::Guest(mut machine) => {
            let (start, stop) = (region.spec().start, machine.stopper());
            stop(false);
            thread::scope(|scope| {
                let _stop = AtEnd(|| stop(true));
                scope.spawn(move || machine.scatter(start, PageCount(PAGES)));
                rounds(subject, &RwLock::new(()), &mut shadow)
            })
        }
        writer => against_threads(subject, matches!(writer, Writer::Marking), &mut shadow),
    };
    take_to_shadow(subject, &mut shadow);
    let lost = (0..PAGES).filter(|&page| page_bytes(&subject.memory, PageIndex(page)) != *shadow_of(&mut shadow, page)).count();
    assert_eq!(lost, 0, "{subject}: pages lost in {harvests} harvests");
    subject.tracker.stop().unwrap();
}

/// Does something at the end of a scope, also when a check in it failed: the writers must stop for the scope to end.
struct AtEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// A writer to each core; a harvest that needs a pause holds their lock.
fn against_threads(subject: &mut Subject, marking: bool, shadow: &mut [u8]) -> u32 {
    let (stop, running) = (AtomicBool::new(false), RwLock::new(()));
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
        for number in 0..threads {
            let (stop, running) = (&stop, &running);
            let tracked = subject.tracked.clone();
            scope.spawn(move || {
                let mut random = number as u64 + 1;
                // Relaxed: only says when to end.
                while !stop.load(Ordering::Relaxed) {
                    let _turn = running.read().unwrap();
                    (0..TURN).for_each(|_| write_somewhere(&tracked, &mut random, number, marking));
                }
            });
        }
        rounds(subject, &running, shadow)
    })
}

fn write_somewhere(tracked: &Tracked, random: &mut u64, word: usize, marking: bool) {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let page = PageIndex((*random >> 33) % PAGES);
    let chunk = tracked.memory.chunk(page.chunk());
    chunk.store_word(page.bit(), word, chunk.load_word(page.bit(), word) + 1);
    if marking {
        tracked.marks.mark_pages(page, PageCount(1));
    }
    (0..BREATH).for_each(|_| std::hint::spin_loop());
}

fn rounds(subject: &mut Subject, running: &RwLock<()>, shadow: &mut [u8]) -> u32 {
    let (begin, mut harvests) = (Instant::now(), 0);
    while begin.elapsed() < LASTING || harvests < HARVESTS {
        // A peek pauses nobody. Every other time there is none, so that harvests also come in quick succession.
        let shown = (harvests % 2 == 1).then(|| (subject.peek(), subject.peek()));
        let paused = subject.tracker.needs_pause().then(|| running.write().unwrap());
        let reported = subject.harvest();
        drop(paused);
        if let Some((mut first, mut second)) = shown {
            first.subtract(&second);
            second.subtract(&reported);
            assert!(first.is_empty() && second.is_empty(), "{subject}: a peek took something");
        }
        copy(&subject.memory, &reported, shadow);
        harvests += 1;
    }
    harvests
}

fn take_to_shadow(subject: &mut Subject, shadow: &mut [u8]) {
    let reported = subject.harvest();
    copy(&subject.memory, &reported, shadow);
}

fn copy(memory: &GuestMemory, reported: &PageBitmap, shadow: &mut [u8]) {
    for (chunk, word) in reported.occupied() {
        for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
            memory.chunk(ChunkIndex(chunk.0)).copy_out(bit, shadow_of(shadow, chunk.page(bit).0));
        }
    }
}

fn shadow_of(shadow: &mut [u8], page: u64) -> &mut [u8; PAGE_SIZE] {
    &mut shadow.as_chunks_mut::<PAGE_SIZE>().0[usize::try_from(page).unwrap()]
}

fn page_bytes(memory: &GuestMemory, page: PageIndex) -> [u8; PAGE_SIZE] {
    let mut bytes = [0; PAGE_SIZE];
    memory.chunk(page.chunk()).copy_out(page.bit(), &mut bytes);
    bytes
}
