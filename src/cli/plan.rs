//! `pageferry plan`: how a migration would go, before anything is moved.
//!
//! The cost model of [`policy`](crate::policy), as a table for people or an object for programs.

use std::array;
use std::io::{self, Write};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::args::{LimitArgs, UsageError};
use super::units::{Exact, parse_page_rate, parse_rate, parse_size, parse_time};
use crate::policy::{Bounds, Decision, ModelInput, Plateau, PredictedRound, Prediction, Reason, predict};
use crate::units::{ByteCount, BytesPerSec, HumanTime, PageCount, PagesPerSec};

/// Predict rounds, total time and downtime of a migration
#[derive(Clone, Debug, clap::Args)]
pub struct PlanArgs {
    /// The guest's memory that is in use
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: ByteCount,
    /// How fast the guest dirties pages: pages a second, or bytes a second
    #[arg(long, value_name = "RATE", value_parser = parse_page_rate)]
    dirty_rate: PagesPerSec,
    /// How fast memory moves; where pages compress, faster than the link
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: BytesPerSec,
    /// The memory that the guest keeps coming back to [default: all of it]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    working_set: Option<ByteCount>,
    /// What a pause costs besides the pages: last harvest, state, acknowledgements
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time)]
    fixed_cost: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    limits: LimitArgs,
    /// Whether rounds that stop helping end pre-copy, as they do in a migration
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "watch")]
    plateau: PlateauFlag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PlateauFlag {
    /// They do
    Watch,
    /// Only the thresholds count
    Ignore,
}

/// Why a plan could not be made or shown.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The flags cannot be followed.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The output went away.
    #[error("cannot print the plan")]
    Print(#[from] io::Error),
}

/// Prints the plan.
///
/// # Errors
/// When the flags ask for what is not built in, or `out` cannot be written to.
pub fn run(args: &PlanArgs, out: &mut impl Write) -> Result<(), PlanError> {
    let input = args.input()?;
    let prediction = predict(&input);
    if args.json {
        let json = serde_json::to_string(&Plan::new(&prediction, input.bounds())).expect("numbers and names have a JSON form");
        writeln!(out, "{json}")?;
    } else {
        print(&input, &prediction, out)?;
    }
    Ok(())
}

impl PlanArgs {
    fn input(&self) -> Result<ModelInput, UsageError> {
        let mut limits = self.limits.limits()?;
        limits.plateau = match self.plateau {
            PlateauFlag::Watch => Plateau::Watch,
            PlateauFlag::Ignore => Plateau::Ignore,
        };
        Ok(ModelInput {
            memory: self.memory,
            dirty_rate: self.dirty_rate,
            bandwidth: self.bandwidth,
            working_set: self.working_set.map(ByteCount::pages),
            fixed_cost: self.fixed_cost,
            limits,
        })
    }
}

/// The table for people: a row a round, then what it comes to.
fn print(input: &ModelInput, plan: &Prediction, out: &mut impl Write) -> io::Result<()> {
    let mut rows = vec![["round", "pages", "memory", "time", "dirty after", "decision"].map(str::to_owned)];
    rows.extend(plan.rounds.iter().map(|round| {
        let decision = format!("{}: {}", round.decision, round.reason);
        row(round.index.to_string(), round.pages, round.duration, round.dirty_after.0.to_string(), decision)
    }));
    if plan.decision == Decision::StopAndCopy {
        let name = if plan.rounds.is_empty() { "cold" } else { "stop-and-copy" };
        rows.push(row(name.to_owned(), plan.remainder, plan.downtime, String::new(), String::new()));
    }
    let widths: [usize; 6] = array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for [round, pages, memory, time, dirty, decision] in &rows {
        let [w0, w1, w2, w3, w4, _] = widths;
        let line = format!("{round:>w0$}  {pages:>w1$}  {memory:>w2$}  {time:>w3$}  {dirty:>w4$}  {decision}");
        writeln!(out, "{}", line.trim_end())?;
    }
    let bounds = input.bounds();
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
    let end = if plan.decision == Decision::Abort { "aborts" } else { "stops" };
    let because = match plan.stopped_by {
        Reason::DirtyThreshold => format!("at most {} are dirty", limits.dirty_threshold),
        Reason::DowntimeLimit => format!("the rest fits in the downtime limit of {}", Exact(limits.downtime_limit)),
        Reason::MaxRounds if limits.max_rounds == 0 => "no rounds are allowed".to_owned(),
        Reason::MaxRounds => format!("no more than {} rounds are allowed", limits.max_rounds),
        Reason::MaxVolume => format!("more than {} was moved", limits.max_volume.for_guest(input.memory)),
        Reason::Timeout => format!("pre-copy has taken {}", Exact(limits.timeout.unwrap_or_default())),
        Reason::Plateau | Reason::LocalMinimum => "more rounds would not leave less".to_owned(),
        _ => unreachable!("the others go on, and nothing ends with them"),
    };
    format!("{end} because {because}")
}

/// The plan as JSON.
#[derive(Serialize)]
struct Plan {
    schema: u32,
    total_ms: f64,
    downtime_ms: f64,
    moved_bytes: ByteCount,
    remainder_pages: PageCount,
    decision: Decision,
    stopped_by: Reason,
    rounds: Vec<PlannedRound>,
    bounds: PlannedBounds,
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
    fn new(plan: &Prediction, bounds: Bounds) -> Self {
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
            moved_bytes: plan.moved,
            remainder_pages: plan.remainder,
            decision: plan.decision,
            stopped_by: plan.stopped_by,
            rounds: plan.rounds.iter().map(round).collect(),
            bounds: PlannedBounds {
                total_ms: [bounds.least_total, bounds.most_total].map(millis),
                downtime_ms: [bounds.least_downtime, bounds.most_downtime].map(millis),
            },
        }
    }
}

/// Milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// The version of the plan's JSON form.
const SCHEMA: u32 = 1;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        plan: PlanArgs,
    }

    fn plan(flags: &str) -> String {
        let command = Command::try_parse_from(["plan"].into_iter().chain(flags.split_whitespace())).unwrap();
        let mut out = Vec::new();
        run(&command.plan, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_lines_up_and_says_why() {
        let text = plan("--memory 1GiB --dirty-rate 10000 --bandwidth 1Gbit/s --working-set 64MiB");
        let expected = "        round   pages     memory      time  dirty after  decision
            0  262144      1 GiB   8.590 s        16384  round: converging
            1   16384     64 MiB  536.9 ms         5369  round: tightening
            2    5369  20.97 MiB  175.9 ms         1760  round: tightening
            3    1760   6.88 MiB   57.7 ms          577  round: tightening
            4     577   2.25 MiB   18.9 ms          190  round: tightening
            5     190    760 KiB    6.2 ms           63  round: tightening
            6      63    252 KiB    2.1 ms           21  stop-and-copy: dirty-threshold
stop-and-copy      21     84 KiB    0.7 ms

rounds             7  stops because at most 50 pages are dirty
moved         286508  pages, 1.09 GiB of guest memory
total        9.388 s  whatever the guest does: 8.590 s to 103.1 s
downtime      0.7 ms  whatever the guest does: 0.0 ms to 8.590 s
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_cold_migration_is_one_row() {
        let text = plan("--memory 1GiB --dirty-rate 10000 --bandwidth 1Gbit/s --max-rounds 0");
        assert!(text.contains(" cold  262144   1 GiB  8.590 s"), "{text}");
        assert!(text.contains("stops because no rounds are allowed"), "{text}");
    }

    #[test]
    fn json_has_the_numbers_of_the_table() {
        let text = plan("--memory 1GiB --dirty-rate 4096 --bandwidth 160MiB/s --downtime-limit 10ms --fixed-cost 1ms --json");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["rounds"].as_array().unwrap().len(), 4);
        assert_eq!(json["rounds"][0]["pages"], 262_144);
        assert_eq!(json["rounds"][2]["decision"], "round: tightening");
        assert_eq!((&json["decision"], &json["stopped_by"]), (&"stop-and-copy".into(), &"dirty-threshold".into()));
        assert_eq!(json["remainder_pages"], 27);
        assert!((json["downtime_ms"].as_f64().unwrap() - (27.0 / 40.96 + 1.0)).abs() < 1e-2, "{text}");
        assert_eq!(json["bounds"]["downtime_ms"][0], 1.0);
    }

    #[test]
    fn the_plain_algorithm_goes_on_to_its_thresholds() {
        let busy = "--memory 64MiB --dirty-rate 1000000 --bandwidth 1Gbit/s --downtime-limit 0 --max-rounds 7";
        assert!(plan(busy).contains("more rounds would not leave less"));
        assert!(plan(&format!("{busy} --plateau ignore")).contains("no more than 7 rounds are allowed"));
        assert!(plan(&format!("{busy} --plateau ignore --on-limit abort")).contains("aborts because no more than 7 rounds"));
    }

    #[test]
    fn what_is_not_built_in_is_a_usage_error() {
        let command =
            Command::try_parse_from(["plan", "--memory", "1MiB", "--dirty-rate", "0", "--bandwidth", "1MB/s", "--on-limit", "post-copy"]).unwrap();
        let error = run(&command.plan, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "--on-limit post-copy: not built in; use stop, throttle or abort");
    }
}
