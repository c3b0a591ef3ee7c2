//! `pageferry plan`: how a migration would go, before anything is moved.
//!
//! The cost model of [`policy`](crate::policy), as a table for people or an object for programs. What it needs to know of
//! the guest is given by flags, or measured of a guest that runs.

mod measure;
mod show;

use std::io::{self, Write};
use std::time::Duration;

use clap::ValueEnum;

use super::args::{LimitArgs, UsageError};
use crate::policy::{Bounds, Limits, ModelInput, Plateau, Prediction, predict};
use crate::units::text::{parse_page_rate, parse_rate, parse_size, parse_time};
use crate::units::{ByteCount, BytesPerSec, PagesPerSec};
use show::{Plan, print};

/// Predict rounds, total time and downtime of a migration
#[derive(Clone, Debug, clap::Args)]
pub struct PlanArgs {
    /// Build and run this test guest and measure it, instead of being told: KIND:key=value,...
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["memory", "dirty_rate", "working_set"])]
    measure: Option<String>,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time, requires = "measure")]
    measure_for: Duration,
    /// The guest's memory that is in use
    #[arg(long, value_name = "SIZE", value_parser = parse_size, required_unless_present = "measure")]
    memory: Option<ByteCount>,
    /// How fast the guest dirties pages: pages a second, or bytes a second
    #[arg(long, value_name = "RATE", value_parser = parse_page_rate, required_unless_present = "measure")]
    dirty_rate: Option<PagesPerSec>,
    /// How fast memory moves; where pages compress, faster than the link. With --measure: the link's own rate
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: BytesPerSec,
    /// The memory that the guest keeps coming back to [default: all of it]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    working_set: Option<ByteCount>,
    /// What a pause costs besides the pages: last harvest, state, acknowledgements [default: 0s; with --measure 3ms]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    fixed_cost: Option<Duration>,
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

/// How a migration would go.
struct Planned {
    input: ModelInput,
    /// Whatever the guest does.
    bounds: Bounds,
    prediction: Prediction,
}

/// Why a plan could not be made or shown.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The flags cannot be followed.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The guest cannot be measured.
    #[error("the guest cannot be measured: {0:#}")]
    Measure(anyhow::Error),
    /// The output went away.
    #[error("cannot print the plan")]
    Print(#[from] io::Error),
}

/// Prints the plan.
///
/// # Errors
/// When the flags ask for what is not built in, the guest cannot be measured, or `out` cannot be written to.
pub fn run(args: &PlanArgs, out: &mut impl Write) -> Result<(), PlanError> {
    let (measured, planned) = match &args.measure {
        Some(spec) => {
            let measured = measure::measure(spec, args.measure_for)?;
            let planned = measured.plan(args.bandwidth, args.limits()?, args.fixed_cost);
            (Some(measured), planned)
        }
        None => {
            let input = args.input()?;
            (None, Planned { input, bounds: input.bounds(), prediction: predict(&input) })
        }
    };
    if args.json {
        let plan = Plan::new(&planned.prediction, planned.bounds, measured.as_ref().map(|measured| (measured, args.bandwidth)));
        writeln!(out, "{}", serde_json::to_string(&plan).expect("numbers and names have a JSON form"))?;
    } else {
        if let Some(measured) = &measured {
            show::print_measured(measured, args.bandwidth, out)?;
        }
        print(&planned, out)?;
    }
    Ok(())
}

impl PlanArgs {
    fn limits(&self) -> Result<Limits, UsageError> {
        let mut limits = self.limits.limits()?;
        limits.plateau = match self.plateau {
            PlateauFlag::Watch => Plateau::Watch,
            PlateauFlag::Ignore => Plateau::Ignore,
        };
        Ok(limits)
    }

    /// Without a measurement.
    fn input(&self) -> Result<ModelInput, UsageError> {
        Ok(ModelInput {
            memory: self.memory.expect("required by the flags"),
            dirty_rate: self.dirty_rate.expect("required by the flags"),
            bandwidth: self.bandwidth,
            working_set: self.working_set.map(ByteCount::pages),
            fixed_cost: self.fixed_cost.unwrap_or_default(),
            limits: self.limits()?,
        })
    }
}

#[cfg(test)]
mod tests;
