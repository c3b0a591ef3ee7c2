//! What is known of a guest's pages while it runs: which are to be sent, and where it writes.
//!
//! The pending set is the driver's. A harvest moves bits from the tracker into it; a round takes it whole, but for what is
//! [held back](super::overlap), and what a halted round did not send comes back. See [`dirty`](crate::dirty) for the life of a bit.

use std::time::Duration;

use crossbeam::channel::select;

use super::driver::Driver;
use super::overlap::Overlap;
use super::round::Round;
use super::session::{Session, session_error};
use super::watch::DirtyWatch;
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::policy::{Bottleneck, Decision, Policy, Reason, SAMPLE_PAGES, Verdict};
use crate::units::{ByteCount, BytesPerSec, PageCount};

/// What is known of a guest's pages since its tracking began.
pub(super) struct Tracking {
    /// To be sent. First what was populated then, which is round 0: a page populated later is reported as written.
    pub(super) pending: PageBitmap,
    pub(super) watch: DirtyWatch,
    overlap: Overlap,
}

impl Driver<'_> {
    /// Begins tracking, while the destination gets ready, unless there is nothing to track for, the guest waits for others
    /// first, or is so large that the destination would be waiting for this.
    pub(super) fn track_early(&mut self) -> Result<Option<Tracking>, Error> {
        let first = Policy::new(self.steering.limits(), self.memory.layout().bytes()).start().decision;
        let is_large = self.memory.layout().bytes() > TRACKED_EARLY;
        if is_large || !self.standing.is_alone() || !matches!(first, Decision::Round | Decision::PostCopy) {
            return Ok(None);
        }
        self.tracking(None).map(Some)
    }

    /// Tracking that has begun: by now, if not before.
    pub(super) fn tracking(&mut self, begun: Option<Tracking>) -> Result<Tracking, Error> {
        if let Some(tracking) = begun {
            return Ok(tracking);
        }
        let chunks = self.memory.layout().chunks();
        let mut pending = PageBitmap::new(chunks);
        self.tracker.start(&mut pending)?;
        let watch = DirtyWatch::new(self.memory, &pending);
        Ok(Tracking { pending, watch, overlap: Overlap::default() })
    }

    /// Waits until a busy guest has shown where it writes.
    pub(super) fn first_look(&mut self, session: &Session<'_>, watch: &mut DirtyWatch) -> Result<(), Error> {
        select! {
            recv(session.pump.ended()) -> ended => Err(session_error(ended.ok())),
            recv(self.steering.cancelled()) -> _ => Err(Error::Cancelled),
            recv(watch.next_look()) -> _ => Ok(watch.look(self.tracker, self.memory)?),
        }
    }

    /// Harvests, with the guest paused where the tracker needs it.
    pub(super) fn harvest(&mut self, pending: &mut PageBitmap) -> Result<(), Error> {
        if !self.tracker.needs_pause() {
            return Ok(self.tracker.harvest(pending)?);
        }
        self.hold.pause()?;
        let harvested = self.tracker.harvest(pending);
        self.hold.resume()?;
        Ok(harvested?)
    }
}

impl Tracking {
    /// Takes what the next round sends out of what is pending: all of it but for what is held back for the one after it, in
    /// which the link may be `idle` for so long for each page; or the sample that was asked for.
    pub(super) fn take_round(&mut self, verdict: Option<Verdict>, idle: Option<Duration>) -> PageBitmap {
        let Self { pending, watch, overlap } = self;
        let mut taken = std::mem::replace(pending, PageBitmap::new(pending.chunks()));
        if verdict.is_some_and(|verdict| verdict.reason == Reason::Sampling) {
            let mut sent_before = taken.clone();
            sent_before.subtract(watch.never_sent());
            let sample = sent_before.spread(SAMPLE_PAGES);
            *pending = taken;
            pending.subtract(&sample);
            return sample;
        }
        if let Some(held_back) = idle.and_then(|idle| overlap.hold_back(&taken, watch.never_sent(), idle)) {
            taken.subtract(&held_back);
            *pending = held_back;
        }
        taken
    }

    /// Takes note that a round is going to send these `pages`.
    pub(super) fn sends(&mut self, index: u32, pages: &PageBitmap) {
        if index > 0 {
            self.watch.sends(pages);
        }
    }

    /// A round was sent, and what it did not send is pending again: how many pages of it went for the first time.
    pub(super) fn sent(&mut self, round: &Round) -> PageCount {
        if let Some(unsent) = &round.unsent {
            self.pending.union_with(unsent);
        }
        if round.index > 0 {
            return self.watch.sent_all_but(round.unsent.as_ref());
        }
        self.watch.skipped(round.skipped.as_ref(), round.unsent.as_ref());
        round.pages
    }

    /// A round has arrived, after waiting for `bottleneck`, as things do at `rate`.
    pub(super) fn settled(&mut self, round: &Round, bottleneck: Bottleneck, rate: BytesPerSec) {
        if round.index == 0 {
            let filled = PageCount(round.pages.0.saturating_sub(round.empty.0));
            self.overlap.after_whole_pages(bottleneck, filled, round.bytes, rate);
        }
    }
}

/// Guests of up to so much memory are tracked in some tens of milliseconds.
const TRACKED_EARLY: ByteCount = ByteCount(64 << 30);
