//! One round: handed to the workers, watched while they send it, and added up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{never, select, tick};

use super::PROGRESS_EVERY;
use super::driver::Driver;
use super::event::{Event, Phase};
use super::meter::Meter;
use super::order::coldest_first;
use super::session::{Session, session_error};
use super::watch::DirtyWatch;
use super::worker::{Job, Sent, Then};
use super::workers::Workers;
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::guest::RunShare;
use crate::policy::Verdict;
use crate::protocol::SourceEvent;
use crate::stats::{RoundKind, RoundReport};
use crate::units::{ByteCount, PageCount};
use crate::wire::ChannelTotals;

/// A round that the workers are at.
pub(super) struct Begun {
    index: u32,
    pages: PageCount,
    at: Instant,
    /// The decision that it follows from.
    verdict: Option<Verdict>,
}

/// What all workers together did of a round.
pub(super) struct Round {
    pub(super) index: u32,
    pub(super) pages: PageCount,
    pub(super) bytes: ByteCount,
    /// Pages that were all zeros.
    pub(super) empty: PageCount,
    /// Pages that were as they had been sent.
    pub(super) unchanged: PageCount,
    pub(super) duration: Duration,
    pub(super) totals: Vec<ChannelTotals>,
    pub(super) unsent: Option<PageBitmap>,
    pub(super) skipped: Option<PageBitmap>,
}

impl Workers<'_> {
    /// Has them send `pages`, but for those that an `early` look finds written meanwhile.
    pub(super) fn begin(&self, index: u32, pages: PageBitmap, early: Option<&DirtyWatch>, then: Then, verdict: Option<Verdict>) -> Begun {
        let count = pages.count();
        let order = match early {
            Some(watch) => coldest_first(&pages, watch.found()).into(),
            None => pages.occupied().map(|(chunk, _)| chunk).collect(),
        };
        let round = u16::try_from(index).expect("bounded by MAX_ROUNDS and the escapes");
        let job = Job { round, pages: Arc::new(pages), order, skip: early.map(DirtyWatch::skip), then };
        let at = Instant::now();
        self.give(&job);
        Begun { index, pages: count, at, verdict }
    }
}

impl Driver<'_> {
    /// Waits until every worker has sent its part, and looks where the guest writes meanwhile if it is `early`.
    pub(super) fn await_round(&mut self, session: &Session<'_>, begun: &Begun, mut early: Option<&mut DirtyWatch>) -> Result<Round, Error> {
        let mut round = Round::of(begun, session.workers.count());
        let mut meter = Meter::from(session.workers.written());
        let ticker = tick(PROGRESS_EVERY);
        let mut look = early.as_ref().map_or_else(never, |watch| watch.next_look());
        let mut waiting = session.workers.count();
        while waiting > 0 {
            select! {
                recv(session.workers.results()) -> sent => {
                    let sent = sent.map_err(|_| Error::System { action: "keep the workers", source: std::io::ErrorKind::Other.into() })??;
                    self.report.pages_transferred += sent.pages;
                    self.report.wire_bytes += sent.bytes;
                    self.report.pages_by_encoding += sent.encodings;
                    round.add(sent);
                    waiting -= 1;
                }
                recv(session.pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(session.pump.events()) -> event => if let Ok(SourceEvent::Reconnect) = event { self.phase(Phase::Resolving); },
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
                recv(look) -> _ => if let Some(watch) = &mut early {
                    watch.look(self.tracker, self.memory)?;
                    look = watch.next_look();
                },
                recv(ticker) -> _ => {
                    (self.observer)(&begun.progress(&session.workers, &mut meter));
                    if self.hold.paused_for().is_zero() && self.is_late() {
                        session.workers.halt();
                    }
                }
            }
        }
        round.duration = begun.at.elapsed();
        Ok(round)
    }

    /// Puts a round into the report.
    pub(super) fn record(&mut self, kind: RoundKind, round: &Round, dirty_after: Option<PageCount>, decision: Option<String>) {
        let &Round { index, pages, bytes, duration, .. } = round;
        tracing::debug!(index, pages = pages.0, bytes = bytes.0, ?dirty_after, decision, "round");
        self.report.rounds.push(RoundReport { index, kind, pages, wire_bytes: bytes, duration, dirty_after, decision });
    }
}

impl Begun {
    /// How far the workers are.
    fn progress(&self, workers: &Workers<'_>, meter: &mut Meter) -> Event {
        let bytes = workers.written();
        Event::Progress {
            index: self.index,
            bytes,
            rate: meter.rate(bytes),
            pages_sent: workers.sent(),
            pages: self.pages,
            dirty_rate: self.verdict.map(|verdict| verdict.dirty_rate),
            expected_downtime: self.verdict.map(|verdict| verdict.expected_downtime),
            share: self.verdict.map_or(RunShare::FULL, |verdict| verdict.share),
        }
    }
}

impl Round {
    /// Nothing of it yet.
    fn of(begun: &Begun, workers: usize) -> Self {
        Self {
            index: begun.index,
            pages: PageCount(0),
            bytes: ByteCount(0),
            empty: PageCount(0),
            unchanged: PageCount(0),
            duration: Duration::ZERO,
            totals: vec![ChannelTotals::default(); workers],
            unsent: None,
            skipped: None,
        }
    }

    /// Adds what one worker did.
    fn add(&mut self, sent: Sent) {
        self.pages += sent.pages;
        self.bytes += sent.bytes;
        self.empty += sent.encodings.zero;
        self.unchanged += sent.encodings.unchanged;
        self.totals[usize::from(sent.channel)] = sent.totals;
        add(&mut self.unsent, sent.unsent);
        add(&mut self.skipped, sent.skipped);
    }
}

/// Adds what one worker reports to what the others did.
fn add(all: &mut Option<PageBitmap>, part: Option<PageBitmap>) {
    match (all, part) {
        (Some(all), Some(part)) => all.union_with(&part),
        (all, Some(part)) => *all = Some(part),
        (_, None) => {}
    }
}
