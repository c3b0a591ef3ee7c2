//! Who has the guest, and is its memory right?
//!
//! Each side is asked by how it ended and what it said, and the two answers have to fit: one owner, or none with a recorded
//! doubt, or one that died with its host.

use std::fmt;

use anyhow::{Result, bail, ensure};
use pageferry::stats::{GuestOwner, Outcome as Reported, Report};

use crate::case::{Case, Fault, Side};
use crate::network::Link;
use crate::processes::{Ended, parse};

/// What became of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// It runs at the destination, whole and checked.
    Arrived,
    /// It runs at the source, checked.
    Stayed,
    /// The sender says that it does not know, and keeps it paused.
    InDoubt,
    /// It is the destination's and waits for memory that the source has, or had.
    Waits,
    /// The process that had it was killed.
    DiedWithItsHost,
    /// The migration was over before its moment came.
    OverBefore,
    /// The fault was there, and nothing came of it.
    NotStruck,
}

pub(crate) const OUTCOMES: [Outcome; 7] =
    [Outcome::Arrived, Outcome::Stayed, Outcome::InDoubt, Outcome::Waits, Outcome::DiedWithItsHost, Outcome::OverBefore, Outcome::NotStruck];

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arrived => "arrived",
            Self::Stayed => "stayed",
            Self::InDoubt => "in doubt",
            Self::Waits => "waits",
            Self::DiedWithItsHost => "died with its host",
            Self::OverBefore => "over before",
            Self::NotStruck => "not struck",
        })
    }
}

/// What came of a fault itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strike {
    /// It did what it does.
    Hit,
    /// It was there, and a limit that it sets was never reached.
    Missed,
    /// Its moment did not come.
    Late,
}

/// One side, at the end of a case.
pub(crate) struct Last {
    pub(crate) ended: Ended,
    /// It was there until the case was over, and killed then.
    pub(crate) was_there: bool,
    /// The case killed it, or made it end at once.
    pub(crate) was_killed: bool,
}

impl Last {
    fn report(&self) -> Result<Option<Report>> {
        // One that was stranded reports that first. A line may be cut by the end of its process.
        let line = self.ended.stdout.lines().last();
        match line.map(parse) {
            Some(Err(_)) if self.was_killed || self.was_there => Ok(None),
            report => report.transpose(),
        }
    }

    pub(crate) fn said(&self, text: &str) -> bool {
        self.ended.stderr.contains(text)
    }
}

/// What the sender says.
#[derive(Debug, PartialEq)]
enum Source {
    Gave,
    Keeps,
    Doubts,
    /// The guest has gone ahead; its memory is kept for it.
    Serves,
    /// That memory is given up, since somebody insisted.
    GaveUp,
    Dead,
}

/// What the receiver says.
#[derive(Debug, PartialEq)]
enum Destination {
    Has,
    /// Part of its memory is lacking.
    Waits,
    /// It never ran here.
    Dropped,
    Dead,
}

/// What became of the guest.
///
/// # Errors
/// When that is not as it must be.
pub(crate) fn judge(case: &Case, sender: &Last, receiver: &Last, link: &Link) -> Result<Outcome> {
    let source = source(case, sender)?;
    let destination = destination(case, receiver)?;
    let is_plain = !case.has_tls;
    let commit = !is_plain || link.has_passed("Commit");
    ensure!(commit || !matches!(destination, Destination::Has | Destination::Waits), "the guest runs at the destination without a Commit");
    let heard = is_plain && ["Running", "Complete"].iter().any(|message| link.has_passed(message));
    Ok(match (&source, &destination) {
        (Source::Gave | Source::Dead, Destination::Has) => Outcome::Arrived,
        // Whose last words the sender has not heard.
        (Source::Serves | Source::GaveUp, Destination::Has) if case.is_final() || heard => Outcome::Arrived,
        (Source::Keeps, Destination::Dropped) => Outcome::Stayed,
        (Source::Keeps, Destination::Dead) if !heard => Outcome::Stayed,
        (Source::Doubts, _) => Outcome::InDoubt,
        (Source::Serves | Source::GaveUp | Source::Dead, Destination::Waits) => Outcome::Waits,
        (Source::Gave | Source::Serves | Source::Dead, Destination::Dead) | (Source::Dead, Destination::Dropped) => Outcome::DiedWithItsHost,
        (Source::Keeps, Destination::Has | Destination::Waits) => bail!("TWO OWNERS: {source:?}, {destination:?}"),
        (Source::Gave | Source::Serves | Source::GaveUp, Destination::Dropped) => bail!("NO OWNER: {source:?}, {destination:?}"),
        _ => bail!("{source:?} and {destination:?} do not fit"),
    })
}

fn source(case: &Case, last: &Last) -> Result<Source> {
    let report = last.report()?;
    let owner = report.as_ref().map(|report| report.guest_owner);
    if last.was_there {
        ensure!(last.said("STRANDED"), "the sender hangs");
        ensure!(!case.is_insisted_on_in_post_copy(), "the sender was told twice and goes on");
        return Ok(if owner == Some(GuestOwner::InDoubt) { Source::Doubts } else { Source::Serves });
    }
    let Some(code) = last.ended.code else {
        ensure!(last.was_killed, "the sender died");
        return Ok(Source::Dead);
    };
    ensure!(report.is_some() || case.fault == Fault::JsonFull(Side::Sender), "the sender has not reported");
    let was_called_off = case.is_told(Side::Sender) && report.as_ref().is_some_and(|report| report.outcome == Reported::Aborted);
    let (source, outcome, expected) = match code {
        0 => (Source::Gave, Reported::Completed, GuestOwner::Destination),
        1 if case.fault == Fault::ToldTwice(Side::Sender) && owner == Some(GuestOwner::Destination) => {
            (Source::GaveUp, Reported::Failed, GuestOwner::Destination)
        }
        1 if was_called_off => (Source::Keeps, Reported::Aborted, GuestOwner::Source),
        1 => (Source::Keeps, Reported::Failed, GuestOwner::Source),
        3 => (Source::Keeps, Reported::Refused, GuestOwner::Source),
        4 => (Source::Doubts, Reported::InDoubt, GuestOwner::InDoubt),
        code => bail!("the sender ended with {code}"),
    };
    if let Some(report) = report {
        ensure!(report.outcome == outcome && report.guest_owner == expected, "the sender ended with {code} and says {:?}", report.outcome);
    }
    ensure!(source != Source::Keeps || last.said("the guest runs on here (ok;"), "the guest at the source does not run, or is not right");
    ensure!(source != Source::Doubts || last.said("IN DOUBT"), "a doubt that was not said");
    Ok(source)
}

fn destination(case: &Case, last: &Last) -> Result<Destination> {
    let report = last.report()?;
    // In order, whatever became of its guests.
    ensure!(last.was_there || last.was_killed || last.ended.code == Some(0), "the receiver ended with {:?}", last.ended.code);
    if last.said("the guest has arrived") {
        let check = report.as_ref().and_then(|report| report.guest_check.as_deref());
        ensure!(last.said("the guest has arrived: ok") && check.is_none_or(|check| check == "ok"), "the guest that arrived is not right");
        if let Some(report) = &report {
            ensure!(report.outcome == Reported::Completed && report.guest_owner == GuestOwner::Destination, "it arrived and {:?}", report.outcome);
        }
        return Ok(Destination::Has);
    }
    if last.said("the guest has not arrived") || last.said("a guest was refused") {
        if let Some(report) = &report {
            let is_source = report.guest_owner == GuestOwner::Source && report.guest_check.is_none() && report.guest_gap.is_none();
            ensure!(is_source && report.outcome != Reported::Completed, "it did not arrive and {:?}", report.outcome);
        }
        return Ok(Destination::Dropped);
    }
    if last.was_there {
        return match (last.said("STRANDED"), last.said("is coming in")) {
            (true, _) => Ok(Destination::Waits),
            (false, false) => Ok(Destination::Dropped),
            (false, true) => bail!("the receiver hangs"),
        };
    }
    let code = last.ended.code;
    if case.fault == Fault::ToldTwice(Side::Receiver) && last.was_killed {
        return Ok(if last.said("is coming in") { Destination::Dead } else { Destination::Dropped });
    }
    if case.is_told(Side::Receiver) && code == Some(0) {
        ensure!(!last.said("is coming in"), "the receiver ended in order, and without a word of the guest");
        return Ok(Destination::Dropped);
    }
    ensure!(code.is_none() && last.was_killed, "the receiver ended with {code:?} and no word of the guest");
    ensure!(matches!(case.fault, Fault::Killed(Side::Receiver) | Fault::OutOfMemory(Side::Receiver)), "the receiver died");
    Ok(Destination::Dead)
}

/// Whether a case came out as well as it can.
///
/// # Errors
/// [`Slow`] when it did not.
pub(crate) fn expect(case: &Case, outcome: Outcome, strike: Strike) -> Result<Outcome> {
    let slow = |why: &str| Err(Slow(format!("{outcome} although {why}")).into());
    match (strike, outcome) {
        (Strike::Late, Outcome::Arrived) => Ok(Outcome::OverBefore),
        (Strike::Missed, Outcome::Arrived) => Ok(Outcome::NotStruck),
        (Strike::Late | Strike::Missed, _) => slow("nothing happened"),
        (Strike::Hit, Outcome::Arrived) if case.must_stay() => slow("it was called off in time"),
        (Strike::Hit, Outcome::Arrived) => Ok(outcome),
        (Strike::Hit, _) if case.must_arrive() => slow("it could have arrived"),
        (Strike::Hit, _) => Ok(outcome),
    }
}

/// Something took too long. That can be the host's fault, unlike a guest with two owners.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Slow(pub(crate) String);
