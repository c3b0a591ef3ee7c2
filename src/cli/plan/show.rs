//! A plan as a table for people, and as an object for programs.

use std::array;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::Planned;
use super::measure::Measured;
use crate::policy::{Bounds, Decision, ModelInput, PredictedRound, Prediction, Reason};
use crate::units::text::Exact;
use crate::units::{ByteCount, BytesPerSec, HumanTime, PageCount};

/// What was measured.
pub(super) fn print_measured(measured: &Measured, bandwidth: BytesPerSec, out: &mut impl Write) -> io::Result<()> {
    let guest = &measured.guest;
    writeln!(out, "measured with the {} tracker:", measured.tracker)?;
    let (bytes, all) = (guest.first_over(bandwidth).bytes, measured.wire_bytes(bandwidth));
    writeln!(out, "in use    {:>10}  pages, {bytes:.0} bytes each on the wire, {all} in all", guest.pages.0)?;
    writeln!(
        out,
        "dirtied   {:>10}  pages/s at first, {} seen; {:.0} bytes each when sent again",
        guest.curve.first_rate().0.round(),
        guest.curve.most(),
        guest.again_bytes
    )?;
    writeln!(out)
}

/// The table for people: a row a round, then what it comes to.
pub(super) fn print(planned: &Planned, out: &mut impl Write) -> io::Result<()> {
    let Planned { input, bounds, prediction: plan } = planned;
    let mut rows = vec![["round", "pages", "memory", "time", "dirty after", "decision"].map(str::to_owned)];
    rows.extend(plan.rounds.iter().map(|round| {
        let decision = format!("{}: {}", round.decision, round.reason);
        row(round.index.to_string(), round.pages, round.duration, round.dirty_after.0.to_string(), decision)
    }));
    if plan.decision == Decision::StopAndCopy {
        let name = if plan.rounds.is_empty() { "cold" } else { "stop-and-copy" };
        rows.push(row(name.to_owned(), plan.remainder, plan.downtime, String::new(), String::new()));
    }
    if plan.decision == Decision::PostCopy {
        rows.push(row("post-copy".to_owned(), plan.remainder, plan.resume, String::new(), String::new()));
    }
    let widths: [usize; 6] = array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for [round, pages, memory, time, dirty, decision] in &rows {
        let [w0, w1, w2, w3, w4, _] = widths;
        let line = format!("{round:>w0$}  {pages:>w1$}  {memory:>w2$}  {time:>w3$}  {dirty:>w4$}  {decision}");
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)?;
    writeln!(out, "rounds    {:>10}  {}", plan.rounds.len(), why(plan, input))?;
    writeln!(out, "moved     {:>10}  pages, {} of guest memory", plan.moved.pages().0, plan.moved)?;
    writeln!(
        out,
        "total     {:>10}  whatever the guest does: {} to {}",
        HumanTime(plan.total),
        HumanTime(bounds.least_total),
        HumanTime(bounds.most_total)
    )?;
    writeln!(
        out,
        "downtime  {:>10}  whatever the guest does: {} to {}",
        HumanTime(plan.downtime),
        HumanTime(bounds.least_downtime),
        HumanTime(bounds.most_downtime)
    )
}

fn row(round: String, pages: PageCount, time: Duration, dirty: String, decision: String) -> [String; 6] {
    [round, pages.0.to_string(), pages.bytes().to_string(), HumanTime(time).to_string(), dirty, decision]
}

/// Why pre-copy ends, in a sentence.
fn why(plan: &Prediction, input: &ModelInput) -> String {
    let limits = &input.limits;
    let end = match plan.decision {
        Decision::Abort => "aborts",
        Decision::PostCopy => "switches to post-copy",
        _ => "stops",
    };
    let because = match plan.stopped_by {
        Reason::DirtyThreshold => format!("at most {} are dirty", limits.dirty_threshold.pages()),
        Reason::DowntimeLimit => format!("the rest fits in the downtime limit of {}", Exact(limits.downtime_limit)),
        Reason::MaxRounds if limits.max_rounds == 0 => "no rounds are allowed".to_owned(),
        Reason::MaxRounds => format!("no more than {} rounds are allowed", limits.max_rounds),
        Reason::MaxVolume => format!("more than {} was moved", limits.max_volume.for_guest(input.memory)),
        Reason::Timeout => format!("pre-copy has taken {}", Exact(limits.timeout.unwrap_or_default())),
        Reason::Plateau | Reason::LocalMinimum => "more rounds would not leave less".to_owned(),
        Reason::NotConverging => format!("no number of rounds would meet the downtime limit of {}", Exact(limits.downtime_limit)),
        Reason::AsAsked => "no more rounds were asked for".to_owned(),
        _ => unreachable!("the others go on, and nothing ends with them"),
    };
    format!("{end} because {because}")
}

/// The plan as JSON.
#[derive(Serialize)]
pub(super) struct Plan {
    schema: u32,
    total_ms: f64,
    downtime_ms: f64,
    resume_ms: f64,
    moved_bytes: ByteCount,
    remainder_pages: PageCount,
    decision: Decision,
    stopped_by: Reason,
    rounds: Vec<PlannedRound>,
    bounds: PlannedBounds,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<MeasuredFigures>,
}

#[derive(Serialize)]
struct MeasuredFigures {
    tracker: &'static str,
    pages: PageCount,
    first_bytes_per_page: f64,
    again_bytes_per_page: f64,
    dirty_pages_per_s: f64,
    distinct_dirty_pages: PageCount,
    processor_pages_per_s: f64,
}

#[derive(Serialize)]
struct PlannedRound {
    index: u32,
    pages: PageCount,
    bytes: ByteCount,
    duration_ms: f64,
    dirty_after: PageCount,
    decision: String,
}

#[derive(Serialize)]
struct PlannedBounds {
    total_ms: [f64; 2],
    downtime_ms: [f64; 2],
}

impl Plan {
    pub(super) fn new(plan: &Prediction, bounds: Bounds, measured: Option<(&Measured, BytesPerSec)>) -> Self {
        let round = |round: &PredictedRound| PlannedRound {
            index: round.index,
            pages: round.pages,
            bytes: round.pages.bytes(),
            duration_ms: millis(round.duration),
            dirty_after: round.dirty_after,
            decision: format!("{}: {}", round.decision, round.reason),
        };
        Self {
            schema: SCHEMA,
            total_ms: millis(plan.total),
            downtime_ms: millis(plan.downtime),
            resume_ms: millis(plan.resume),
            moved_bytes: plan.moved,
            remainder_pages: plan.remainder,
            decision: plan.decision,
            stopped_by: plan.stopped_by,
            rounds: plan.rounds.iter().map(round).collect(),
            bounds: PlannedBounds {
                total_ms: [bounds.least_total, bounds.most_total].map(millis),
                downtime_ms: [bounds.least_downtime, bounds.most_downtime].map(millis),
            },
            measured: measured.map(|(Measured { guest, tracker }, bandwidth)| MeasuredFigures {
                tracker,
                pages: guest.pages,
                first_bytes_per_page: guest.first_over(bandwidth).bytes.round(),
                again_bytes_per_page: guest.again_bytes.round(),
                dirty_pages_per_s: guest.curve.first_rate().0.round(),
                distinct_dirty_pages: guest.curve.most(),
                processor_pages_per_s: guest.first_over(bandwidth).processors.0.round(),
            }),
        }
    }
}

/// Milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// The version of the plan's JSON form.
const SCHEMA: u32 = 1;
