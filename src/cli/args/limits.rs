//! The flags that say when to stop copying, shared by the sender and the plan.

use std::time::Duration;

use clap::ValueEnum;

use super::UsageError;
use crate::cli::units::{number_in, parse_volume};
use crate::policy::{DirtyThreshold, Limits, MAX_ROUNDS, OnLimit, Plateau, PostCopy, VolumeLimit};
use crate::units::PageCount;
use crate::units::text::parse_time;

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
    /// Stop the guest at or under this many dirty pages [default: 50, where they fit the downtime limit]
    #[arg(long, value_name = "PAGES", value_parser = number_in(0..=u64::MAX))]
    dirty_threshold: Option<u64>,
    /// The longest that the guest may stand still; rounds that shorten it go on while they are cheap
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_time)]
    downtime_limit: Duration,
    /// Wall clock for pre-copy [default: none]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// What to do when rounds, volume or time run out, or rounds stop helping
    #[arg(long, value_enum, value_name = "ACTION", default_value = "stop")]
    on_limit: OnLimitFlag,
    /// Run the guest at the destination before its memory is there: never, as soon as rounds are seen not to meet the
    /// downtime limit (auto), or after N rounds, whatever they leave; 0 is at once [default: never]
    #[arg(long, value_name = "never|auto|N", value_parser = parse_post_copy)]
    post_copy: Option<PostCopy>,
}

impl LimitArgs {
    /// As the policy takes them.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn limits(&self) -> Result<Limits, UsageError> {
        self.check()?;
        Ok(Limits {
            max_rounds: self.max_rounds,
            max_volume: self.max_volume,
            dirty_threshold: self.dirty_threshold.map_or(DirtyThreshold::Few, |pages| DirtyThreshold::Pages(PageCount(pages))),
            downtime_limit: self.downtime_limit,
            timeout: self.timeout,
            plateau: Plateau::Watch,
            on_limit: self.on_limit.into(),
            post_copy: self.post_copy.unwrap_or(PostCopy::Never),
        })
    }

    /// Flags that leave no place for each other.
    fn check(&self) -> Result<(), UsageError> {
        let Some(post_copy) = self.post_copy else { return Ok(()) };
        let on_limit = |value: &str, why: &str| Err(UsageError::contradiction("--on-limit", &value, why));
        match (post_copy, self.on_limit) {
            (PostCopy::Never, OnLimitFlag::PostCopy) => on_limit("post-copy", "--post-copy never rules it out; leave one of them out"),
            (PostCopy::Auto, OnLimitFlag::Throttle) => on_limit("throttle", "--post-copy auto runs the guest at the destination instead"),
            (PostCopy::Auto, OnLimitFlag::Abort) => on_limit("abort", "--post-copy auto runs the guest at the destination instead"),
            (PostCopy::After(rounds), _) if rounds > self.max_rounds => {
                let why = format!("--max-rounds allows {} before that", self.max_rounds);
                Err(UsageError::contradiction("--post-copy", &rounds, &why))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnLimitFlag {
    /// Stop the guest and copy the rest
    Stop,
    /// Run the guest at the destination at once; the rest follows
    PostCopy,
    /// Slow the guest down until the rest fits
    Throttle,
    /// Give up; the guest runs on here
    Abort,
}

impl From<OnLimitFlag> for OnLimit {
    fn from(flag: OnLimitFlag) -> Self {
        match flag {
            OnLimitFlag::Stop => Self::Stop,
            OnLimitFlag::PostCopy => Self::PostCopy,
            OnLimitFlag::Throttle => Self::Throttle,
            OnLimitFlag::Abort => Self::Abort,
        }
    }
}

fn parse_post_copy(text: &str) -> Result<PostCopy, &'static str> {
    match text {
        "never" => Ok(PostCopy::Never),
        "auto" => Ok(PostCopy::Auto),
        number => number.parse().map(PostCopy::After).map_err(|_| "expected never, auto or a number of rounds"),
    }
}
