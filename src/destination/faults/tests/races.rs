//! Everything at once, for a while.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

/// What the one that discards knows of a granule of its own.
#[derive(Clone, Copy)]
enum Known {
    AsSent,
    Holds(u64),
}

/// One that discards, writes and looks, at pages that nobody else writes to: what it finds must be what it left there.
fn discard_and_write(setup: &Setup, stop: &AtomicBool, backing: Backing, seed: u64) -> u64 {
    let mut numbers = Numbers(seed);
    let step = if backing == Backing::HugeTlb { 512 } else { 1 };
    let pages: Vec<PageIndex> = setup.pages().filter(|page| page.0 % step == 0 && page.0 < 1024 && page.0 / step % 2 == 0).collect();
    let mut known = vec![Known::AsSent; pages.len()];
    let mut discards = 0;
    while !stop.load(Ordering::Relaxed) {
        let at = usize::try_from(numbers.below(pages.len() as u64)).unwrap();
        let page = pages[at];
        match numbers.below(3) {
            0 => {
                setup.memory.discard(page, PageCount(step)).unwrap();
                discards += 1;
                known[at] = Known::Holds(0);
            }
            1 => {
                let value = numbers.below(1 << 30) | 1;
                setup.memory.chunk(page.chunk()).store_word(page.bit(), 7, value);
                known[at] = Known::Holds(value);
            }
            _ => {}
        }
        let want = match known[at] {
            Known::AsSent => setup.expected(page),
            Known::Holds(value) => value,
        };
        assert_eq!(setup.load(page), want, "{page:?} of {backing}");
    }
    // All has come by now.
    for (page, known) in pages.iter().zip(known) {
        if let Known::Holds(value) = known {
            assert_eq!(setup.load(*page), value, "{page:?} of {backing}");
        }
    }
    discards
}

/// One that only looks, at pages that nobody writes to.
fn read(setup: &Setup, stop: &AtomicBool, backing: Backing, seed: u64) {
    let mut numbers = Numbers(seed);
    let step = if backing == Backing::HugeTlb { 512 } else { 1 };
    let pages: Vec<PageIndex> = setup.pages().filter(|page| page.0 >= 1024 || page.0 / step % 2 == 1).collect();
    while !stop.load(Ordering::Relaxed) {
        let page = pages[usize::try_from(numbers.below(pages.len() as u64)).unwrap()];
        assert_eq!(setup.load(page), setup.expected(page), "{page:?} of {backing}");
    }
}

#[test]
fn faults_arrivals_and_discards_do_not_get_in_each_others_way() {
    let (mut discards, mut dropped, mut faults) = (0, 0, 0);
    each_backing(|backing| {
        let deadline = Instant::now() + Duration::from_millis(1500);
        let mut seed = 1;
        while Instant::now() < deadline {
            seed += 100;
            let setup = Arc::new(Setup::new(backing, |page| page.0 % 11 != 3));
            let stop = Arc::new(AtomicBool::new(false));
            let (there, same) = (Arc::clone(&setup), Arc::clone(&stop));
            let discarder = start(move || discard_and_write(&there, &same, backing, seed));
            let readers = [1, 2].map(|reader| {
                let (there, same) = (Arc::clone(&setup), Arc::clone(&stop));
                start(move || read(&there, &same, backing, seed + reader))
            });
            let lane = setup.connect();
            // Two bulk lanes, unhurried, and an urgent lane that breaks in the middle.
            let pushed = Arc::new(AtomicU64::new(0));
            let lanes = [0, 1].map(|number| {
                let (setup, pushed) = (Arc::clone(&setup), Arc::clone(&pushed));
                start(move || {
                    let mut installer = setup.incomplete.installer(Lane::Bulk(number));
                    let mut numbers = Numbers(seed + 50 + u64::from(number));
                    loop {
                        let chunk = ChunkIndex(u32::try_from(numbers.below(u64::from(setup.missing.chunks()))).unwrap());
                        let mut claimed = setup.source.claim(chunk, u64::MAX);
                        if claimed.is_empty() {
                            claimed = setup.source.claim_any();
                        }
                        if claimed.is_empty() {
                            return;
                        }
                        for (chunk, mask) in claimed {
                            setup.source.send(&mut installer, chunk, mask).unwrap();
                        }
                        pushed.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                })
            });
            until("some was pushed", || pushed.load(Ordering::Relaxed) > 5 || setup.incomplete.outstanding().0 == 0);
            lane.end();
            setup.incomplete.disconnect();
            let lane = setup.connect();
            lanes.into_iter().for_each(Waiter::end);
            until("all has come", || setup.incomplete.outstanding() == PageCount(0));
            std::thread::sleep(Duration::from_millis(2));
            stop.store(true, Ordering::Relaxed);
            discards += discarder.end();
            readers.into_iter().for_each(Waiter::end);
            let stats = setup.incomplete.finish();
            lane.end();
            assert_eq!(stats.urgent + stats.bulk, setup.missing.count(), "each page came once");
            (dropped, faults) = (dropped + stats.dropped.0, faults + stats.faults);
        }
    });
    if discards > 0 {
        eprintln!("{discards} discards, {dropped} pages came too late, {faults} faults");
        assert!(dropped > 0 && faults > 0);
    }
}
