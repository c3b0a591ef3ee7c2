//! The test guests: what they write, that their check finds every kind of damage, and that they move.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pageferry::bitmap::PageBitmap;
use pageferry::dirty::{self, Choice, DirtyError, Tracked, TrackerKind};
use pageferry::guest::RunShare;
use pageferry::guests::{CheckError, Content, GuestBuildError, GuestSpec, Rate, TestGuest, build_destination, build_source};
use pageferry::memory::{Backing, GuestMemory, PageSummary};
use pageferry::units::{GuestAddr, PAGE_SIZE, PAGE_WORDS, PageIndex};

const PATTERNS: [&str; 4] = ["sweep", "random", "rewrite", "hot-cold"];
/// What two clocks that were set to each other may differ by.
const SLACK: Duration = Duration::from_millis(1);
const KINDS: [&str; 2] = ["workload", "kvm"];
/// The first page of fill and working set.
const FIRST: u64 = 4096;

/// Guests that spin on all processors would only measure each other: the tests take turns.
fn my_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest that has not run yet; `None`, and a word about it, where this host cannot have it.
fn source(text: &str) -> Option<Box<dyn TestGuest>> {
    let spec: GuestSpec = text.parse().unwrap();
    match build_source(&spec, Backing::Anonymous) {
        Err(error @ GuestBuildError::NoKvm { .. }) => {
            println!("skipped: {error}");
            None
        }
        built => Some(built.unwrap()),
    }
}

/// Small guests of each kind and pattern that this host can have, with the text that describes them.
fn each_guest(keys: &str) -> impl Iterator<Item = (String, Box<dyn TestGuest>)> {
    let texts = KINDS.iter().flat_map(move |kind| PATTERNS.iter().map(move |pattern| (kind, pattern)));
    let keys = keys.to_owned();
    texts.filter_map(move |(kind, pattern)| {
        let text = format!("{kind}:memory=24MiB,fill=2MiB,pattern={pattern},{keys}");
        let guest = source(&text)?;
        Some((text, guest))
    })
}

/// Runs `guest` for `time`, and on until it has written: a busy machine may not give it a turn at once.
fn run_for(guest: &mut dyn TestGuest, time: Duration) {
    let before = guest.writes();
    guest.resume().unwrap();
    sleep(time);
    wait_for_write(guest, before);
    guest.pause().unwrap();
}

/// Waits until a running guest has done more than `before` writes; five seconds without one are enough.
fn wait_for_write(guest: &dyn TestGuest, before: u64) {
    for _ in 0..5000 {
        if guest.writes() > before {
            return;
        }
        sleep(Duration::from_millis(1));
    }
    panic!("no write after {before} in five seconds");
}

fn load(memory: &GuestMemory, page: u64, word: usize) -> u64 {
    memory.chunk(PageIndex(page).chunk()).load_word(PageIndex(page).bit(), word)
}

fn store(memory: &GuestMemory, page: u64, word: usize, value: u64) {
    memory.chunk(PageIndex(page).chunk()).store_word(PageIndex(page).bit(), word, value);
}

fn page_words(memory: &GuestMemory, page: u64) -> Vec<u64> {
    (0..PAGE_WORDS).map(|word| load(memory, page, word)).collect()
}

/// Copies what is populated.
fn copy_memory(from: &GuestMemory, to: &GuestMemory) {
    copy_pages(from, to, &from.populated().unwrap());
}

fn copy_pages(from: &GuestMemory, to: &GuestMemory, pages: &PageBitmap) {
    let mut page = [0; PAGE_SIZE];
    for (number, mask) in pages.occupied() {
        let (source, target) = (from.chunk(number), to.chunk(number));
        for bit in (0..64).filter(|bit| mask >> bit & 1 == 1) {
            if source.copy_out(bit, &mut page) != PageSummary::Uniform(0) {
                let words = page.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
                words.enumerate().for_each(|(index, word)| target.store_word(bit, index, word));
            }
        }
    }
}

#[test]
fn a_guest_that_never_ran_is_as_it_was_built() {
    let _turn = my_turn();
    for (text, mut guest) in each_guest("working-set=1MiB") {
        guest.check().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(guest.writes(), 0);
        let populated = guest.memory().populated().unwrap().count().0;
        assert!((513..600).contains(&populated), "{text}: {populated} pages populated");
    }
}

#[test]
fn running_guests_leave_what_the_check_expects() {
    let _turn = my_turn();
    for rate in ["max", "20000"] {
        // The working set within the fill, and reaching beyond it.
        for working_set in ["1MiB", "4MiB"] {
            for (text, mut guest) in each_guest(&format!("working-set={working_set},rate={rate}")) {
                for _ in 0..3 {
                    let before = guest.writes();
                    run_for(&mut *guest, Duration::from_millis(60));
                    guest.check().unwrap_or_else(|error| panic!("{text} after {} writes: {error}", guest.writes()));
                    assert!(guest.writes() > before, "{text}: it goes on after a pause");
                }
                let writes = guest.writes();
                sleep(Duration::from_millis(5));
                assert_eq!(guest.writes(), writes, "{text}: a paused guest does not write");
            }
        }
    }
}

#[test]
fn a_running_guest_cannot_be_checked_or_saved() {
    let _turn = my_turn();
    for (_, mut guest) in each_guest("working-set=1MiB,rate=max") {
        guest.resume().unwrap();
        assert!(matches!(guest.check(), Err(CheckError::Running)));
        assert!(guest.save_state().is_err());
        guest.pause().unwrap();
        guest.pause().unwrap();
        guest.check().unwrap();
    }
}

#[test]
fn one_altered_word_anywhere_is_found_and_named() {
    let _turn = my_turn();
    for (text, mut guest) in each_guest("working-set=1MiB,rate=max") {
        run_for(&mut *guest, Duration::from_millis(60));
        let memory = Arc::clone(guest.memory());
        // In the control page's rest, the fill, the working set, and where nothing was ever written.
        for (page, word) in [(1, 100), (FIRST + 300, 7), (FIRST + 511, 511), (FIRST + 255, 40), (FIRST + 600, 3), (0, 0), (2000, 1)] {
            let was = load(&memory, page, word);
            store(&memory, page, word, was ^ 1 << 63);
            match guest.check() {
                Err(CheckError::Mismatch { at, found, .. }) => {
                    assert_eq!((at, found), (GuestAddr(page * 4096 + word as u64 * 8), was ^ 1 << 63), "{text}");
                }
                other => panic!("{text}: page {page} word {word}: {other:?}"),
            }
            store(&memory, page, word, was);
            guest.check().unwrap();
        }
    }
}

#[test]
fn an_altered_word_of_any_content_is_found() {
    let _turn = my_turn();
    for content in Content::ALL {
        let mut guest = source(&format!("workload:memory=24MiB,fill=2MiB,working-set=1MiB,rate=max,content={content}")).expect("needs nothing");
        run_for(&mut *guest, Duration::from_millis(20));
        guest.check().unwrap();
        let memory = Arc::clone(guest.memory());
        for page in [FIRST + 100, FIRST + 301, FIRST + 302, FIRST + 303, FIRST + 304] {
            let was = load(&memory, page, 9);
            store(&memory, page, 9, was ^ 1);
            assert!(matches!(guest.check(), Err(CheckError::Mismatch { .. })), "{content}: page {page}");
            store(&memory, page, 9, was);
        }
        guest.check().unwrap();
    }
}

#[test]
fn the_programs_own_pages_are_checked() {
    let _turn = my_turn();
    let Some(mut guest) = source("kvm:memory=24MiB,working-set=1MiB") else { return };
    let memory = Arc::clone(guest.memory());
    for page in [0x10, 0x100, 0x102] {
        let was = load(&memory, page, 5);
        store(&memory, page, 5, was ^ 2);
        let error = guest.check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("guest address {:#x} holds", page * 4096 + 40)), "{error}");
        store(&memory, page, 5, was);
    }
    guest.check().unwrap();
}

#[test]
fn an_old_copy_of_any_page_of_the_working_set_is_found() {
    let _turn = my_turn();
    for (text, mut guest) in each_guest("working-set=64KiB,rate=max") {
        run_for(&mut *guest, Duration::from_millis(30));
        let memory = Arc::clone(guest.memory());
        let old: Vec<_> = (FIRST..FIRST + 16).map(|page| page_words(&memory, page)).collect();
        run_for(&mut *guest, Duration::from_millis(30));
        guest.check().unwrap();
        for (page, old) in (FIRST..).zip(&old) {
            let new = page_words(&memory, page);
            old.iter().enumerate().for_each(|(word, value)| store(&memory, page, word, *value));
            let found = guest.check();
            assert!(matches!(found, Err(CheckError::Mismatch { .. })), "{text}: page {page}: {found:?}");
            new.iter().enumerate().for_each(|(word, value)| store(&memory, page, word, *value));
        }
        guest.check().unwrap();
    }
}

/// Moves a paused guest's memory and state to a new guest and starts that; gives it and the time it was stopped for at least.
fn moved(here: &mut dyn TestGuest, stop: Duration) -> (Box<dyn TestGuest>, Duration) {
    let paused = Instant::now();
    let state = here.save_state().unwrap();
    let mut there = build_destination(here.spec(), Backing::Memfd).unwrap();
    assert!(there.resume().is_err(), "nothing has arrived yet");
    copy_memory(here.memory(), there.memory());
    there.load_state(&state).unwrap();
    there.check().unwrap_or_else(|error| panic!("before it runs: {error}"));
    assert_eq!(there.writes(), here.writes());
    sleep(stop);
    // Before the resume: the guest may write long before that call is back on a processor.
    let stopped = paused.elapsed();
    there.resume().unwrap();
    (there, stopped)
}

#[test]
fn a_guest_moves_and_goes_on_where_it_stopped() {
    let _turn = my_turn();
    for rate in ["max", "20000"] {
        for (text, mut here) in each_guest(&format!("working-set=1MiB,rate={rate}")) {
            run_for(&mut *here, Duration::from_millis(30));
            let (mut there, _) = moved(&mut *here, Duration::ZERO);
            wait_for_write(&*there, here.writes());
            there.pause().unwrap();
            there.check().unwrap_or_else(|error| panic!("{text}: {error}"));
            here.check().unwrap();
            here.resume().unwrap();
            here.pause().unwrap();
            here.check().unwrap_or_else(|error| panic!("{text} back at the source: {error}"));
        }
    }
}

#[test]
fn the_longest_gap_is_the_time_a_move_took() {
    let _turn = my_turn();
    for (text, mut guest) in each_guest("working-set=1MiB,rate=20000") {
        run_for(&mut *guest, Duration::from_millis(20));
        for _ in 0..3 {
            // Longer than all gaps before, so it shows.
            let stop = guest.longest_gap() + Duration::from_millis(30);
            let (before, start) = (guest.writes(), Instant::now());
            let (there, stopped) = moved(&mut *guest, stop);
            guest = there;
            wait_for_write(&*guest, before);
            let at_most = start.elapsed();
            guest.pause().unwrap();
            let gap = guest.longest_gap();
            println!("{text}: the gap was longer than the stop by {:?}", gap.saturating_sub(stopped));
            assert!(gap + SLACK > stopped, "{text}: gap {gap:?}, stopped for {stopped:?}");
            // The guest's last write came before `start`: at its rate, 50 us before, or whatever the machine made of that.
            assert!(gap < at_most + SLACK + Duration::from_millis(200), "{text}: gap {gap:?} in {at_most:?}: the clock jumped");
        }
    }
}

#[test]
fn a_guest_can_be_stopped_at_any_instruction_and_moved() {
    let _turn = my_turn();
    for (text, mut guest) in each_guest("working-set=64KiB,rate=max") {
        run_for(&mut *guest, Duration::from_millis(1));
        let start = Instant::now();
        for _ in 0..25 {
            guest = moved(&mut *guest, Duration::ZERO).0;
            sleep(Duration::from_micros(300));
            guest.pause().unwrap();
            guest.check().unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        let (gap, all) = (guest.longest_gap(), start.elapsed());
        assert!(gap <= all, "{text}: a gap of {gap:?} in {all:?}: the clock jumped");
    }
}

#[test]
fn a_tracked_guest_moves_while_it_runs() {
    let _turn = my_turn();
    for kind in TrackerKind::ALL {
        for (text, mut here) in each_guest("working-set=1MiB,rate=max") {
            let mut tracker = match dirty::open(Choice::Only(kind), &here.tracked()) {
                Err(error @ DirtyError::Unusable { .. }) => {
                    println!("skipped: {text}: {error}");
                    continue;
                }
                opened => opened.unwrap(),
            };
            let mut there = build_destination(here.spec(), Backing::Anonymous).unwrap();
            let mut dirty = PageBitmap::new(here.memory().layout().chunks());
            run_for(&mut *here, Duration::from_millis(5));
            tracker.start(&mut dirty).unwrap();
            here.resume().unwrap();
            for _ in 0..5 {
                copy_pages(here.memory(), there.memory(), &dirty);
                dirty.clear();
                sleep(Duration::from_millis(5));
                if tracker.needs_pause() {
                    here.pause().unwrap();
                }
                tracker.harvest(&mut dirty).unwrap();
                here.resume().unwrap();
            }
            here.pause().unwrap();
            tracker.harvest(&mut dirty).unwrap();
            copy_pages(here.memory(), there.memory(), &dirty);
            tracker.stop().unwrap();
            there.load_state(&here.save_state().unwrap()).unwrap();
            there.check().unwrap_or_else(|error| panic!("{text} by {kind}: {error}"));
            run_for(&mut *there, Duration::from_millis(5));
            there.check().unwrap_or_else(|error| panic!("{text} by {kind}, going on: {error}"));
        }
    }
}

#[test]
fn memory_and_state_of_different_moments_do_not_run() {
    let _turn = my_turn();
    for (text, mut here) in each_guest("working-set=1MiB,rate=max") {
        run_for(&mut *here, Duration::from_millis(10));
        let state = here.save_state().unwrap();
        run_for(&mut *here, Duration::from_millis(10));
        let mut there = build_destination(here.spec(), Backing::Anonymous).unwrap();
        copy_memory(here.memory(), there.memory());
        there.load_state(&state).unwrap();
        assert!(matches!(there.check(), Err(CheckError::Apart { .. })), "{text}");
        assert!(there.resume().is_err(), "{text}");
    }
}

#[test]
fn states_that_are_not_this_guests_are_refused() {
    let _turn = my_turn();
    for (text, mut here) in each_guest("working-set=1MiB,rate=max") {
        let state = here.save_state().unwrap();
        assert!(here.load_state(&state).is_err(), "{text}: it has a state");
        let mut there = build_destination(here.spec(), Backing::Anonymous).unwrap();
        assert!(there.load_state(&[]).is_err());
        assert!(there.load_state(&state[..state.len() - 1]).is_err());
        for byte in 0..16 {
            let mut altered = state.clone();
            altered[byte] ^= 0x40;
            assert!(there.load_state(&altered).is_err(), "{text}: byte {byte}");
        }
        there.load_state(&state).unwrap();
    }
}

#[test]
fn paced_guests_do_not_exceed_their_rate() {
    let _turn = my_turn();
    for kind in KINDS {
        let Some(mut guest) = source(&format!("{kind}:memory=24MiB,working-set=1MiB,rate=20000")) else { continue };
        assert_eq!(guest.spec().rate(), Rate::Paced(20_000));
        run_for(&mut *guest, Duration::from_millis(20));
        let (before, start) = (guest.writes(), Instant::now());
        run_for(&mut *guest, Duration::from_millis(300));
        let rate = (guest.writes() - before) as f64 / start.elapsed().as_secs_f64();
        println!("{kind}: {rate:.0} writes/s of 20000");
        assert!(rate < 22_000., "{kind}: {rate} writes a second");
    }
}

/// Writes a second, over a while.
fn pace(guest: &dyn TestGuest) -> f64 {
    let (began, before) = (Instant::now(), guest.writes());
    sleep(Duration::from_millis(200));
    (guest.writes() - before) as f64 / began.elapsed().as_secs_f64()
}

#[test]
fn throttled_guests_do_their_share_until_that_is_lifted() {
    const RATE: f64 = 10_000.0;
    let _turn = my_turn();
    for kind in KINDS {
        let Some(mut guest) = source(&format!("{kind}:memory=24MiB,fill=2MiB,working-set=2MiB,rate=10000")) else { continue };
        guest.throttle(RunShare::new(0.1)).unwrap();
        guest.resume().unwrap();
        let throttled = pace(&*guest);
        assert!(throttled < RATE * 0.4, "{kind}: {throttled} writes/s from its first start on");
        guest.pause().unwrap();
        guest.check().unwrap();
        guest.resume().unwrap();
        let still = pace(&*guest);
        assert!(still < RATE * 0.4, "{kind}: {still} writes/s after a pause");
        guest.throttle(RunShare::FULL).unwrap();
        // A busy machine may take a while to let it.
        assert!((0..25).any(|_| pace(&*guest) > RATE * 0.5), "{kind}: still slow");
        guest.throttle(RunShare::new(0.1)).unwrap();
        let again = pace(&*guest);
        assert!(again < RATE * 0.4, "{kind}: {again} writes/s when throttled as it runs");
        guest.pause().unwrap();
        guest.check().unwrap();
    }
}

#[test]
fn guests_are_paused_again_and_again() {
    let _turn = my_turn();
    for (text, mut guest) in each_guest("working-set=1MiB,rate=1") {
        let mut latencies: Vec<Duration> = (0..15)
            .map(|_| {
                guest.resume().unwrap();
                sleep(Duration::from_millis(3));
                let start = Instant::now();
                guest.pause().unwrap();
                start.elapsed()
            })
            .collect();
        latencies.sort();
        println!("{text}: pause {:?} (median), {:?} (longest)", latencies[7], latencies[14]);
    }
}

#[test]
fn a_guest_that_goes_wrong_is_noticed() {
    let _turn = my_turn();
    let Some(mut guest) = source("kvm:memory=24MiB,working-set=1MiB,rate=max") else { return };
    let memory = Arc::clone(guest.memory());
    guest.resume().unwrap();
    sleep(Duration::from_millis(5));
    // A division by zero, for which the guest has no handler.
    store(&memory, 1, 12, 0);
    sleep(Duration::from_millis(20));
    println!("{:?}", guest.pause().unwrap_err());
    assert!(guest.resume().is_err());
    assert!(matches!(guest.check(), Err(CheckError::Stopped { .. })));
}

#[test]
fn trackers_are_told_who_writes() {
    let _turn = my_turn();
    for (text, guest) in each_guest("working-set=1MiB") {
        let Tracked { marks_complete, kvm, .. } = guest.tracked();
        assert_eq!((marks_complete, kvm.is_some()), if text.starts_with("kvm") { (false, true) } else { (true, false) });
    }
}

#[test]
fn a_large_guest_with_little_in_it_is_checked_quickly() {
    let _turn = my_turn();
    for kind in KINDS {
        let Some(mut guest) = source(&format!("{kind}:memory=16GiB,fill=64MiB,rate=max")) else { continue };
        run_for(&mut *guest, Duration::from_millis(50));
        let before = guest.memory().populated().unwrap().count();
        let start = Instant::now();
        guest.check().unwrap();
        println!("{kind}: checked in {:?}", start.elapsed());
        assert_eq!(guest.memory().populated().unwrap().count(), before, "{kind}: checking populates nothing");
        assert!(before.0 < 64 * 256 + 600, "{kind}: {before}");
    }
}
