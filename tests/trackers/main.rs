//! One suite over every tracker: what a migration relies on.
//!
//! Trackers that cannot be used here are named on stderr with the reason. Memory is anonymous where nothing else is
//! said.
#![expect(unsafe_code, reason = "hands memory to KVM, reads from files into memory")]

mod race;
mod subject;
#[cfg(feature = "kvm")]
mod vcpu;

use std::io::Write as _;
use std::os::fd::AsFd;

use pageferry::dirty::{self, Choice, DirtyError, Tracked, TrackerKind};
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, PageSink, RegionSpec};
use pageferry::units::{ByteCount, ChunkIndex, GuestAddr, PageCount, PageIndex};
use subject::{each_tracker, skipped};

const BACKINGS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];

fn flat(pages: u64) -> MemoryLayout {
    MemoryLayout::flat(PageCount(pages)).unwrap()
}

#[test]
fn a_harvest_reports_what_was_written_and_nothing_else() {
    for backing in BACKINGS {
        each_tracker(&flat(4096), backing, |subject| {
            for page in (0..2048).map(PageIndex) {
                subject.write(page, 1);
            }
            assert_eq!(subject.memory.chunk(ChunkIndex(40)).load_word(0, 0), 0);
            let populated = subject.start();
            // A hole that was read may count: of shared memory it is filled, and old kernels cannot tell.
            subject.expect_populated(&populated, 0..2048, 1);
            subject.expect_harvest(&[], "nothing was written");
            // Populated pages, and pages that were never touched.
            let written = [0, 1, 63, 64, 700, 2047, 2048, 3000, 4095];
            for page in written {
                subject.write(PageIndex(page), 2);
            }
            subject.expect_harvest(&written, "written");
            subject.expect_harvest(&[], "reported once");
            subject.write(PageIndex(700), 3);
            subject.expect_harvest(&[700], "armed again");
            subject.tracker.stop().unwrap();
        });
    }
}

#[test]
fn a_peek_shows_what_was_written_and_takes_nothing() {
    for backing in BACKINGS {
        each_tracker(&flat(4096), backing, |subject| {
            for page in (0..2048).map(PageIndex) {
                subject.write(page, 1);
            }
            subject.start();
            subject.expect_peek(&[], "nothing was written");
            let written = [0, 63, 64, 700, 2048, 4095];
            for page in written {
                subject.write(PageIndex(page), 2);
            }
            subject.expect_peek(&written, "written");
            subject.expect_peek(&written, "still there");
            subject.expect_harvest(&written, "peeked at twice");
            subject.expect_peek(&[], "harvested");
            subject.expect_harvest(&[], "reported once");
            subject.write(PageIndex(700), 3);
            subject.expect_peek(&[700], "armed by the harvest");
            subject.expect_harvest(&[700], "peeked at");
            subject.tracker.stop().unwrap();
        });
    }
}

#[test]
fn no_write_is_lost_after_a_peek() {
    each_tracker(&flat(4096), Backing::Anonymous, |subject| {
        subject.write(PageIndex(7), 1);
        subject.start();
        for value in 2..6 {
            subject.expect_peek(&[], "not written yet");
            subject.write(PageIndex(7), value);
            subject.expect_peek(&[7], "written");
            // The one that was shown, and one that was not; populated at first, and a hole.
            subject.write(PageIndex(7), value + 10);
            subject.write(PageIndex(3000), value);
            subject.expect_harvest(&[7, 3000], "written after a peek");
        }
    });
}

#[test]
fn pages_discarded_after_a_peek_are_reported() {
    for backing in BACKINGS {
        each_tracker(&flat(4096), backing, |subject| {
            for page in (0..2048).map(PageIndex) {
                subject.write(page, 1);
            }
            subject.start();
            subject.write(PageIndex(5), 2);
            assert!(subject.peek().contains(PageIndex(5)), "{subject}");
            for (first, count) in [(5, 1), (512, 1024)] {
                subject.discard(PageIndex(first), PageCount(count));
                subject.peek();
                let reported = subject.harvest();
                assert!((first..first + count).all(|page| reported.contains(PageIndex(page))), "{subject}: {first}+{count}");
            }
        });
    }
}

#[test]
fn many_scattered_writes_are_all_reported() {
    each_tracker(&flat(4096), Backing::Anonymous, |subject| {
        subject.start();
        let written: Vec<u64> = (0..4096).step_by(3).collect();
        written.iter().for_each(|&page| subject.write(PageIndex(page), 1));
        subject.expect_harvest(&written, "written");
        subject.expect_harvest(&[], "reported once");
    });
}

#[test]
fn regions_of_odd_sizes_are_tracked_to_their_last_page() {
    let region = |start, pages| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) };
    let layout = MemoryLayout::new(vec![region(0, 1), region(0x20_0000, 65), region(0x80_0000, 700)]).unwrap();
    each_tracker(&layout, Backing::Anonymous, |subject| {
        subject.start();
        let (second, third) = (layout.first_chunk(1).page(0).0, layout.first_chunk(2).page(0).0);
        let written = [0, second, second + 64, third + 63, third + 699];
        for page in written {
            subject.write(PageIndex(page), 1);
        }
        subject.expect_peek(&written, "written");
        subject.expect_harvest(&written, "written");
    });
}

#[test]
fn tracking_can_be_stopped_and_started_again() {
    each_tracker(&flat(256), Backing::Anonymous, |subject| {
        for _ in 0..3 {
            subject.start();
            subject.write(PageIndex(7), 1);
            subject.expect_harvest(&[7], "written");
            subject.tracker.stop().unwrap();
            subject.tracker.stop().unwrap();
            subject.write(PageIndex(8), 1);
        }
        // Starting over without a stop, as after an error.
        subject.start();
        subject.start();
        subject.write(PageIndex(9), 1);
        subject.expect_harvest(&[9], "written");
    });
}

#[test]
fn discarded_pages_are_reported() {
    for backing in BACKINGS {
        each_tracker(&flat(4096), backing, |subject| {
            for page in (0..2048).map(PageIndex) {
                subject.write(page, 1);
            }
            subject.start();
            // One page, a chunk, and two page tables' worth.
            for (first, count) in [(5, 1), (64, 64), (128, 1024)] {
                subject.discard(PageIndex(first), PageCount(count));
                let reported = subject.harvest();
                assert!((first..first + count).all(|page| reported.contains(PageIndex(page))), "{subject}: {first}+{count}");
            }
            // Discarded and written again.
            subject.discard(PageIndex(2000), PageCount(2));
            subject.write(PageIndex(2001), 2);
            let reported = subject.harvest();
            assert!(reported.contains(PageIndex(2000)) && reported.contains(PageIndex(2001)), "{subject}");
            // Written while it is a hole, then discarded again.
            subject.write(PageIndex(5), 3);
            subject.discard(PageIndex(5), PageCount(1));
            subject.harvest();
            subject.write(PageIndex(5), 4);
            assert!(subject.harvest().contains(PageIndex(5)), "{subject}: a hole is armed too");
        });
    }
}

#[test]
fn anonymous_pages_discarded_and_read_are_reported() {
    each_tracker(&flat(256), Backing::Anonymous, |subject| {
        subject.write(PageIndex(9), 1);
        subject.start();
        subject.discard(PageIndex(9), PageCount(1));
        // The shared page of zeros is there now.
        assert_eq!(subject.memory.chunk(PageIndex(9).chunk()).load_word(9, 0), 0);
        assert!(subject.harvest().contains(PageIndex(9)), "{subject}");
    });
}

#[test]
fn what_the_kernel_writes_for_a_file_read_is_reported() {
    for backing in BACKINGS {
        each_tracker(&flat(256), backing, |subject| {
            subject.write(PageIndex(66), 1);
            subject.start();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 2 * 4096]).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            let mut placement = subject.memory.placement();
            let (touched, hole) = (PageIndex(66), PageIndex(70));
            let read = placement.read_from(file.as_fd(), touched.chunk(), 1 << touched.bit() | 1 << hole.bit(), 0, &mut []).unwrap();
            assert_eq!(read.pages_bytes, 2 * 4096);
            if !subject.sees_the_host() {
                [touched, hole].iter().for_each(|&page| subject.tracked.marks.mark_pages(page, PageCount(1)));
            }
            subject.expect_harvest(&[touched.0, hole.0], "written");
        });
    }
}

#[test]
fn marks_are_part_of_every_harvest() {
    each_tracker(&flat(256), Backing::Anonymous, |subject| {
        subject.tracked.marks.mark_pages(PageIndex(3), PageCount(2));
        subject.start();
        let marks = subject.tracked.marks.clone();
        marks.mark_range(GuestAddr(100 * 4096 - 1), ByteCount(2));
        subject.write(PageIndex(200), 1);
        subject.expect_peek(&[99, 100, 200], "written");
        subject.expect_harvest(&[99, 100, 200], "written");
        subject.expect_harvest(&[], "reported once");
    });
}

#[test]
fn memory_works_on_when_a_tracker_is_dropped_in_the_middle() {
    each_tracker(&flat(256), Backing::Anonymous, |subject| {
        subject.write(PageIndex(1), 1);
        subject.start();
        let kind = subject.tracker.kind();
        let marked = Tracked { marks_complete: true, ..subject.tracked.clone() };
        subject.tracker = dirty::open(Choice::Only(TrackerKind::Marked), &marked).unwrap();
        subject.write(PageIndex(1), 2);
        assert_eq!(subject.memory.chunk(PageIndex(1).chunk()).load_word(1, 0), 2, "{subject}");
        subject.tracker = dirty::open(Choice::Only(kind), &subject.tracked).unwrap();
        subject.start();
        subject.write(PageIndex(1), 3);
        subject.expect_harvest(&[1], "written");
    });
}

#[test]
fn huge_pages_are_tracked_whole() {
    let layout = flat(4 * 512);
    if let Err(error) = GuestMemory::allocate(layout.clone(), Backing::HugeTlb) {
        return skipped("hugetlb memory", &format!("{error} (reserve huge pages in /proc/sys/vm/nr_hugepages)"));
    }
    each_tracker(&layout, Backing::HugeTlb, |subject| {
        subject.write(PageIndex(600), 1);
        subject.start();
        subject.expect_harvest(&[], "reported once");
        subject.write(PageIndex(600), 2);
        subject.write(PageIndex(1500), 2);
        let (shown, reported) = (subject.peek(), subject.harvest());
        assert_eq!(shown, reported, "{subject}");
        assert!(reported.contains(PageIndex(600)) && reported.contains(PageIndex(1500)), "{subject}");
        assert!(!reported.contains(PageIndex(0)), "{subject}: another huge page");
        subject.discard(PageIndex(512), PageCount(512));
        assert!(subject.harvest().contains(PageIndex(600)), "{subject}: discarded");
    });
}

#[test]
fn trackers_that_would_lose_writes_are_refused() {
    let plain = |backing| Tracked::plain(std::sync::Arc::new(GuestMemory::allocate(flat(64), backing).unwrap()));
    let tracked = plain(Backing::Memfd);
    for kind in [TrackerKind::SoftDirty, TrackerKind::KvmLog, TrackerKind::Marked] {
        let error = dirty::open(Choice::Only(kind), &tracked).err().expect("refused");
        assert!(matches!(error, DirtyError::Unusable { kind: refused, .. } if refused == kind), "{error}");
    }
    let tracked = Tracked { marks_complete: true, ..plain(Backing::Anonymous) };
    assert!(dirty::open(Choice::Auto, &tracked).is_ok(), "there is always one when marks are complete");
}

#[test]
fn the_probe_says_something_about_everything() {
    let capabilities = dirty::probe::probe();
    assert!(capabilities.list.iter().any(|capability| capability.name == "write-protect tracker"));
    assert!(capabilities.list.iter().all(|capability| capability.usable || !capability.detail.is_empty()));
    write!(std::io::stderr(), "{capabilities}").unwrap();
}
