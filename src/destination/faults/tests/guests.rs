//! Whole guests that go on running while their memory arrives.

use super::*;
use crate::guests::{GuestSpec, TestGuest, build_destination, build_source};

/// A guest that has run and is paused, and its state.
fn source_guest(text: &str, backing: Backing) -> Option<(GuestSpec, Box<dyn TestGuest>, Vec<u8>)> {
    let spec: GuestSpec = text.parse().unwrap();
    let mut guest = match build_source(&spec, backing) {
        Ok(guest) => guest,
        Err(error) => {
            eprintln!("skipped: {text} on {backing} memory: {error}");
            return None;
        }
    };
    guest.resume().unwrap();
    until("it writes", || guest.writes() > 100);
    guest.pause().unwrap();
    let state = guest.save_state().unwrap();
    Some((spec, guest, state))
}

/// The pages for which `wanted` says so; of huge pages all when it says so for one.
fn whole(populated: &PageBitmap, backing: Backing, wanted: impl Fn(PageIndex) -> bool) -> PageBitmap {
    let together = if backing == Backing::HugeTlb { 8 } else { 1 };
    let mut missing = PageBitmap::new(populated.chunks());
    for (first, words) in populated.words().chunks(together).enumerate().map(|(index, words)| (index * together, words)) {
        for (index, word) in words.iter().enumerate() {
            let chunk = ChunkIndex(u32::try_from(first + index).unwrap());
            let mask = (0..64).filter(|&bit| word >> bit & 1 == 1 && wanted(chunk.page(bit))).fold(0, |mask, bit| mask | 1 << bit);
            match backing {
                Backing::HugeTlb if mask != 0 => missing.words_mut()[first..first + words.len()].fill(u64::MAX),
                _ => missing.insert_word(chunk, mask),
            }
        }
    }
    missing
}

/// Runs a guest here whose pages of `wanted` are missing when it starts and the others were brought before.
fn run_while_memory_arrives(text: &str, backing: Backing, wanted: impl Fn(PageIndex) -> bool) {
    let Some((spec, from, state)) = source_guest(text, backing) else { return };
    let populated = from.memory().populated().unwrap();
    let missing = whole(&populated, backing, wanted);
    let mut guest = match build_destination(&spec, backing) {
        // The host may have huge pages for one guest and not for two.
        Err(error) if backing == Backing::HugeTlb => {
            eprintln!("skipped: {text} on {backing} memory: {error}");
            return;
        }
        guest => guest.unwrap(),
    };
    let memory = Arc::clone(guest.memory());
    for (chunk, word) in populated.occupied() {
        for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
            let mut page = [0; PAGE_SIZE];
            from.memory().chunk(chunk).copy_out(bit, &mut page);
            memory.chunk(chunk).copy_in(bit, &page);
        }
    }
    let incomplete = Incomplete::begin(Arc::clone(&memory), &missing, None).unwrap();
    let pages = Arc::clone(from.memory());
    let page = move |page: PageIndex, bytes: &mut [u8; PAGE_SIZE]| {
        pages.chunk(page.chunk()).copy_out(page.bit(), bytes);
    };
    let source = Arc::new(Source::with(page, memory.layout(), backing, &missing));
    let lane = Answering::connect(&incomplete, &source);
    // Loading the state touches memory, too.
    let (guest, result) = start(move || {
        let result = guest.load_state(&state).and_then(|()| guest.resume());
        (guest, result)
    })
    .end();
    result.unwrap();
    let writes = from.writes();
    until("it waits for a page", || incomplete.stats().faults > 0);
    let mut installer = incomplete.installer(Lane::Bulk(0));
    let slowly = Duration::from_micros(500);
    loop {
        let claimed = source.claim_any();
        if claimed.is_empty() {
            break;
        }
        for (chunk, mask) in claimed {
            source.send(&mut installer, chunk, mask).unwrap();
        }
        std::thread::sleep(slowly);
    }
    until("all has come", || incomplete.outstanding() == PageCount(0));
    let stats = incomplete.finish();
    until("it goes on", || guest.writes() > writes + 1000);
    let (mut guest, result) = start(move || {
        let mut guest = guest;
        let result = guest.pause();
        (guest, result)
    })
    .end();
    result.unwrap();
    guest.check().unwrap_or_else(|error| panic!("{text} on {backing} memory: {error}"));
    assert!(stats.faults > 0, "{text} on {backing} memory: {stats:?}");
    assert_eq!(stats.urgent + stats.bulk, missing.count());
    assert!(lane.end() > 0);
}

const SHAPE: &str = "memory=32MiB,fill=12MiB,working-set=4MiB,rate=200000";

#[test]
fn a_thread_runs_on_while_its_memory_arrives() {
    each_backing(|backing| {
        for pattern in ["sweep", "random", "rewrite"] {
            run_while_memory_arrives(&format!("workload:{SHAPE},pattern={pattern}"), backing, |_| true);
        }
        run_while_memory_arrives(&format!("workload:{SHAPE},pattern=hot-cold"), backing, |page| page.0 % 3 == 0);
    });
}

#[test]
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
fn a_virtual_machine_runs_on_while_its_memory_arrives() {
    each_backing(|backing| {
        for pattern in ["sweep", "random", "rewrite"] {
            run_while_memory_arrives(&format!("kvm:{SHAPE},pattern={pattern}"), backing, |_| true);
        }
        run_while_memory_arrives(&format!("kvm:{SHAPE},pattern=hot-cold"), backing, |page| page.0 % 3 == 0);
    });
}

#[test]
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
fn a_virtual_machine_without_a_lane_waits_and_goes_on_when_its_pages_come() {
    if !usable() {
        return;
    }
    let backing = Backing::Anonymous;
    let Some((spec, from, state)) = source_guest(&format!("kvm:{SHAPE}"), backing) else { return };
    let mut missing = from.memory().populated().unwrap();
    let mut guest = build_destination(&spec, backing).unwrap();
    // The control page is here: this thread looks at it, and must not wait.
    let control = std::mem::take(&mut missing.words_mut()[0]);
    for bit in (0..64).filter(|bit| control >> bit & 1 == 1) {
        let mut page = [0; PAGE_SIZE];
        from.memory().chunk(ChunkIndex(0)).copy_out(bit, &mut page);
        guest.memory().chunk(ChunkIndex(0)).copy_in(bit, &page);
    }
    let incomplete = Incomplete::begin(Arc::clone(guest.memory()), &missing, None).unwrap();
    let pages = Arc::clone(from.memory());
    let page = move |page: PageIndex, bytes: &mut [u8; PAGE_SIZE]| {
        pages.chunk(page.chunk()).copy_out(page.bit(), bytes);
    };
    let source = Source::with(page, guest.memory().layout(), backing, &missing);
    // Nobody answers.
    guest.load_state(&state).unwrap();
    let before = incomplete.stats().faults;
    guest.resume().unwrap();
    until("its vCPU waits", || incomplete.stats().faults > before);
    let written = guest.writes();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.writes(), written);
    source.push(&mut incomplete.installer(Lane::Bulk(0)));
    until("all has come", || incomplete.outstanding() == PageCount(0));
    incomplete.finish();
    let writes = guest.writes();
    until("it goes on", || guest.writes() > writes + 1000);
    guest.pause().unwrap();
    guest.check().unwrap();
}
