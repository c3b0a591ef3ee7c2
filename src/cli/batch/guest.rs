//! One guest of a batch, from being built to being gone.

use std::sync::Arc;
use std::time::Instant;

use super::BatchGuest;
use super::progress::Progress;
use crate::cli::args::SendSettings;
use crate::cli::interrupts::{Interrupts, Stay};
use crate::cli::output::ReportSink;
use crate::cli::road::OnItsWay;
use crate::cli::send::{migration_failed, open_tracker, settle};
use crate::dirty::DirtyTracker;
use crate::guests::{self, TestGuest};
use crate::source::{Completed, Event, Failure, Migration, Outgoing, Place};
use crate::stats::Report;

/// A guest that waits for its turn to be moved.
pub(super) struct Boarding<'b> {
    index: usize,
    about: &'b BatchGuest,
    migration: Migration<'b>,
    /// Or why there is none.
    ready: anyhow::Result<Ready>,
    on_its_way: OnItsWay,
}

/// Where guests say what becomes of them.
pub(super) struct Office<'o> {
    pub(super) interrupts: &'o Interrupts,
    pub(super) progress: &'o Progress,
    pub(super) sink: &'o ReportSink,
}

/// A guest and its tracker. The order of the fields matters: the memory goes first, so that there is nothing left to
/// unprotect.
pub(super) struct Ready {
    guest: Box<dyn TestGuest>,
    tracker: Box<dyn DirtyTracker>,
}

/// What became of one.
pub(super) struct Ended {
    pub(super) report: Report,
    /// When it was gone, or known to stay.
    pub(super) at: Instant,
    /// If it is still here.
    pub(super) guest: Option<Box<dyn TestGuest>>,
    /// If it has moved: what it leaves behind, to be let go of when there is time.
    pub(super) remains: Option<Ready>,
}

impl<'b> Boarding<'b> {
    /// Builds the guest and lets it run. One that cannot be built fails when its turn comes.
    pub(super) fn board(settings: &SendSettings, index: usize, about: &'b BatchGuest, migration: Migration<'b>, on_its_way: OnItsWay) -> Self {
        Self { index, about, migration, ready: Ready::new(settings, about), on_its_way }
    }

    /// Moves the guest and says what became of it. It keeps its place until it is gone, has failed, or can only wait for its
    /// connection.
    pub(super) fn depart(self, place: Place, office: &Office<'_>) -> Ended {
        let Self { index, about, migration, ready, on_its_way } = self;
        let name = &about.name;
        office.progress.started();
        let ended = match ready {
            Ok(ready) => ready.depart(index, migration, about, (place, on_its_way), office),
            Err(error) => Ended::not_begun(name, format!("{error:#}")),
        };
        office.interrupts.ended(index);
        office.progress.ended(name, &ended.report);
        office.sink.write(&ended.report);
        ended
    }
}

impl Ready {
    fn new(settings: &SendSettings, about: &BatchGuest) -> anyhow::Result<Self> {
        use anyhow::Context;
        let mut guest = guests::build_source(&about.spec, settings.backing).context("the guest cannot be built")?;
        let tracker = open_tracker(settings, &*guest).context("--tracker")?;
        guest.resume()?;
        Ok(Self { guest, tracker })
    }

    fn depart(mut self, index: usize, migration: Migration<'_>, about: &BatchGuest, place: (Place, OnItsWay), office: &Office<'_>) -> Ended {
        let memory = Arc::clone(self.guest.memory());
        let (kind, description) = (about.spec.kind().name().to_owned(), about.spec.keys());
        let outgoing = Outgoing { guest: &mut *self.guest, memory: &memory, tracker: &mut *self.tracker, kind, description };
        let mut note = |event: &Event| {
            office.interrupts.note(index, event);
            office.progress.note(&about.name, event);
        };
        let result = migration.observe(note).run(outgoing);
        let mut place = Some(place);
        let result = settle(result, &mut *self.guest, |failure| office.stranded(index, &about.name, failure, &mut place), &mut note);
        drop(place);
        let at = Instant::now();
        let mut ended = match result {
            Ok(Completed { report }) => Ended { report, at, guest: None, remains: Some(self) },
            Err(failure) => {
                let report = migration_failed(*failure, &mut *self.guest);
                Ended { report, at, guest: Some(self.guest), remains: None }
            }
        };
        ended.report.guest = Some(about.name.clone());
        ended
    }
}

impl Office<'_> {
    /// The guest needs what is here for as long as it takes; the others need not wait for that.
    fn stranded(&self, index: usize, name: &str, failure: &mut Failure, place: &mut Option<(Place, OnItsWay)>) -> Stay {
        let is_news = place.take().is_some();
        let stay = self.interrupts.keep_or_let_go(index);
        // Another vain attempt is none.
        if is_news && stay == Stay::Keep {
            failure.report.guest = Some(name.to_owned());
            self.sink.write(&failure.report);
            self.progress.stranded(name, &failure.error.in_full());
        }
        stay
    }
}

impl Ended {
    /// One whose migration could not even begin.
    pub(super) fn not_begun(name: &str, reason: String) -> Self {
        let mut report = Report::new();
        (report.guest, report.reason) = (Some(name.to_owned()), reason);
        Self { report, at: Instant::now(), guest: None, remains: None }
    }
}
