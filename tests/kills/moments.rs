//! When to strike: moments of a migration, chosen at random from a seed.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::LIMIT;
use crate::processes::Process;
use crate::processes::random::Random;

/// So long after the sender said something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    after: &'static str,
    delay: Duration,
}

/// What the sender says as it goes.
pub(crate) const CONNECTING: &str = "connecting";
pub(crate) const COPYING: &str = "copying while the guest runs";
pub(crate) const PAUSED: &str = "the guest is paused";
pub(crate) const HANDOVER: &str = "handing the guest over";

/// How long the parts of an undisturbed migration take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    /// From the first connection to the end of the process.
    pub(crate) whole: Duration,
    /// From the pause to the handover.
    pub(crate) pause: Duration,
    /// From there to the end of the process.
    pub(crate) handover: Duration,
}

impl Moment {
    pub(crate) fn new(after: &'static str, delay: Duration) -> Self {
        Self { after, delay }
    }

    /// The `index`th moment: every other one somewhere in the whole migration, the rest around its end, where an instant
    /// decides who has the guest.
    pub(crate) fn choose(index: u64, course: &Course, random: &mut Random) -> Self {
        match index % 4 {
            0 | 2 => Self::new(CONNECTING, random.up_to(course.whole)),
            1 => Self::in_the_handover(course, random),
            _ => Self::around_the_end(course, random),
        }
    }

    /// From the pause on.
    fn around_the_end(course: &Course, random: &mut Random) -> Self {
        Self::new(PAUSED, random.up_to(course.pause + course.handover))
    }

    /// In the handover.
    pub(crate) fn in_the_handover(course: &Course, random: &mut Random) -> Self {
        Self::new(HANDOVER, random.soon_up_to(course.handover))
    }

    /// How long the guest had been paused, where that is known.
    pub(crate) fn since_pause(&self) -> Option<Duration> {
        (self.after == PAUSED).then_some(self.delay)
    }

    /// Waits for it. The wait for a very short delay spins: a sleep would be longer than a handover.
    pub(crate) fn await_in(&self, sender: &mut Process) -> Result<()> {
        sender.stderr.next_with(self.after, LIMIT)?;
        let since = Instant::now();
        std::thread::sleep(self.delay.saturating_sub(Duration::from_millis(1)));
        while since.elapsed() < self.delay {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ms after {:?}", self.delay.as_secs_f64() * 1e3, self.after)
    }
}
