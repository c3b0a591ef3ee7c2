//! What a fault costs on this host by itself: everything that post-copy does for it but the network.

use std::hint::black_box;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::latency::Latencies;
use super::places::{HUGE_PAGES, for_each_word};
use super::{Incomplete, Installer};
use crate::bitmap::PageBitmap;
use crate::destination::MissingError;
use crate::error::Error;
use crate::memory::{Backing, GuestMemory, MemoryError, MemoryLayout, PageSink, Staging};
use crate::sys::priority;
use crate::transport::{Stream, TransportError};
use crate::units::{CHUNK_PAGES, ChunkIndex, PAGE_SIZE, PageCount, PageIndex};
use crate::wire::{Lane, Message, decode_message};

/// How long a thread waited at pages that were missing and at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalFaults {
    /// Half of the times took no longer.
    pub p50: Duration,
    /// All but a hundredth.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
    /// Pages that were brought meanwhile without being asked for.
    pub bulk: PageCount,
}

/// Measures `faults` of them, one after another, on memory of this kind. A thread of this process answers requests as a
/// source would, through a socket; another one brings up to `bulk` other pages meanwhile, without a break.
///
/// # Errors
/// When this host does not allow it, or has not the memory.
///
/// # Panics
/// When a thread cannot be started.
pub fn local_faults(backing: Backing, faults: u32, bulk: PageCount) -> Result<LocalFaults, Error> {
    let granule = if backing == Backing::HugeTlb { HUGE_PAGES } else { 1 };
    let touched = u64::from(faults) * granule;
    let first = touched.next_multiple_of(CHUNK_PAGES as u64);
    let others = first..first + bulk.0.next_multiple_of(HUGE_PAGES);
    let layout = MemoryLayout::flat(PageCount(others.end)).map_err(MemoryError::from)?;
    let mut missing = PageBitmap::new(layout.chunks());
    missing.insert_run(PageIndex(0), PageCount(touched));
    missing.insert_run(PageIndex(others.start), PageCount(others.end - others.start));
    let memory = Arc::new(GuestMemory::allocate(layout, backing)?);
    let incomplete = Incomplete::begin(Arc::clone(&memory), &missing, None)?;
    let (ours, theirs) = Stream::pair().map_err(|source| MissingError::System { action: "make a pair of sockets", source })?;
    let control = theirs.control();
    incomplete.connect(ours);
    let done = AtomicBool::new(false);
    let (times, brought) = thread::scope(|scope| {
        let answering = scope.spawn(|| answer(theirs, &incomplete, granule));
        let bringing = scope.spawn(|| bring(&incomplete, PageIndex(others.start).chunk()..PageIndex(others.end).chunk(), &done));
        let mut times = Latencies::new();
        for page in (0..u64::from(faults)).map(|fault| PageIndex(fault * granule)) {
            let begin = Instant::now();
            black_box(memory.chunk(page.chunk()).load_word(page.bit(), 0));
            times.add(begin.elapsed());
        }
        // Relaxed: says only when.
        done.store(true, Ordering::Relaxed);
        let brought = bringing.join().expect("it does not panic")?;
        control.shut_down();
        answering.join().expect("it does not panic")?;
        Ok::<_, Error>((times, brought))
    })?;
    incomplete.finish();
    Ok(LocalFaults { p50: times.quantile(0.5), p99: times.quantile(0.99), max: times.max(), bulk: brought })
}

/// Answers requests until the stream ends. Of a huge page the first page is asked for and all are sent.
fn answer(mut stream: Stream, incomplete: &Arc<Incomplete>, granule: u64) -> Result<(), Error> {
    priority::raise();
    let mut installer = incomplete.installer(Lane::Urgent);
    let mut staging = Staging::new();
    let (mut buffer, mut filled) = (vec![0; 4096], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).map_err(|source| TransportError::Broken { lane: Lane::Urgent.to_string(), source })?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        while let Some((message, consumed)) = decode_message(&buffer[..filled])? {
            let Message::Fetch { pages } = message else { unreachable!("only requests are written to this stream") };
            for page in pages {
                let mut installed = Ok(());
                for_each_word(page, granule, |chunk, mask| {
                    if installed.is_ok() {
                        installed = install(&mut installer, &mut staging, chunk, mask);
                    }
                });
                installed?;
            }
            buffer.copy_within(consumed..filled, 0);
            filled -= consumed;
        }
    }
}

/// Brings the pages of `chunks`, and says how many came before the others were `done`.
fn bring(incomplete: &Arc<Incomplete>, chunks: Range<ChunkIndex>, done: &AtomicBool) -> Result<PageCount, Error> {
    let mut installer = incomplete.installer(Lane::Bulk(0));
    let mut staging = Staging::new();
    let mut before = PageCount(0);
    for chunk in (chunks.start.0..chunks.end.0).map(ChunkIndex) {
        install(&mut installer, &mut staging, chunk, u64::MAX)?;
        if !done.load(Ordering::Relaxed) {
            before += PageCount(CHUNK_PAGES as u64);
        }
    }
    Ok(before)
}

fn install(installer: &mut Installer, staging: &mut Staging, chunk: ChunkIndex, mask: u64) -> Result<(), MissingError> {
    staging.begin(chunk, mask);
    let mut left = mask;
    while left != 0 {
        staging.write_page(chunk, left.trailing_zeros(), &[0xa5; PAGE_SIZE]);
        left &= left - 1;
    }
    installer.install(staging)?;
    Ok(())
}
