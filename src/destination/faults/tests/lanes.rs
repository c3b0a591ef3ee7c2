//! What comes on lanes, and what becomes of it when they break.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{MsgFlags, send as send_now};

use super::*;

#[test]
fn pages_that_should_not_have_come_are_named() {
    each_backing(|backing| {
        let setup = Setup::new(backing, |page| page.0 < 512);
        let mut installer = setup.incomplete.installer(Lane::Bulk(0));
        let error = |result: Result<PageCount, MissingError>| result.unwrap_err().to_string();
        assert_eq!(error(send(&mut installer, ChunkIndex(8), 0b110)), "page 513 came but was not missing");
        assert_eq!(error(send(&mut installer, ChunkIndex(26), 1)), "pages of chunk 26 came, which is not one of the guest's");
        assert_eq!(send(&mut installer, ChunkIndex(2), 0b11 << 7).unwrap().0, if backing == Backing::HugeTlb { 512 } else { 510 });
        assert_eq!(error(send(&mut installer, ChunkIndex(2), 0b11 << 8)), "page 136 came twice");
        drop(installer);
        // A huge page of which only some came has not come, and an error takes nothing.
        let again = if backing == Backing::HugeTlb { u64::MAX } else { !(0b11 << 7) };
        let mut installer = setup.incomplete.installer(Lane::Bulk(1));
        for chunk in (0..8).map(ChunkIndex) {
            send(&mut installer, chunk, if chunk == ChunkIndex(2) { again } else { u64::MAX }).unwrap();
        }
        assert_eq!(error(send(&mut installer, ChunkIndex(0), 1)), "page 0 came twice");
        setup.incomplete.finish();
        setup.check();
    });
}

#[test]
fn huge_pages_come_one_after_another_on_a_lane() {
    each_backing(|backing| {
        if backing != Backing::HugeTlb {
            return;
        }
        let setup = Setup::new(backing, |_| true);
        let (mut one, mut other) = (setup.incomplete.installer(Lane::Bulk(0)), setup.incomplete.installer(Lane::Bulk(1)));
        send(&mut one, ChunkIndex(0), u64::MAX).unwrap();
        // On another lane at the same time, in any order.
        (8..16).rev().for_each(|chunk| assert!(send(&mut other, ChunkIndex(chunk), u64::MAX).is_ok()));
        let error = send(&mut one, ChunkIndex(16), u64::MAX).unwrap_err();
        assert_eq!(error.to_string(), "pages of chunk 16 came on a lane that has not brought all of the huge page at chunk 0");
        drop(one);
        // The last of the region has 70 pages.
        send(&mut other, ChunkIndex(17), 0b11_1111).unwrap();
        send(&mut other, ChunkIndex(16), u64::MAX).unwrap();
        for (chunk, mask) in [(8, u64::MAX), (17, 1)] {
            assert!(matches!(send(&mut other, ChunkIndex(chunk), mask), Err(MissingError::Twice { .. })));
        }
        (0..8).chain(18..26).for_each(|chunk| assert!(send(&mut other, ChunkIndex(chunk), u64::MAX).is_ok()));
        setup.incomplete.finish();
        setup.check();
    });
}

#[test]
fn what_was_asked_is_asked_again_on_the_next_lane() {
    each_backing(|backing| {
        let setup = Arc::new(Setup::new(backing, |_| true));
        // A source that takes requests and does not answer.
        let (ours, mut theirs) = Stream::pair().unwrap();
        setup.incomplete.connect(ours);
        let pages = [PageIndex(5), PageIndex(600), PageIndex(601), ChunkIndex(20).page(0)];
        let readers = pages.map(|page| {
            let setup = Arc::clone(&setup);
            start(move || setup.load(page))
        });
        let mut requests = Requests::default();
        let mut asked = 0;
        let each_once = if backing == Backing::HugeTlb { 3 } else { 4 };
        while asked < each_once {
            asked += requests.next(&mut theirs).unwrap().len();
        }
        until("all of them wait", || setup.incomplete.stats().faults == 4);
        theirs.control().shut_down();
        setup.incomplete.disconnect();
        // Somebody else faults while there is no lane.
        let late = Arc::clone(&setup);
        let late = start(move || late.load(PageIndex(1030)));
        until("it waits", || setup.incomplete.stats().faults == 5);
        readers.iter().for_each(Waiter::assert_waits);
        assert_eq!(setup.incomplete.arrived().count(), PageCount(0));
        let lane = setup.connect();
        for (reader, page) in readers.into_iter().zip(pages) {
            assert_eq!(reader.end(), content(page, 7));
        }
        assert_eq!(late.end(), content(PageIndex(1030), 7));
        assert_eq!(lane.end(), each_once as u64 + 1);
        let stats = setup.complete();
        assert_eq!((stats.faults, stats.threads.len()), (5, 5));
        setup.check();
    });
}

#[test]
fn a_lane_that_takes_nothing_delays_no_other_fault() {
    if !usable() {
        return;
    }
    let setup = Arc::new(Setup::of(&MemoryLayout::flat(PageCount(1 << 14)).unwrap(), Backing::Anonymous, |page| page.0 >= 64));
    // Nobody reads, so the socket is full at some time.
    let (ours, mut theirs) = Stream::pair().unwrap();
    let mut filled = 0;
    while let Ok(sent) = send_now(ours.as_fd().as_raw_fd(), &[0; 4096], MsgFlags::MSG_DONTWAIT) {
        filled += sent;
    }
    setup.incomplete.connect(ours);
    let waits = Arc::clone(&setup);
    let waits = start(move || waits.load(PageIndex(100)));
    until("it faults", || setup.incomplete.stats().faults == 1);
    let reader = Arc::clone(&setup);
    start(move || (0..64).for_each(|page| assert_eq!(reader.load(PageIndex(page)), old(PageIndex(page))))).end();
    waits.assert_waits();
    // Room again: what waited goes out.
    theirs.read_exact(&mut vec![0; filled]).unwrap();
    assert_eq!(Requests::default().next(&mut theirs), Some(vec![PageIndex(100)]));
    setup.complete();
    assert_eq!(waits.end(), content(PageIndex(100), 7));
}

#[test]
fn dropping_everything_leaves_the_guest_waiting() {
    each_backing(|backing| {
        let setup = Setup::new(backing, |_| true);
        let memory = Arc::clone(&setup.memory);
        let reader = start(move || memory.chunk(ChunkIndex(0)).load_word(3, 7));
        until("it faults", || setup.incomplete.stats().faults == 1);
        let again = Arc::downgrade(&setup.incomplete);
        drop(setup);
        reader.assert_waits();
        // The fault server still has it; the pages can still come.
        let incomplete = again.upgrade().expect("the fault server goes on");
        let source = Source::new(incomplete.memory().layout(), backing, &{
            let mut all = PageBitmap::new(incomplete.memory().layout().chunks());
            let layout = incomplete.memory().layout();
            (0..layout.chunks()).map(ChunkIndex).for_each(|chunk| all.insert_word(chunk, layout.valid_mask(chunk)));
            all
        });
        source.push(&mut incomplete.installer(Lane::Bulk(0)));
        assert_eq!(reader.end(), content(PageIndex(3), 7));
        incomplete.finish();
    });
}

#[test]
#[should_panic(expected = "whoever waits for a page would be handed zeros")]
fn memory_is_not_let_go_while_a_page_is_missing() {
    if !usable() {
        panic!("skipped: whoever waits for a page would be handed zeros");
    }
    Setup::new(Backing::Anonymous, |page| page.0 == 3).incomplete.finish();
}
