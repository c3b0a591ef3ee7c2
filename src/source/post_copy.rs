//! Post-copy: the guest is given away before all of its memory is there, and the rest is served.
//!
//! Up to Commit it is the same handover as after pre-copy, but for the remainder: instead of the pages the destination
//! gets the set of them. From when Commit goes out the missing pages are pushed and answered for, because the guest may
//! touch them as soon as it is resumed there.
//!
//! See [`follow`](super::follow) for how the rest is served.

use std::sync::Arc;
use std::time::Instant;

use super::Steering;
use super::downtime::Downtime;
use super::driver::Driver;
use super::fleet::Member;
use super::follow::{Follow, Followed};
use super::pre_copy::LastRound;
use super::pump::{Command, Pump};
use super::push::{Counters, Granule, Lanes, widen};
use super::session::{Session, Terms};
use super::worker::Then;
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::units::ChunkIndex;

/// A guest that is given away ahead of part of its memory, from just before Commit on, and all that serving the rest takes, in
/// this attempt or a later one.
#[derive(Debug)]
pub(super) struct GivenAway {
    pub(super) pump: Pump,
    pub(super) terms: Terms,
    pub(super) missing: PageBitmap,
    /// Chunks that are likely to be needed soon.
    pub(super) hot: Vec<ChunkIndex>,
    pub(super) steering: Steering,
    pub(super) member: Option<Arc<Member>>,
    /// When the migration began.
    pub(super) started: Instant,
}

impl Driver<'_> {
    /// Ends pre-copy on all channels and tells the destination what is missing, up to the point at which the guest can be
    /// given away.
    pub(super) fn switch(&mut self, session: &Session<'_>, last: &mut LastRound, missing: &PageBitmap) -> Result<(), Error> {
        let nothing = PageBitmap::new(self.memory.layout().chunks());
        let (round, state) = self.last_round(session, last, nothing, Then::Switch)?;
        self.get_ready(session, Command::Switch { totals: round.totals, state, missing: missing.clone() }, &mut last.downtime)
    }

    /// The pages that the destination lacks, in what it can fill at once.
    pub(super) fn missing(&self, remainder: &PageBitmap, granule: Granule) -> PageBitmap {
        let mut missing = remainder.clone();
        widen(&mut missing, self.memory.layout(), granule);
        missing
    }

    /// Gives the guest away and serves the rest of its memory.
    pub(super) fn give_away(&mut self, given: &GivenAway, lanes: Lanes, downtime: Downtime) -> Followed {
        self.hold.release();
        given.pump.command(Command::Commit { paused_for: self.hold.paused_for() });
        let counters = Counters::default();
        let mut follow = Follow::new(given, self.memory, &counters, &mut self.observer, &mut self.report);
        let followed = follow.run(Some(lanes));
        let times = follow.times();
        follow.fill(times.running);
        let now = Instant::now();
        if let Some(running) = times.running {
            downtime.fill(&mut self.report, running, times.ended.unwrap_or(now));
        }
        self.report.total = now - self.started;
        if matches!(followed, Followed::TakenBack(_)) {
            self.hold.take_back();
        }
        followed
    }
}
