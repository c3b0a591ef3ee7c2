//! What is the same for every engine: the guest runs, its pace is taken, the migration begins and is watched.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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
///
/// # Errors
/// When it cannot be seen.
pub(super) fn pace(window: &Window, time: Duration) -> Result<Option<f64>> {
    let count = || window.word(ControlWord::Writes).map(|writes| (Instant::now(), writes)).context("the guest is out of sight");
    let before = count()?;
    thread::sleep(time);
    Ok(rate([before, count()?].into_iter()))
}

/// A time in milliseconds.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
