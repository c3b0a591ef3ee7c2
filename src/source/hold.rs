//! Who holds the guest: the one place that pauses it and lets it go on.
//!
//! Dropped without having been released, the hold resumes a paused guest. So every way out of the driver, a panic
//! included, leaves the guest running here, at full speed, unless ownership was given up explicitly.

use std::time::{Duration, Instant};

use crate::guest::{Guest, GuestError, RunShare};
use crate::stats::ThrottleReport;
use crate::sys::priority::Prompt;
use crate::units::ByteCount;

/// The source's grip on its guest.
pub(super) struct Hold<'g> {
    guest: &'g mut dyn Guest,
    /// The thread that drives the migration, which the guest's own threads may be started from.
    prompt: Prompt,
    paused_at: Option<Instant>,
    released: bool,
    ended: bool,
    /// Time the guest stood still although it stayed here.
    stalled: Duration,
    /// Since when the guest is slowed down.
    throttled_at: Option<Instant>,
    throttle: Option<ThrottleReport>,
}

impl<'g> Hold<'g> {
    pub(super) fn new(guest: &'g mut dyn Guest) -> Self {
        Self {
            guest,
            prompt: Prompt::take(),
            paused_at: None,
            released: false,
            ended: false,
            stalled: Duration::ZERO,
            throttled_at: None,
            throttle: None,
        }
    }

    /// Does what takes long as the thread that the driver's was before the migration.
    pub(super) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.prompt.aside(work)
    }

    /// Starts threads that take short turns.
    pub(super) fn for_short_turns<T>(&self, work: impl FnOnce() -> T) -> T {
        self.prompt.for_short_turns(work)
    }

    /// Pauses the guest, if it is not paused.
    pub(super) fn pause(&mut self) -> Result<(), GuestError> {
        if self.paused_at.is_none() {
            let asked = Instant::now();
            self.guest.pause()?;
            self.paused_at = Some(asked);
        }
        Ok(())
    }

    /// Lets a paused guest run on here; its time is counted as a stall. Does nothing once the guest was released.
    pub(super) fn resume(&mut self) -> Result<(), GuestError> {
        if self.released {
            return Ok(());
        }
        if let Some(since) = self.paused_at {
            // Where that fails it stays paused, for the next try.
            self.prompt.aside(|| self.guest.resume())?;
            self.paused_at = None;
            self.stalled += since.elapsed();
        }
        Ok(())
    }

    /// The state of a paused guest.
    pub(super) fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        self.guest.save_state()
    }

    /// How large that is, about.
    pub(super) fn state_bytes(&self) -> ByteCount {
        self.guest.state_bytes()
    }

    /// Slows the guest down.
    pub(super) fn throttle(&mut self, share: RunShare) -> Result<(), GuestError> {
        self.prompt.aside(|| self.guest.throttle(share))?;
        self.throttled_at.get_or_insert_with(Instant::now);
        let throttle = self.throttle.get_or_insert(ThrottleReport { lowest_share: share, time: Duration::ZERO });
        throttle.lowest_share = share;
        Ok(())
    }

    /// Lets the guest run at full speed again, or once it is resumed.
    pub(super) fn lift_throttle(&mut self) {
        let (Some(since), Some(throttle)) = (self.throttled_at.take(), &mut self.throttle) else { return };
        throttle.time += since.elapsed();
        if let Err(error) = self.prompt.aside(|| self.guest.throttle(RunShare::FULL)) {
            tracing::error!(%error, "the guest could not be given its full speed back");
        }
    }

    /// Whether the guest is slowed down.
    pub(super) fn is_throttled(&self) -> bool {
        self.throttled_at.is_some()
    }

    /// How far, and for how long, the guest was slowed down, if it was.
    pub(super) fn throttle_report(&self) -> Option<ThrottleReport> {
        self.throttle
    }

    /// From now on the guest is not resumed here, unless [`Hold::take_back`] says otherwise.
    pub(super) fn release(&mut self) {
        self.released = true;
    }

    /// The destination said for certain that it never ran the guest and never will.
    pub(super) fn take_back(&mut self) {
        self.released = false;
    }

    /// Has the guest run here at full speed, unless it was released. Where that fails it is not tried again.
    pub(super) fn end(&mut self) -> Result<(), GuestError> {
        self.ended = true;
        self.lift_throttle();
        self.resume()
    }

    /// How long the guest has been paused.
    pub(super) fn paused_for(&self) -> Duration {
        self.paused_at.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Time the guest stood still and then ran on here.
    pub(super) fn stalled(&self) -> Duration {
        self.stalled
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            tracing::error!(error = %error, "the guest could not be resumed at the source");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cannot be resumed at the first try.
    #[derive(Default)]
    struct Reluctant {
        tries: u32,
        is_running: bool,
    }

    impl Guest for Reluctant {
        fn pause(&mut self) -> Result<(), GuestError> {
            self.is_running = false;
            Ok(())
        }

        fn resume(&mut self) -> Result<(), GuestError> {
            self.tries += 1;
            self.is_running = self.tries > 1;
            if self.is_running { Ok(()) } else { Err(GuestError::new("resume", "told to fail")) }
        }

        fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
            Ok(Vec::new())
        }

        fn load_state(&mut self, _state: &[u8]) -> Result<(), GuestError> {
            Ok(())
        }
    }

    #[test]
    fn a_guest_that_could_not_be_resumed_is_resumed_at_the_next_try() {
        let mut guest = Reluctant::default();
        let mut hold = Hold::new(&mut guest);
        hold.pause().unwrap();
        hold.resume().unwrap_err();
        assert!(hold.paused_for() > Duration::ZERO && hold.stalled() == Duration::ZERO, "it still stands");
        drop(hold);
        assert!(guest.is_running);
    }

    #[test]
    fn once_it_was_told_that_it_failed_it_is_not_tried_again() {
        let mut guest = Reluctant::default();
        let mut hold = Hold::new(&mut guest);
        hold.pause().unwrap();
        hold.end().unwrap_err();
        drop(hold);
        assert_eq!((guest.tries, guest.is_running), (1, false));
    }
}
