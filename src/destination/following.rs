//! Post-copy at the destination: the guest runs, its memory follows.
//!
//! From [`Following::begin`] until the last page is there the memory belongs to [`Incomplete`], which never lets go of it
//! before. Connections come and go meanwhile: each time the source comes back it is told what has arrived, and attaches a
//! new generation of lanes.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::admission::MissingMemory;
use super::faults::{FaultStats, Incomplete};
use super::ledger::Ledger;
use super::shared::Shared;
use super::standstill::Quiet;
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::stats::{FaultTimes, PostCopyReport, Report, RoundKind, RoundReport, ThreadLoss};
use crate::units::PageCount;
use crate::wire::{ChannelTotals, Features, Offer};

/// What of the features on offer this end has for such memory, and how many pages of it can be filled at once.
pub(super) fn post_copy_for(offer: &Offer, memory: &GuestMemory) -> (Features, u16) {
    if !offer.features.contains(Features::POST_COPY) {
        return (Features::NONE, 1);
    }
    match Incomplete::probe(memory) {
        Ok(granule) => (Features::POST_COPY, u16::try_from(granule.0).expect("1 or 512")),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "no post-copy to this host");
            (Features::NONE, 1)
        }
    }
}

/// Pages that will be missing in any case, to be taken out before the guest is paused.
pub(super) struct Stale {
    /// What has to arrive before.
    pub(super) totals: Vec<ChannelTotals>,
    pub(super) pages: PageBitmap,
}

impl Stale {
    /// Takes them out of `memory`, in which exactly what was to arrive has arrived.
    pub(super) fn take_out(&self, memory: &GuestMemory, ledger: &Ledger) -> Result<(), Error> {
        ledger.check(&self.totals)?;
        Ok(Incomplete::empty_ahead(memory, &self.pages)?)
    }
}

/// A guest whose memory follows.
pub(super) struct Following {
    incomplete: Arc<Incomplete>,
    /// Counts the times that the source came back.
    generation: u32,
    began: Instant,
    /// Since when there has been no connection.
    broke: Option<Instant>,
    /// That has been said to be too long.
    is_overdue: bool,
    quiet: Quiet,
    interrupted: Duration,
    /// What it took, once everything is there.
    finished: Option<FaultStats>,
    took: Duration,
}

impl Following {
    /// Takes the `missing` pages of `memory` out, those that are not `empty` already, and has the lanes fill them in from now
    /// on.
    pub(super) fn begin(shared: &Shared, memory: Arc<GuestMemory>, missing: &PageBitmap, empty: Option<&PageBitmap>) -> Result<Self, Error> {
        let incomplete = Incomplete::begin(memory, missing, empty)?;
        // Closed meanwhile: the end follows.
        let _ = shared.incomplete.set(Some(Arc::clone(&incomplete)));
        Ok(Self {
            quiet: Quiet::new(Instant::now(), incomplete.outstanding()),
            incomplete,
            generation: 0,
            began: Instant::now(),
            broke: None,
            is_overdue: false,
            interrupted: Duration::ZERO,
            finished: None,
            took: Duration::ZERO,
        })
    }

    /// The memory, for the embedder.
    pub(super) fn memory(&self) -> MissingMemory {
        MissingMemory::new(Arc::clone(&self.incomplete))
    }

    /// There is no connection any more.
    pub(super) fn interrupt(&mut self, shared: &Shared) {
        self.broke.get_or_insert_with(Instant::now);
        self.incomplete.disconnect();
        shared.shut_down_lanes();
    }

    /// How many pages are missing, once there has been no connection for longer than `patience`: says so once each time.
    pub(super) fn overdue(&mut self, patience: Duration) -> Option<PageCount> {
        let is_overdue = self.broke.is_some_and(|since| since.elapsed() > patience);
        let is_news = is_overdue && !std::mem::replace(&mut self.is_overdue, is_overdue);
        is_news.then(|| self.incomplete.outstanding())
    }

    /// For how long the source has been there and brought nothing, and how many pages are missing, each time that `patience`
    /// with that is over.
    pub(super) fn starves(&mut self, patience: Duration) -> Option<(Duration, PageCount)> {
        if self.broke.is_some() || self.is_finished() {
            return None;
        }
        let left = self.incomplete.outstanding();
        let quiet = self.quiet.look(Instant::now(), left, patience)?;
        let quiet_ms = u64::try_from(quiet.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(quiet_ms, missing_pages = left.0, "the source is there and brings nothing; the guest waits where it needs it");
        Some((quiet, left))
    }

    /// The guest runs, and the source has nothing else to do from here on than to bring pages.
    pub(super) fn begin_to_wait(&mut self) {
        self.quiet.begin_again(Instant::now());
    }

    /// The source has come back: what has arrived, once nobody is at work on it any more.
    pub(super) fn resume(&mut self, shared: &Shared, generation: u32) -> PageBitmap {
        self.interrupt(shared);
        shared.await_lanes();
        self.generation = generation;
        self.is_overdue = false;
        self.interrupted += self.broke.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.quiet.begin_again(Instant::now());
        self.incomplete.arrived()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.incomplete.outstanding() == PageCount(0)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished.is_some()
    }

    /// Every page is there.
    pub(super) fn finish(&mut self) {
        if self.finished.is_none() {
            self.finished = Some(self.incomplete.finish());
            self.took = self.began.elapsed();
        }
    }

    /// The guest never ran here, and nobody will look at its memory.
    pub(super) fn abandon(&self) {
        self.incomplete.abandon();
    }

    /// Puts what happened into `report`.
    pub(super) fn fill(&self, shared: &Shared, report: &mut Report) {
        let FaultStats { faults, p50, p90, p99, max, threads, urgent, bulk, .. } = self.finished.clone().unwrap_or_else(|| self.incomplete.stats());
        let followed = *shared.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut post_copy = PostCopyReport::of(self.incomplete.missing());
        post_copy.faults = Some(faults);
        post_copy.fault_us = Some(FaultTimes { p50: micros(p50), p90: micros(p90), p99: micros(p99), max: micros(max) });
        post_copy.urgent_pages = urgent;
        post_copy.bulk_pages = bulk;
        post_copy.lost = Some(threads.iter().map(|thread| thread.waited).sum());
        post_copy.threads = threads.iter().map(|waits| ThreadLoss { thread: waits.thread, faults: waits.faults, lost: waits.waited }).collect();
        post_copy.recoveries = self.generation;
        post_copy.interrupted = self.interrupted;
        post_copy.starved = self.quiet.longest();
        report.post_copy = Some(post_copy);
        report.pages_transferred += followed.pages;
        report.wire_bytes += followed.bytes;
        report.pages_by_encoding += followed.encodings;
        report.rounds.push(RoundReport {
            index: u32::try_from(report.rounds.len()).unwrap_or(u32::MAX),
            kind: RoundKind::PostCopy,
            pages: followed.pages,
            wire_bytes: followed.bytes,
            duration: self.took,
            dirty_after: None,
            decision: None,
        });
    }
}
