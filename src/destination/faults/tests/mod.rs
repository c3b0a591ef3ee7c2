//! Guests without a network: the pages come from this process.

mod discards;
mod guests;
mod lanes;
mod races;
mod touching;

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::places::run_mask;
use super::{Incomplete, Installer};
use crate::bitmap::PageBitmap;
use crate::destination::MissingError;
use crate::memory::{Backing, GuestMemory, MemoryLayout, PageSink, RegionSpec, Staging};
use crate::transport::{Stream, StreamControl};
use crate::units::{ChunkIndex, GuestAddr, PAGE_SIZE, PageCount, PageIndex};
use crate::wire::{Lane, Message, decode_message};

/// Every kind of memory that can be had here, by turns.
fn each_backing(mut test: impl FnMut(Backing)) {
    for backing in [Backing::Anonymous, Backing::Memfd, Backing::HugeTlb] {
        let trial = GuestMemory::allocate(MemoryLayout::flat(PageCount(8 * 512)).unwrap(), backing).map_err(|error| error.to_string());
        let usable = trial.and_then(|memory| Incomplete::probe(&memory).map_err(|error| crate::Error::from(error).in_full()));
        match usable {
            Ok(granule) => {
                assert_eq!(granule, PageCount(if backing == Backing::HugeTlb { 512 } else { 1 }));
                test(backing);
            }
            Err(error) => eprintln!("skipped: {backing} memory: {error}"),
        }
    }
}

/// Whether pages can be brought in here at all.
fn usable() -> bool {
    let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(1)).unwrap(), Backing::Anonymous).unwrap();
    let usable = Incomplete::probe(&memory);
    if let Err(error) = &usable {
        eprintln!("skipped: {error}: {:?}", std::error::Error::source(error).map(ToString::to_string));
    }
    usable.is_ok()
}

/// What a page holds at the source: every fifth is empty.
fn content(page: PageIndex, index: usize) -> u64 {
    if page.0 % 5 == 4 { 0 } else { (page.0 << 16 | index as u64 | 1 << 60).wrapping_mul(0x9E37_79B9_7F4A_7C15) }
}

/// What the pages that are not missing hold here.
fn old(page: PageIndex) -> u64 {
    if page.0.is_multiple_of(3) { 0 } else { page.0 | 1 << 50 }
}

/// The page as a source has it whose pages are made up.
fn made_up(page: PageIndex, bytes: &mut [u8; PAGE_SIZE]) {
    bytes.as_chunks_mut::<8>().0.iter_mut().zip(0..).for_each(|(word, index)| *word = content(page, index).to_le_bytes());
}

/// Gives the contents of a page.
type Contents = Box<dyn Fn(PageIndex, &mut [u8; PAGE_SIZE]) + Send + Sync>;

/// The side that has the pages: each goes out once.
struct Source {
    page: Contents,
    layout: MemoryLayout,
    /// Chunks of which pages go out together.
    together: u32,
    left: Mutex<PageBitmap>,
}

impl Source {
    fn new(layout: &MemoryLayout, backing: Backing, missing: &PageBitmap) -> Self {
        Self::with(made_up, layout, backing, missing)
    }

    fn with(
        page: impl Fn(PageIndex, &mut [u8; PAGE_SIZE]) + Send + Sync + 'static,
        layout: &MemoryLayout,
        backing: Backing,
        missing: &PageBitmap,
    ) -> Self {
        let together = if backing == Backing::HugeTlb { 8 } else { 1 };
        Self { page: Box::new(page), layout: layout.clone(), together, left: Mutex::new(missing.clone()) }
    }

    fn send(&self, installer: &mut Installer, chunk: ChunkIndex, mask: u64) -> Result<PageCount, MissingError> {
        send_as(&self.page, installer, chunk, mask)
    }

    /// Claims the pages of `mask`, or of the huge page around it, and returns what has not been claimed before.
    fn claim(&self, chunk: ChunkIndex, mask: u64) -> Vec<(ChunkIndex, u64)> {
        let mut left = self.left.lock().unwrap();
        let (region, within) = self.layout.locate(chunk).unwrap();
        let first = chunk.0 - u32::try_from(within.0 / 64).unwrap() % self.together;
        let mask = if self.together == 1 { mask } else { u64::MAX };
        let chunks = (first..first + self.together).map(ChunkIndex);
        let chunks = chunks.filter(|&chunk| self.layout.locate(chunk).is_some_and(|(other, _)| other == region));
        let mut claimed = Vec::new();
        for chunk in chunks {
            let word = &mut left.words_mut()[chunk.as_usize()];
            let mine = *word & mask;
            *word &= !mine;
            if mine != 0 {
                claimed.push((chunk, mine));
            }
        }
        claimed
    }

    /// Claims some of what is left.
    fn claim_any(&self) -> Vec<(ChunkIndex, u64)> {
        let next = self.left.lock().unwrap().occupied().next();
        next.map_or_else(Vec::new, |(chunk, mask)| self.claim(chunk, mask))
    }

    /// Sends all that is left.
    fn push(&self, installer: &mut Installer) {
        loop {
            let claimed = self.claim_any();
            if claimed.is_empty() {
                return;
            }
            for (chunk, mask) in claimed {
                self.send(installer, chunk, mask).unwrap();
            }
        }
    }
}

/// Has made-up pages arrive.
fn send(installer: &mut Installer, chunk: ChunkIndex, mask: u64) -> Result<PageCount, MissingError> {
    send_as(made_up, installer, chunk, mask)
}

fn send_as(
    page: impl Fn(PageIndex, &mut [u8; PAGE_SIZE]),
    installer: &mut Installer,
    chunk: ChunkIndex,
    mask: u64,
) -> Result<PageCount, MissingError> {
    let mut staging = Staging::new();
    staging.begin(chunk, mask);
    for bit in (0..64).filter(|bit| mask >> bit & 1 == 1) {
        let mut bytes = [0; PAGE_SIZE];
        page(chunk.page(bit), &mut bytes);
        if bytes == [0; PAGE_SIZE] {
            staging.write_zero(chunk, bit);
        } else {
            staging.write_page(chunk, bit, &bytes);
        }
    }
    installer.install(&staging)
}

/// Memory of which pages are missing, and where they are.
struct Setup {
    memory: Arc<GuestMemory>,
    missing: PageBitmap,
    incomplete: Arc<Incomplete>,
    source: Arc<Source>,
}

impl Setup {
    /// Two regions, of which `is_missing` says what is missing (by granules); what is not has been here before.
    fn new(backing: Backing, is_missing: impl Fn(PageIndex) -> bool) -> Self {
        let region = |start, pages| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) };
        let layout = MemoryLayout::new(vec![region(0, 1024 + 70), region(0x1000_0000, 512)]).unwrap();
        Self::of(&layout, backing, is_missing)
    }

    fn of(layout: &MemoryLayout, backing: Backing, is_missing: impl Fn(PageIndex) -> bool) -> Self {
        let memory = Arc::new(GuestMemory::allocate(layout.clone(), backing).unwrap());
        let mut missing = PageBitmap::new(layout.chunks());
        let together = if backing == Backing::HugeTlb { 8 } else { 1 };
        for chunk in (0..layout.chunks()).map(ChunkIndex) {
            let (region, within) = layout.locate(chunk).unwrap();
            let first = layout.first_chunk(region).0 + u32::try_from(within.0 / 64).unwrap() / together * together;
            for bit in (0..64).filter(|bit| layout.valid_mask(chunk) >> bit & 1 == 1) {
                let page = if together == 1 { chunk.page(bit) } else { ChunkIndex(first).page(0) };
                if is_missing(page) {
                    missing.insert(chunk.page(bit));
                }
                // What is missing now may have been here in an older version.
                let held = if is_missing(page) { 0xdead } else { old(chunk.page(bit)) };
                if held != 0 {
                    memory.chunk(chunk).store_word(bit, 7, held);
                }
            }
        }
        let incomplete = Incomplete::begin(Arc::clone(&memory), &missing, None).unwrap();
        let source = Arc::new(Source::new(layout, backing, &missing));
        Self { memory, missing, incomplete, source }
    }

    fn pages(&self) -> impl Iterator<Item = PageIndex> + '_ {
        let layout = self.memory.layout();
        let chunks = (0..layout.chunks()).map(ChunkIndex);
        chunks.flat_map(move |chunk| (0..64).filter(move |bit| layout.valid_mask(chunk) >> bit & 1 == 1).map(move |bit| chunk.page(bit)))
    }

    /// A lane on which the source answers requests.
    fn connect(&self) -> Answering {
        Answering::connect(&self.incomplete, &self.source)
    }

    /// Everything that is left arrives, and the memory is let go.
    fn complete(&self) -> super::FaultStats {
        self.source.push(&mut self.incomplete.installer(Lane::Bulk(0)));
        // What was asked for is on its way.
        until("all has come", || self.incomplete.outstanding() == PageCount(0));
        self.incomplete.finish()
    }

    /// What a page must read as at word 7, when it has not been removed or written to.
    fn expected(&self, page: PageIndex) -> u64 {
        if self.missing.contains(page) { content(page, 7) } else { old(page) }
    }

    fn load(&self, page: PageIndex) -> u64 {
        self.memory.chunk(page.chunk()).load_word(page.bit(), 7)
    }

    fn check(&self) {
        self.pages().for_each(|page| assert_eq!(self.load(page), self.expected(page), "{page:?}"));
        for page in self.pages().filter(|&page| self.missing.contains(page)) {
            let chunk = self.memory.chunk(page.chunk());
            (0..512).for_each(|index| assert_eq!(chunk.load_word(page.bit(), index), content(page, index), "{page:?} at {index}"));
        }
    }
}

/// The source's end of a lane; dropping it ends the lane.
struct Answering {
    control: StreamControl,
    thread: Option<JoinHandle<u64>>,
}

impl Answering {
    fn connect(incomplete: &Arc<Incomplete>, source: &Arc<Source>) -> Self {
        let (ours, theirs) = Stream::pair().unwrap();
        let control = theirs.control();
        let (source, installer) = (Arc::clone(source), incomplete.installer(Lane::Urgent));
        let thread = std::thread::spawn(move || answer(theirs, &source, installer));
        incomplete.connect(ours);
        Self { control, thread: Some(thread) }
    }

    /// Ends the lane and says how many pages were asked for on it.
    fn end(mut self) -> u64 {
        self.control.shut_down();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.control.shut_down();
    }
}

/// Answers requests until the stream ends; how many pages were asked for.
fn answer(mut stream: Stream, source: &Source, mut installer: Installer) -> u64 {
    let mut requests = Requests::default();
    let mut asked = 0;
    while let Some(pages) = requests.next(&mut stream) {
        asked += pages.len() as u64;
        for page in pages {
            for (chunk, mask) in source.claim(page.chunk(), run_mask(page.bit(), 1)) {
                source.send(&mut installer, chunk, mask).unwrap();
            }
        }
    }
    asked
}

/// Reads requests from a stream.
#[derive(Default)]
struct Requests {
    buffer: Vec<u8>,
}

impl Requests {
    fn next(&mut self, stream: &mut Stream) -> Option<Vec<PageIndex>> {
        loop {
            if let Some((message, consumed)) = decode_message(&self.buffer).unwrap() {
                self.buffer.drain(..consumed);
                let Message::Fetch { pages } = message else { panic!("a lane carries requests only") };
                return Some(pages);
            }
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.buffer.extend_from_slice(&bytes[..read]),
            }
        }
    }
}

/// Something that may wait for pages, on a thread of its own: a test that fails must not wait for it.
struct Waiter<T> {
    result: Receiver<T>,
}

fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Waiter<T> {
    let (tell, result) = channel();
    std::thread::spawn(move || tell.send(work()));
    Waiter { result }
}

impl<T> Waiter<T> {
    /// It ends, and soon.
    fn end(self) -> T {
        self.result.recv_timeout(LONG).expect("nothing waits for ever")
    }

    fn assert_waits(&self) {
        match self.result.recv_timeout(Duration::from_millis(50)) {
            Err(RecvTimeoutError::Timeout) => {}
            other => panic!("it does not wait: {}", other.is_ok()),
        }
    }
}

/// Waits until something becomes true.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const LONG: Duration = Duration::from_secs(20);
