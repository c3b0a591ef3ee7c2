use super::*;
use crate::bitmap::bits;
use crate::memory::{PageSink, RawRegion, RegionSpec};
use crate::units::{GuestAddr, PageCount};

/// Of a guest of 16 MiB.
const CHUNKS: u32 = 64;

fn allocate() -> GuestMemory {
    GuestMemory::allocate(MemoryLayout::flat(PageCount(u64::from(CHUNKS) << 6)).unwrap(), Backing::Anonymous).unwrap()
}

/// Only the huge pages of this host, if it has any for a guest and gives them on request only.
fn huge_pages() -> Option<HostSupply> {
    let (memory, mut host) = (allocate(), HostSupply { installer: None, ..HostSupply::of_this_host() });
    let probe = host.costs.as_ref().zip(memory.extent_of(ChunkIndex(0)));
    if !probe.is_some_and(|(costs, (_, start, _))| populate_huge(start, costs) && huge_bytes(&memory) == HUGE_PAGE_SIZE) {
        eprintln!("skipped: no huge page at hand on request, or mappings are not aligned to them");
        return None;
    }
    // What it has learned from the probe it is not to know.
    host.costs = Some(Mutex::default());
    Some(host)
}

/// Only what installs pages, if this host lets it.
fn installer() -> Option<HostSupply> {
    let host = HostSupply { costs: None, ..HostSupply::of_this_host() };
    if host.installer.is_none() || allocate().extent_of(ChunkIndex(0)).is_none() {
        eprintln!("skipped: pages cannot be installed on this host, or mappings are not aligned to 2 MiB");
        return None;
    }
    Some(host)
}

/// Fills the first `pages` pages of each of `chunks` through two placements that take turns; says how much of it is in
/// huge pages.
fn fill(memory: &GuestMemory, chunks: impl Iterator<Item = u32>, pages: u32, by: Option<Supplier<'_>>) -> usize {
    let placement = || by.map_or(memory.placement(), |by| memory.placement().supplied_by(by, 2));
    let mut placements = [placement(), placement()];
    for chunk in chunks {
        let placement = &mut placements[chunk as usize % 2];
        placement.begin(ChunkIndex(chunk), u64::MAX >> (64 - pages));
        (0..pages).for_each(|bit| placement.write_uniform(ChunkIndex(chunk), bit, u64::from(chunk) + 1));
        placement.end(ChunkIndex(chunk));
    }
    // Looking at pages populates none.
    let populated = memory.populated().unwrap();
    for (chunk, bit) in (0..CHUNKS).flat_map(|chunk| (0..64).map(move |bit| (chunk, bit))) {
        if populated.contains(ChunkIndex(chunk).page(bit)) {
            let word = memory.chunk(ChunkIndex(chunk)).load_word(bit, 511);
            assert!(word == 0 || word == u64::from(chunk) + 1, "page {bit} of chunk {chunk} holds {word}");
        }
    }
    huge_bytes(memory)
}

/// What of it lies in huge pages.
fn huge_bytes(memory: &GuestMemory) -> usize {
    let start = memory.regions()[0].host().addr().get();
    let range = start..start + memory.regions()[0].len();
    let (mut within, mut bytes) = (false, 0);
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if let Some((start, _)) = first.split_once('-').filter(|(_, end)| !end.is_empty()) {
            within = usize::from_str_radix(start, 16).is_ok_and(|start| range.contains(&start));
        } else if within && first == "AnonHugePages:" {
            bytes += words.next().unwrap().parse::<usize>().unwrap() << 10;
        }
    }
    bytes
}

/// How many of its pages are populated.
fn populated(memory: &GuestMemory) -> u64 {
    memory.populated().unwrap().count().0
}

#[test]
fn huge_pages_come_amid_what_is_filled_in_either_direction() {
    for order in [(0..CHUNKS).collect::<Vec<_>>(), (0..CHUNKS).rev().collect()] {
        let Some(host) = huge_pages() else { return };
        let huge = fill(&allocate(), order.into_iter(), 64, Some(host.with_huge_pages()));
        // Two extents tell that the third is likely to be filled, which is the first try.
        assert!((1..=6).contains(&(huge / HUGE_PAGE_SIZE)), "{huge} bytes in huge pages");
    }
}

#[test]
fn a_guest_is_populated_where_it_is_filled() {
    for host in [huge_pages(), installer(), Some(HostSupply::of_this_host())].into_iter().flatten() {
        let by = Some(host.with_huge_pages());
        let sparse = allocate();
        assert_eq!(fill(&sparse, (0..CHUNKS).step_by(EXTENT_CHUNKS), 64, by), 0);
        assert_eq!(populated(&sparse), 8 * 64, "a chunk of each extent");
        let thin = allocate();
        assert_eq!(fill(&thin, 0..CHUNKS, 5, by), 0);
        assert_eq!(populated(&thin), 64 * 5, "a few pages of each chunk");
        // Nor does what comes later make room for a huge page.
        assert_eq!(fill(&thin, 0..CHUNKS, 64, by), 0);
        assert_eq!(populated(&thin), 64 * 64);
    }
}

#[test]
fn memory_whose_pages_are_taken_out_again_and_that_of_others_is_in_small_pages() {
    let Some(host) = huge_pages() else { return };
    let memory = allocate();
    assert_eq!(fill(&memory, 0..CHUNKS, 64, Some(host.with_small_pages())), 0);
    let layout = memory.layout().clone();
    let raw = vec![RawRegion { host: memory.regions()[0].host(), backing: Backing::Anonymous, file: None }];
    // SAFETY: the mapping is that of `memory`, which lives longer.
    let others = unsafe { GuestMemory::from_raw(layout, raw) };
    assert!(others.extent_of(ChunkIndex(0)).is_none());
}

#[test]
fn pages_are_installed_once_their_frame_is_known_to_be_right() {
    let Some(host) = installer() else { return };
    let (memory, chunk) = (allocate(), ChunkIndex(17));
    let mut placement = memory.placement().supplied_by(host.with_small_pages(), 1);
    placement.begin(chunk, 0b1011);
    placement.write_front(chunk, 0b11, &[3; 2 * PAGE_SIZE]);
    placement.write_page(chunk, 3, &[5; PAGE_SIZE]);
    let mut seen = Vec::new();
    placement.for_each_page(chunk, 0b1011, |page| seen.push(page[PAGE_SIZE - 1]));
    assert_eq!((seen, populated(&memory)), (vec![3, 3, 5], 0));
    placement.end(chunk);
    assert_eq!(populated(&memory), 3);

    // New pages, one that was there, one that is read meanwhile, and one that becomes zeros.
    placement.begin(chunk, 0b1_0001);
    let mut base = [0; PAGE_SIZE];
    placement.copy_page(chunk, 3, &mut base);
    assert_eq!(base, [5; PAGE_SIZE]);
    placement.write_zero(chunk, 1);
    placement.write_uniform(chunk, 0, 7);
    placement.write_page(chunk, 4, &base);
    placement.end(chunk);
    let word = |bit, index| memory.chunk(chunk).load_word(bit, index);
    let fives = u64::from_ne_bytes([5; 8]);
    assert_eq!((word(0, 511), word(1, 0), word(3, 9), word(4, 511)), (7, 0, fives, fives));
    assert_eq!(populated(&memory), 4);

    // A difference, beside a page that is new, and without.
    for (filled, word_3) in [(1 << 3 | 1 << 5, 77), (1 << 3, 78)] {
        placement.begin(chunk, filled);
        placement.copy_page(chunk, 3, &mut base);
        base[9 * 8..10 * 8].copy_from_slice(&u64::to_ne_bytes(word_3));
        if filled >> 5 & 1 == 1 {
            placement.write_page(chunk, 5, &[6; PAGE_SIZE]);
        }
        placement.amend_page(chunk, 3, &base, std::iter::once(9..10));
        placement.end(chunk);
        assert_eq!((word(3, 8), word(3, 9), word(3, 10), word(5, 511)), (fives, word_3, fives, u64::from_ne_bytes([6; 8])));
    }
    assert_eq!(populated(&memory), 5);

    // Nothing new: straight to memory.
    placement.begin(chunk, 0b1);
    placement.write_uniform(chunk, 0, 8);
    assert_eq!(word(0, 0), 8);
    placement.end(chunk);
}

#[test]
fn a_page_that_is_there_already_is_written_to() {
    let Some(host) = installer() else { return };
    let (memory, chunk) = (allocate(), ChunkIndex(3));
    memory.chunk(chunk).store_word(1, 0, 99);
    assert_eq!(fill(&memory, [3].into_iter(), 3, Some(host.with_small_pages())), 0);
    assert_eq!((0..3).map(|bit| memory.chunk(chunk).load_word(bit, 0)).collect::<Vec<_>>(), [4; 3]);
}

#[test]
fn once_it_has_ended_memory_can_be_touched_by_all_and_filled_as_before() {
    let Some(host) = installer() else { return };
    let memory = allocate();
    let mut placement = memory.placement().supplied_by(host.with_small_pages(), 1);
    let mut fill = |chunk: u32, mask: u64| {
        placement.begin(ChunkIndex(chunk), mask);
        bits(mask).for_each(|bit| placement.write_uniform(ChunkIndex(chunk), bit, 1));
        placement.end(ChunkIndex(chunk));
    };
    for chunk in [0, 8, 40] {
        fill(chunk, 1);
    }
    host.end(&memory);
    let first = |chunk: u32, bit| memory.chunk(ChunkIndex(chunk)).load_word(bit, 0);
    assert_eq!((first(0, 0), first(0, 1), first(39, 5)), (1, 0, 0));
    // An extent that was begun, and one that was not.
    fill(1, 0b110);
    fill(63, u64::MAX);
    assert_eq!((first(1, 0), first(1, 2), first(63, 63)), (0, 1, 1));
    let mut registered = Vec::new();
    memory.for_each_installed(|range| registered.push(range.len() / HUGE_PAGE_SIZE));
    assert_eq!(registered, [2, 1], "two extents side by side, and one");
}

#[test]
fn what_cannot_be_installed_is_written() {
    let Some(host) = installer() else { return };
    let (memory, chunk) = (allocate(), ChunkIndex(9));
    let mut placement = memory.placement().supplied_by(host.with_small_pages(), 1);
    let mut fill = |mask: u64, word| {
        placement.begin(chunk, mask);
        bits(mask).for_each(|bit| placement.write_uniform(chunk, bit, word));
        placement.end(chunk);
    };
    fill(0b11, 1);
    // As if the kernel would not any more.
    memory.for_each_installed(|range| host.installer.as_ref().unwrap().end(range));
    fill(0b1110, 2);
    let words = || (0..5).map(|bit| memory.chunk(chunk).load_word(bit, 511)).collect::<Vec<_>>();
    assert_eq!(words(), [1, 2, 2, 2, 0]);
    fill(0b1_0001, 3);
    assert_eq!(words(), [3, 2, 2, 2, 3]);
}

#[test]
fn a_peer_that_scatters_pages_does_not_use_up_the_mappings_of_a_process() {
    let Some(host) = installer() else { return };
    let memory = allocate();
    let by = host.with_small_pages();
    // Two extents side by side are one stretch, whichever comes first.
    for (extent, stretches) in [(0, 1), (2, 2), (1, 2), (7, 3)] {
        assert_eq!(memory.supply(ChunkIndex(extent * 8), Coming::Thinly, Some(by)), Supply::Installed);
        assert_eq!(host.stretches.load(Ordering::Relaxed), stretches, "extent {extent}");
    }
    host.stretches.fetch_add(MAX_STRETCHES - 3, Ordering::Relaxed);
    assert_eq!(memory.supply(ChunkIndex(5 * 8), Coming::Thinly, Some(by)), Supply::Small, "a stretch too many");
    assert_eq!(memory.supply(ChunkIndex(6 * 8), Coming::Thinly, Some(by)), Supply::Installed, "beside one");
    host.end(&memory);
    assert_eq!(host.stretches.load(Ordering::Relaxed), MAX_STRETCHES - 3);
    host.end(&memory);
    assert_eq!(host.stretches.load(Ordering::Relaxed), MAX_STRETCHES - 3, "counted once");
}

#[test]
fn samples_come_from_every_place_of_an_extent() {
    let samples = (0..u32::try_from(EXTENT_CHUNKS).unwrap() * SAMPLE_EVERY).map(ChunkIndex).filter(|&chunk| is_sample(chunk));
    let places: Vec<_> = samples.map(|chunk| chunk.as_usize() % EXTENT_CHUNKS).collect();
    assert_eq!(places.len(), EXTENT_CHUNKS);
    assert_eq!(places.into_iter().collect::<std::collections::BTreeSet<_>>().len(), EXTENT_CHUNKS);
}

#[test]
fn every_extent_of_every_region_has_an_index_of_its_own() {
    let region = |start: u64, pages: u64| RegionSpec { start: GuestAddr(start << 30), pages: PageCount(pages) };
    let layout = MemoryLayout::new(vec![region(0, 512 * 3), region(1, 64 * 5), region(2, 512), region(3, 64 * 17 + 1)]).unwrap();
    let mut seen = std::collections::BTreeMap::new();
    for chunk in (0..layout.chunks()).map(ChunkIndex) {
        let (region, within) = layout.locate(chunk).unwrap();
        let offset = usize::try_from(within.bytes().0).unwrap();
        let index = Extents::index(layout.first_chunk(region), region, offset);
        assert!(index < Extents::new(&layout).extents.len());
        assert_eq!(*seen.entry(index).or_insert((region, offset / HUGE_PAGE_SIZE)), (region, offset / HUGE_PAGE_SIZE));
    }
    assert_eq!(seen.len(), 3 + 1 + 1 + 3);
}
