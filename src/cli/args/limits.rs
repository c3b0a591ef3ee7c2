//! The flags that say when to stop copying, shared by the sender and the plan.

use std::time::Duration;

use clap::ValueEnum;

use super::UsageError;
use crate::cli::units::{number_in, parse_time, parse_volume};
use crate::policy::{Limits, MAX_ROUNDS, OnLimit, Plateau, VolumeLimit};
use crate::units::PageCount;

/// When to stop copying rounds. The defaults are those of [`Limits`].
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "When to stop")]
pub struct LimitArgs {
    /// Pre-copy rounds; 0 is the cold migration: pause, copy, hand over
    #[arg(long, value_name = "N", default_value = "30", value_parser = number_in(0..=MAX_ROUNDS))]
    max_rounds: u32,
    /// Memory moved in pre-copy: a size, or Nx for N times the guest's memory
    #[arg(long, value_name = "SIZE|Nx", default_value = "10x", value_parser = parse_volume)]
    max_volume: VolumeLimit,
    /// Stop the guest at or under this many dirty pages
    #[arg(long, value_name = "PAGES", default_value = "50", value_parser = number_in(0..=u64::MAX))]
    dirty_threshold: u64,
    /// Stop the guest as soon as it is expected to stand still no longer than this
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_time)]
    downtime_limit: Duration,
    /// Wall clock for pre-copy [default: none]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// What to do when rounds, volume or time run out, or rounds stop helping
    #[arg(long, value_enum, value_name = "ACTION", default_value = "stop")]
    on_limit: OnLimitFlag,
}

impl LimitArgs {
    /// As the policy takes them.
    ///
    /// # Errors
    /// When they ask for what is not built in.
    pub fn limits(&self) -> Result<Limits, UsageError> {
        let on_limit = match self.on_limit {
            OnLimitFlag::Stop => OnLimit::Stop,
            OnLimitFlag::Abort => OnLimit::Abort,
            OnLimitFlag::PostCopy => return Err(UsageError::not_built_in("--on-limit", &"post-copy", "use stop, throttle or abort")),
            OnLimitFlag::Throttle => OnLimit::Throttle,
        };
        Ok(Limits {
            max_rounds: self.max_rounds,
            max_volume: self.max_volume,
            dirty_threshold: PageCount(self.dirty_threshold),
            downtime_limit: self.downtime_limit,
            timeout: self.timeout,
            plateau: Plateau::Watch,
            on_limit,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnLimitFlag {
    /// Stop the guest and copy the rest
    Stop,
    /// Run the guest at the destination at once
    #[value(hide = true)]
    PostCopy,
    /// Slow the guest down until the rest fits
    Throttle,
    /// Give up; the guest runs on here
    Abort,
}
