//! What is the same for every engine: the guest runs, its pace is taken, the migration begins and is watched.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ballast::Ballast;
use super::network::Network;
use super::results::Run;
use super::watch::rate;
use super::window::Window;
use crate::guests::{ControlWord, GuestImage, GuestSpec};

/// All that an engine needs to know of one run.
pub(super) struct Job<'j> {
    pub(super) network: &'j Network,
    pub(super) guest: &'j GuestSpec,
    pub(super) image: &'j GuestImage,
    pub(super) leftovers: &'j super::Leftovers,
    /// How long the guest runs before it is migrated.
    pub(super) warm_up: Duration,
    /// How long a migration may take.
    pub(super) cap: Duration,
}

/// How a run ended, when nothing went wrong.
#[expect(clippy::large_enum_variant, reason = "one at a time")]
pub(super) enum Ended {
    /// The guest is at the destination.
    Completed(Run),
    /// It was not within the cap.
    NotDone,
}

/// Has a guest that has begun to write run for its warm-up, but for a [`lead`], and takes its pace meanwhile. Then the
/// ballast is given back.
///
/// # Errors
/// When the guest cannot be seen.
pub(super) fn warm_up(job: &Job<'_>, window: &Window, ballast: Option<Ballast>) -> Result<Option<f64>> {
    let alone = job.warm_up.saturating_sub(lead(job.warm_up));
    thread::sleep(alone / 3);
    let pace = pace(window, alone * 2 / 3)?;
    drop(ballast);
    Ok(pace)
}

/// How long before the migration begins the bench is ready for it. Memory that is free for longer is taken back.
pub(super) fn lead(warm_up: Duration) -> Duration {
    MOST_LEAD.min(warm_up / 4)
}

/// Enough to find the guest, to begin to watch it, and for a machine that is late with both.
const MOST_LEAD: Duration = Duration::from_millis(250);

/// Waits until the guest has done more than so many writes.
///
/// # Errors
/// When it does not within `limit`.
pub(super) fn await_write(window: &Window, after: u64, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while window.word(ControlWord::Writes)? <= after {
        anyhow::ensure!(Instant::now() < deadline, "the guest has not written within {limit:?}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Writes a second of a guest left alone for `time`.
fn pace(window: &Window, time: Duration) -> Result<Option<f64>> {
    let count = || window.word(ControlWord::Writes).map(|writes| (Instant::now(), writes)).context("the guest is out of sight");
    let before = count()?;
    thread::sleep(time);
    Ok(rate([before, count()?].into_iter()))
}

/// A time in milliseconds.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
