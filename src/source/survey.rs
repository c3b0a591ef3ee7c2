//! A look at a running guest before anything is moved: what would moving it cost?
//!
//! Tracks the guest for a while and peeks at times that grow by a factor, as round 0 of a migration does, harvests once,
//! as is done after it, and packs a sample of its chunks: as a migration would, in each way that it chooses from, for what
//! pages cost the first time, and some of those that get dirty against an earlier copy of theirs, for what they cost again.
//! The guest pays for the tracking while it lasts.

use std::time::{Duration, Instant};

use super::watch::DirtyWatch;
use crate::bitmap::PageBitmap;
use crate::dirty::DirtyTracker;
use crate::error::Error;
use crate::guest::Guest;
use crate::memory::GuestMemory;
use crate::page::{Codecs, Encoder, EncoderSettings, Method, PageKey, Work};
use crate::policy::{MeasuredGuest, PageCost};
use crate::units::{ByteCount, PAGE_SIZE, PageCount, PagesPerSec};
use crate::wire::FrameWriter;

/// Watches a running guest for `time`, and samples its memory.
///
/// # Errors
/// When it cannot be tracked, or does not pause for a tracker that needs that; it runs on.
pub fn survey(guest: &mut dyn Guest, memory: &GuestMemory, tracker: &mut dyn DirtyTracker, time: Duration) -> Result<MeasuredGuest, Error> {
    let surveyed = track(guest, memory, tracker, time);
    let stopped = tracker.stop();
    let surveyed = surveyed?;
    stopped?;
    Ok(surveyed)
}

fn track(guest: &mut dyn Guest, memory: &GuestMemory, tracker: &mut dyn DirtyTracker, time: Duration) -> Result<MeasuredGuest, Error> {
    let mut populated = PageBitmap::new(memory.layout().chunks());
    tracker.start(&mut populated)?;
    let began = Instant::now();
    let mut watch = DirtyWatch::new(memory, &populated);
    // The harvest at the end is the last look.
    while watch.next_look().recv_timeout(time.saturating_sub(began.elapsed())).is_ok() {
        watch.look(tracker, memory)?;
    }
    let asked = Instant::now();
    let mut pending = PageBitmap::new(memory.layout().chunks());
    harvest(guest, tracker, &mut pending)?;
    let round_cost = asked.elapsed();
    watch.finish(&mut pending, PageCount(0));
    let reach = watch.reach(memory, &pending);
    let sample = populated.spread(SAMPLE);
    // The first look finds the memory in no cache, whatever the method.
    First::of(memory, &sample, METHODS[0]);
    let looks: Vec<First> = METHODS.map(|method| First::of(memory, &sample, method)).into();
    Ok(MeasuredGuest {
        memory: memory.layout().bytes(),
        reach,
        pages: looks[0].full_of(populated.count()),
        again_bytes: watch.again_bytes().unwrap_or_else(|| looks.iter().map(|look| look.cost.bytes).fold(PAGE_SIZE as f64, f64::min)),
        first: looks.into_iter().map(|look| look.cost).collect(),
        curve: watch.into_curve(),
        round_cost,
    })
}

/// Harvests, with the guest paused where the tracker needs it.
fn harvest(guest: &mut dyn Guest, tracker: &mut dyn DirtyTracker, into: &mut PageBitmap) -> Result<(), Error> {
    if !tracker.needs_pause() {
        return Ok(tracker.harvest(into)?);
    }
    guest.pause()?;
    let harvested = tracker.harvest(into);
    guest.resume()?;
    Ok(harvested?)
}

/// What pages cost the first time, by one way to pack them.
struct First {
    /// Pages that are not all zeros, of those looked at.
    full_share: f64,
    /// A page, those left out.
    cost: PageCost,
}

impl First {
    fn of(memory: &GuestMemory, sample: &PageBitmap, method: Method) -> Self {
        let settings = EncoderSettings { codecs: Codecs::built_in(), key: PageKey::derive(&NO_TOKEN), delta_cache: ByteCount(0) };
        let mut frames = FrameWriter::new(Encoder::new(settings, memory.layout().chunks()));
        let (mut all, mut full, mut bytes) = (0, 0, 0);
        let mut buffer = Vec::new();
        let began = Instant::now();
        for (chunk, mask) in sample.occupied() {
            let work = Work { round: 0, chunk, memory: memory.chunk(chunk), mask, method };
            let masks = frames.push_chunk(&mut buffer, work).pages.masks;
            all += masks.all().count_ones();
            full += (masks.all() & !masks.zero).count_ones();
            bytes += buffer.len();
            buffer.clear();
        }
        let seconds = began.elapsed().as_secs_f64().max(1e-9);
        Self {
            full_share: f64::from(full) / f64::from(all.max(1)),
            cost: PageCost {
                bytes: if full > 0 { bytes as f64 / f64::from(full) } else { MASK_BYTES },
                processors: PagesPerSec(f64::from(full.max(1)) / seconds * workers()),
            },
        }
    }

    /// How many of `pages` are not all zeros.
    fn full_of(&self, pages: PageCount) -> PageCount {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
        PageCount((pages.0 as f64 * self.full_share).ceil() as u64)
    }
}

/// Workers of a migration by default, if there are processors for them.
fn workers() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get().min(2) as f64)
}

/// What a migration chooses from, but for the tightest, which pay on the slowest links only.
const METHODS: [Method; 3] = [Method::Raw, Method::Lz4, Method::Zstd(1)];
/// Nothing leaves this process.
const NO_TOKEN: [u8; 16] = [0; 16];
const SAMPLE: PageCount = PageCount(4096);
/// Of a page that costs no bytes of its own.
const MASK_BYTES: f64 = 1.0;
