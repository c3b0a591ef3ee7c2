use std::io::{Read, Write};
use std::time::Duration;

use crossbeam::channel::{Receiver, unbounded};

use super::*;
use crate::bitmap::PageBitmap;
use crate::memory::{Backing, MemoryLayout};
use crate::page::{Codecs, PageKey};
use crate::transport::Pacer;
use crate::units::{ByteCount, PageIndex};
use crate::wire::{FrameBody, FrameReader, Message};

const CHUNKS: u32 = 40;
const SOON: Duration = Duration::from_secs(20);

fn memory() -> GuestMemory {
    GuestMemory::allocate(MemoryLayout::flat(PageCount(u64::from(CHUNKS) * 64)).unwrap(), Backing::Anonymous).unwrap()
}

/// Memory with zeros, uniform pages and pages that are like no other.
fn filled() -> GuestMemory {
    let memory = memory();
    for chunk in (0..CHUNKS).map(ChunkIndex) {
        for bit in 0..64 {
            let page = chunk.page(bit).0;
            for index in 0..512 {
                let word = match page % 4 {
                    0 => 0,
                    1 => page,
                    _ => (page << 9 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                };
                memory.chunk(chunk).store_word(bit, index, word);
            }
        }
    }
    memory
}

fn all() -> PageBitmap {
    let mut pages = PageBitmap::new(CHUNKS);
    pages.insert_run(PageIndex(0), PageCount(u64::from(CHUNKS) * 64));
    pages
}

/// The destination's ends of the lanes.
struct Peer {
    bulk: Vec<Stream>,
    urgent: Stream,
}

fn lanes(bulk: u16) -> (Lanes, Peer) {
    let (here, there): (Vec<_>, Vec<_>) = (0..bulk).map(|_| Stream::pair().unwrap()).unzip();
    let (urgent, other) = Stream::pair().unwrap();
    (Lanes { bulk: here, urgent }, Peer { bulk: there, urgent: other })
}

struct Setup {
    memory: GuestMemory,
    pacer: Pacer,
    counters: Counters,
}

impl Setup {
    fn new() -> Self {
        Self { memory: filled(), pacer: Pacer::new(None), counters: Counters::default() }
    }

    fn service(&self, granule: Granule, prepaging: Prepaging) -> Service<'_> {
        Service {
            memory: &self.memory,
            allotment: Allotment::new(&self.pacer, None),
            compression: Compression::Auto,
            encoder: EncoderSettings { codecs: Codecs::built_in(), key: PageKey::derive(&[7; 16]), delta_cache: ByteCount(0) },
            granule,
            prepaging,
            counters: &self.counters,
        }
    }
}

fn ask(lane: &Stream, pages: &[u64]) {
    let mut bytes = Vec::new();
    Message::Fetch { pages: pages.iter().copied().map(PageIndex).collect() }.encode(&mut bytes).unwrap();
    lane.share().write_all(&bytes).unwrap();
}

/// Frames as they arrive: lane (the last is the urgent one), chunk, pages.
type Arrivals = Receiver<(usize, ChunkIndex, u64)>;

/// Reads all lanes into `memory` on threads of their own.
fn arrive<'scope>(scope: &'scope Scope<'scope, '_>, memory: &'scope GuestMemory, peer: &Peer) -> Arrivals {
    let (to, arrivals) = unbounded();
    for (lane, stream) in peer.bulk.iter().chain([&peer.urgent]).enumerate() {
        let (mut stream, to) = (stream.share(), to.clone());
        scope.spawn(move || {
            let mut frames = FrameReader::post_copy(0, Codecs::built_in());
            let (mut buffer, mut piece) = (Vec::new(), vec![0; 1 << 16]);
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                buffer.extend_from_slice(&piece[..read]);
                while let Some(header) = frames.apply_bytes(&buffer, memory.layout(), &mut memory.placement()).unwrap() {
                    buffer.drain(..header.frame_bytes());
                    let FrameBody::Chunk { chunk, pages } = header.body else { panic!("{header:?}") };
                    to.send((lane, chunk, pages.masks.all())).unwrap();
                }
            }
        });
    }
    arrivals
}

fn assert_same(there: &GuestMemory, here: &GuestMemory) {
    for page in (0..CHUNKS).map(ChunkIndex).flat_map(|chunk| (0..64).map(move |bit| (chunk, bit))) {
        let word = |memory: &GuestMemory, index| memory.chunk(page.0).load_word(page.1, index);
        assert!((0..512).all(|index| word(there, index) == word(here, index)), "{page:?}");
    }
}

/// Serves everything and asks for `asked` meanwhile; the frames in the order in which they came.
fn serve_all(granule: Granule, prepaging: Prepaging, asked: &[&[u64]]) -> (Pushed, Vec<(usize, ChunkIndex, u64)>) {
    let (setup, there) = (Setup::new(), memory());
    let (lanes, peer) = lanes(2);
    let mut frames = Vec::new();
    std::thread::scope(|scope| {
        let arrivals = arrive(scope, &there, &peer);
        let serving = serve(scope, setup.service(granule, prepaging), &all(), vec![ChunkIndex(30)], lanes).unwrap();
        asked.iter().for_each(|pages| ask(&peer.urgent, pages));
        let mut seen = PageBitmap::new(CHUNKS);
        while seen != all() {
            let (lane, chunk, pages) = arrivals.recv_timeout(SOON).expect("all pages come");
            assert_eq!(seen.word(chunk) & pages, 0, "twice");
            seen.insert_word(chunk, pages);
            frames.push((lane, chunk, pages));
        }
        assert_eq!(serving.left(), PageCount(0));
        assert!(serving.broken().is_empty());
        serving.stop();
    });
    assert_same(&there, &setup.memory);
    let pages = setup.counters.encodings();
    assert_eq!((pages.zero, pages.uniform), (PageCount(u64::from(CHUNKS) * 16), PageCount(u64::from(CHUNKS) * 16)));
    (setup.counters.pushed(), frames)
}

#[test]
fn every_page_arrives_once_whether_it_is_asked_for_or_not() {
    for prepaging in [Prepaging::Push, Prepaging::OnePivot, Prepaging::Pivots] {
        let (pushed, frames) = serve_all(Granule::Page, prepaging, &[&[1, 2, 3], &[2000], &[2001], &[2001, 64 * 40 - 1]]);
        assert_eq!(pushed.urgent.pages + pushed.bulk.pages, PageCount(64 * 40));
        assert_eq!(frames.iter().map(|(.., pages)| u64::from(pages.count_ones())).sum::<u64>(), 64 * 40);
        assert!(pushed.requests <= 7);
    }
}

#[test]
fn on_demand_only_what_is_asked_for_crosses() {
    let (setup, there) = (Setup::new(), memory());
    let (lanes, peer) = lanes(1);
    std::thread::scope(|scope| {
        let arrivals = arrive(scope, &there, &peer);
        let serving = serve(scope, setup.service(Granule::Page, Prepaging::Demand), &all(), Vec::new(), lanes).unwrap();
        ask(&peer.urgent, &[70, 6]);
        ask(&peer.urgent, &[70, 7]);
        let frames: Vec<_> = (0..3).map(|_| arrivals.recv_timeout(SOON).unwrap()).collect();
        assert_eq!(frames, [(1, ChunkIndex(1), 1 << 6), (1, ChunkIndex(0), 1 << 6), (1, ChunkIndex(0), 1 << 7)]);
        assert_eq!(serving.left(), PageCount(64 * 40 - 3));
        serving.stop();
    });
    let pushed = setup.counters.pushed();
    assert_eq!((pushed.requests, pushed.urgent.pages, pushed.bulk), (4, PageCount(3), Traffic::default()));
}

#[test]
fn a_huge_page_crosses_on_one_lane_in_one_go() {
    let (_, frames) = serve_all(Granule::HugePage, Prepaging::Pivots, &[&[64 * 20 + 5]]);
    for lane in 0..3 {
        let chunks: Vec<_> = frames.iter().filter(|frame| frame.0 == lane).map(|frame| frame.1.0).collect();
        assert!(chunks.chunks(8).all(|huge| huge.iter().copied().eq(huge[0] / 8 * 8..huge[0] / 8 * 8 + 8)), "lane {lane}: {chunks:?}");
    }
}

#[test]
fn a_lane_that_breaks_is_named_and_the_generation_can_be_stopped() {
    for (broken, name) in [(0, "bulk 0"), (1, "bulk 1"), (2, "urgent")] {
        let setup = Setup::new();
        let (lanes, peer) = lanes(2);
        std::thread::scope(|scope| {
            let serving = serve(scope, setup.service(Granule::Page, Prepaging::Demand), &all(), Vec::new(), lanes).unwrap();
            peer.bulk.iter().chain([&peer.urgent]).nth(broken).unwrap().control().shut_down();
            let error = serving.broken().recv_timeout(SOON).unwrap().in_full();
            assert!(error.contains(name), "{error}");
            serving.stop();
        });
    }
}

#[test]
fn nonsense_on_a_lane_is_an_error() {
    let fetch = |page| Message::Fetch { pages: vec![PageIndex(page)] };
    let cases = [(fetch(64 * 40), "no page 2560"), (fetch(u64::MAX), "no page 18446744073709551615"), (Message::Ping, "Ping")];
    for (message, words) in cases {
        let setup = Setup::new();
        let (lanes, mut peer) = lanes(1);
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        std::thread::scope(|scope| {
            let serving = serve(scope, setup.service(Granule::Page, Prepaging::Demand), &all(), Vec::new(), lanes).unwrap();
            peer.urgent.write_all(&bytes).unwrap();
            let error = serving.broken().recv_timeout(SOON).unwrap().in_full();
            assert!(error.contains(words), "{error}");
        });
    }
}

#[test]
fn a_generation_stops_while_nobody_reads() {
    let setup = Setup::new();
    let (lanes, _peer) = lanes(2);
    std::thread::scope(|scope| {
        let serving = serve(scope, setup.service(Granule::Page, Prepaging::Push), &all(), Vec::new(), lanes).unwrap();
        while serving.left() == PageCount(64 * 40) {
            std::thread::yield_now();
        }
        let broken = serving.broken().clone();
        serving.stop();
        assert!(broken.is_empty(), "a stop is no error");
    });
}
