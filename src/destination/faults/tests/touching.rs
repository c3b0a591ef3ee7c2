//! Who touches missing memory gets what the source has.

use std::io::Write;
use std::os::fd::AsFd;

use super::*;

#[test]
fn threads_that_touch_missing_pages_get_them() {
    each_backing(|backing| {
        let setup = Arc::new(Setup::new(backing, |page| page.0 % 7 != 0));
        let lane = setup.connect();
        let readers: Vec<_> = (0..3u64)
            .map(|reader| {
                let setup = Arc::clone(&setup);
                start(move || {
                    let mut pages: Vec<_> = setup.pages().collect();
                    // In different orders, so that they meet on some pages.
                    pages.sort_by_key(|page| page.0.wrapping_mul(0x9E37_79B9 + reader) % 1009);
                    pages.into_iter().for_each(|page| assert_eq!(setup.load(page), setup.expected(page), "{page:?}"));
                })
            })
            .collect();
        readers.into_iter().for_each(Waiter::end);
        until("all was touched", || setup.incomplete.outstanding() == PageCount(0));
        assert_eq!(setup.incomplete.missing(), setup.missing.count());
        let stats = setup.incomplete.finish();
        let granules = if backing == Backing::HugeTlb { setup.missing.count().0.div_ceil(512) } else { setup.missing.count().0 };
        assert_eq!(lane.end(), granules, "each was asked for once");
        assert!(stats.faults >= granules && (1..=3).contains(&stats.threads.len()), "{stats:?}");
        assert_eq!(stats.threads.iter().map(|waits| waits.faults).sum::<u64>(), stats.faults);
        assert!(stats.p50 > Duration::ZERO && stats.p50 <= stats.p90 && stats.p90 <= stats.p99 && stats.p99 <= stats.max, "{stats:?}");
        assert_eq!((stats.urgent, stats.bulk, stats.dropped), (setup.missing.count(), PageCount(0), PageCount(0)));
        setup.check();
    });
}

#[test]
fn pages_that_were_never_missing_read_as_what_was_here() {
    each_backing(|backing| {
        let setup = Arc::new(Setup::new(backing, |page| page.0 >= 512 && page.0 < 1024));
        // Nobody to ask: and nobody has to be.
        let reader = Arc::clone(&setup);
        start(move || {
            let present = reader.pages().filter(|&page| !reader.missing.contains(page));
            present.for_each(|page| assert_eq!(reader.load(page), old(page), "{page:?}"));
        })
        .end();
        let stats = setup.complete();
        assert_eq!(stats.faults, 0);
        assert!(stats.zeros > 0 || backing == Backing::HugeTlb, "holes were touched");
        setup.check();
    });
}

#[test]
fn a_write_to_a_missing_page_changes_what_came() {
    each_backing(|backing| {
        let setup = Arc::new(Setup::new(backing, |_| true));
        let _lane = setup.connect();
        let writer = Arc::clone(&setup);
        start(move || writer.pages().for_each(|page| writer.memory.chunk(page.chunk()).store_word(page.bit(), 9, 99))).end();
        setup.complete();
        for page in setup.pages() {
            assert_eq!((setup.load(page), setup.memory.chunk(page.chunk()).load_word(page.bit(), 9)), (content(page, 7), 99), "{page:?}");
        }
    });
}

#[test]
fn a_system_call_that_fills_missing_pages_waits_for_them() {
    each_backing(|backing| {
        let setup = Arc::new(Setup::new(backing, |_| true));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0xab; 3 * PAGE_SIZE / 2]).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let reader = Arc::clone(&setup);
        let read = start(move || {
            // One page whole and half of the next.
            reader.memory.placement().read_from(file.as_fd(), ChunkIndex(2), 0b11 << 10, 0, &mut []).unwrap()
        });
        read.assert_waits();
        let _lane = setup.connect();
        assert_eq!(read.end().pages_bytes, 3 * PAGE_SIZE / 2);
        let (whole, half) = (ChunkIndex(2).page(10), ChunkIndex(2).page(11));
        let word = |page: PageIndex, index| setup.memory.chunk(page.chunk()).load_word(page.bit(), index);
        assert_eq!((word(whole, 0), word(whole, 511)), (0xabab_abab_abab_abab, 0xabab_abab_abab_abab));
        assert_eq!((word(half, 255), word(half, 256), word(half, 511)), (0xabab_abab_abab_abab, content(half, 256), content(half, 511)));
        setup.complete();
        assert_eq!(word(half, 256), content(half, 256));
    });
}

#[test]
fn memory_of_huge_pages_by_chance_loses_only_what_is_missing() {
    if !usable() {
        return;
    }
    let layout = MemoryLayout::flat(PageCount(8 * 512)).unwrap();
    let memory = Arc::new(GuestMemory::allocate(layout.clone(), Backing::Anonymous).unwrap());
    let mut missing = PageBitmap::new(layout.chunks());
    for page in (0..layout.pages().0).map(PageIndex) {
        memory.chunk(page.chunk()).store_word(page.bit(), 7, 5);
        if page.0 % 3 == 0 {
            missing.insert(page);
        }
    }
    let mapping = memory.regions()[0].mapping();
    let aligned = mapping.start.next_multiple_of(2 << 20)..mapping.end / (2 << 20) * (2 << 20);
    if let Err(error) = crate::sys::huge::collapse(&aligned) {
        return eprintln!("skipped: huge pages by chance: {error}");
    }
    let incomplete = Incomplete::begin(Arc::clone(&memory), &missing, None).unwrap();
    let source = Source::new(&layout, Backing::Anonymous, &missing);
    let mut installer = incomplete.installer(Lane::Bulk(0));
    source.push(&mut installer);
    incomplete.finish();
    for page in (0..layout.pages().0).map(PageIndex) {
        let want = if missing.contains(page) { content(page, 7) } else { 5 };
        assert_eq!(memory.chunk(page.chunk()).load_word(page.bit(), 7), want, "{page:?}");
    }
}

#[test]
fn a_set_that_names_part_of_a_huge_page_is_refused() {
    each_backing(|backing| {
        let layout = MemoryLayout::flat(PageCount(512 + 70)).unwrap();
        let memory = Arc::new(GuestMemory::allocate(layout.clone(), backing).unwrap());
        let mut missing = PageBitmap::new(layout.chunks());
        missing.insert_run(PageIndex(512), PageCount(70));
        Incomplete::begin(Arc::clone(&memory), &missing, None).map(|whole| drop(whole.installer(Lane::Bulk(0)))).unwrap();
        let memory = Arc::new(GuestMemory::allocate(layout, backing).unwrap());
        missing.insert(PageIndex(77));
        let result = Incomplete::begin(memory, &missing, None);
        match backing {
            Backing::HugeTlb => assert!(matches!(result, Err(MissingError::PartOfHugePage { page: 77 })), "{result:?}"),
            _ => assert!(result.is_ok()),
        }
    });
}
