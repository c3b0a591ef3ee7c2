//! Pages given back to the host stay empty, whenever that happens.

use nix::fcntl::{FallocateFlags, fallocate};

use super::*;

/// Pages of chunk 1, or the huge page around them.
fn some(backing: Backing) -> (PageIndex, PageCount) {
    if backing == Backing::HugeTlb { (PageIndex(0), PageCount(512)) } else { (ChunkIndex(1).page(3), PageCount(20)) }
}

/// How pages are given back.
#[derive(Clone, Copy, Debug)]
enum How {
    /// By advice, of which the kernel tells.
    Advice,
    /// By punching a hole, of which the VMM tells.
    Punch,
}

fn each_way(mut test: impl FnMut(Backing, How)) {
    each_backing(|backing| {
        test(backing, How::Advice);
        if backing == Backing::Memfd {
            test(backing, How::Punch);
        }
    });
}

fn discard(setup: &Arc<Setup>, how: How, (first, count): (PageIndex, PageCount)) {
    let setup = Arc::clone(setup);
    start(move || match how {
        How::Advice => setup.memory.discard(first, count).unwrap(),
        How::Punch => {
            let (file, _) = setup.memory.regions()[0].file().unwrap();
            let [start, length] = [first.0, count.0].map(|pages| i64::try_from(pages * PAGE_SIZE as u64).unwrap());
            fallocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, length).unwrap();
            setup.incomplete.discarded(first, count).unwrap();
        }
    })
    .end();
}

fn is_in((first, count): (PageIndex, PageCount), page: PageIndex) -> bool {
    (first.0..first.0 + count.0).contains(&page.0)
}

/// All pages are as at the source but those, which are empty.
fn check_all_but(setup: &Setup, emptied: (PageIndex, PageCount)) {
    for page in setup.pages() {
        assert_eq!(setup.load(page), if is_in(emptied, page) { 0 } else { setup.expected(page) }, "{page:?}");
    }
}

#[test]
fn pages_removed_before_they_come_stay_empty() {
    each_way(|backing, how| {
        let setup = Arc::new(Setup::new(backing, |_| true));
        let removed = some(backing);
        discard(&setup, how, removed);
        // Nobody has to be asked for them any more.
        let reader = Arc::clone(&setup);
        start(move || (0..removed.1.0).for_each(|page| assert_eq!(reader.load(PageIndex(removed.0.0 + page)), 0))).end();
        assert_eq!(setup.incomplete.outstanding(), setup.missing.count(), "the source sends them all the same");
        let stats = setup.complete();
        assert_eq!((stats.bulk, stats.dropped, stats.faults), (setup.missing.count(), removed.1, 0), "{backing}, {how:?}");
        check_all_but(&setup, removed);
    });
}

#[test]
fn what_is_written_after_a_removal_is_not_overwritten() {
    each_way(|backing, how| {
        let setup = Arc::new(Setup::new(backing, |_| true));
        let removed = some(backing);
        discard(&setup, how, removed);
        let writer = Arc::clone(&setup);
        start(move || writer.memory.chunk(removed.0.chunk()).store_word(removed.0.bit(), 7, 42)).end();
        setup.complete();
        assert_eq!(setup.load(removed.0), 42, "{backing}, {how:?}");
    });
}

#[test]
fn who_waits_for_a_page_that_is_removed_finds_zeros() {
    each_way(|backing, how| {
        let setup = Arc::new(Setup::new(backing, |_| true));
        let removed = some(backing);
        let reader = Arc::clone(&setup);
        let read = start(move || reader.load(PageIndex(removed.0.0 + 1)));
        until("it faults", || setup.incomplete.stats().faults == 1);
        read.assert_waits();
        discard(&setup, how, removed);
        assert_eq!(read.end(), 0, "{backing}, {how:?}");
        setup.complete();
        check_all_but(&setup, removed);
    });
}

#[test]
fn pages_removed_after_they_came_are_empty() {
    each_way(|backing, how| {
        let setup = Arc::new(Setup::new(backing, |_| true));
        let removed = some(backing);
        let mut installer = setup.incomplete.installer(Lane::Bulk(0));
        for (chunk, mask) in setup.source.claim(ChunkIndex(1), u64::MAX) {
            send(&mut installer, chunk, mask).unwrap();
        }
        discard(&setup, how, removed);
        let reader = Arc::clone(&setup);
        start(move || (0..removed.1.0).for_each(|page| assert_eq!(reader.load(PageIndex(removed.0.0 + page)), 0))).end();
        setup.complete();
        check_all_but(&setup, removed);
    });
}

#[test]
fn a_page_that_came_between_a_hole_and_word_of_it_is_emptied_again() {
    if !usable() {
        return;
    }
    let setup = Arc::new(Setup::new(Backing::Memfd, |_| true));
    // The hole is punched (nothing was there), the page comes, and only then the VMM tells.
    send(&mut setup.incomplete.installer(Lane::Bulk(0)), ChunkIndex(0), 0b1000).unwrap();
    setup.source.claim(ChunkIndex(0), 0b1000);
    assert_eq!(setup.load(PageIndex(3)), content(PageIndex(3), 7));
    let teller = Arc::clone(&setup);
    start(move || teller.incomplete.discarded(PageIndex(3), PageCount(1)).unwrap()).end();
    let reader = Arc::clone(&setup);
    assert_eq!(start(move || reader.load(PageIndex(3))).end(), 0);
    setup.complete();
    check_all_but(&setup, (PageIndex(3), PageCount(1)));
}

#[test]
fn removed_pages_are_not_wanted_after_a_recovery() {
    each_way(|backing, how| {
        let setup = Arc::new(Setup::new(backing, |page| page.0 < 1024));
        let removed = some(backing);
        discard(&setup, how, removed);
        let arrived = setup.incomplete.arrived();
        assert_eq!(arrived.count(), removed.1);
        assert!(setup.pages().all(|page| arrived.contains(page) == is_in(removed, page)));
        setup.source.left.lock().unwrap().subtract(&arrived);
        setup.complete();
        check_all_but(&setup, removed);
    });
}

#[test]
fn nothing_is_removed_between_an_installers_look_and_its_filling() {
    each_way(|backing, how| {
        let setup = Arc::new(Setup::new(backing, |_| true));
        let removed = some(backing);
        // What an installer holds from one to the other.
        let gate = setup.incomplete.kernel(Lane::Bulk(3));
        assert_eq!(setup.incomplete.sets.removed(removed.0.chunk()), 0);
        let there = Arc::clone(&setup);
        let discarding = start(move || discard(&there, how, removed));
        discarding.assert_waits();
        assert_eq!(setup.incomplete.sets.removed(removed.0.chunk()), 0);
        drop(gate);
        discarding.end();
        assert_ne!(setup.incomplete.sets.removed(removed.0.chunk()), 0, "{backing}, {how:?}");
        setup.complete();
        check_all_but(&setup, removed);
    });
}
