//! How fast the guest writes in its first second at the destination, where much of its memory is still missing.
//!
//! The counter of writes is in guest memory. To read it before it is there would be a fault like the guest's own, or,
//! before the destination watches for faults, would put zeros in its place. So nothing is looked at before the guest
//! runs there, and even then only once the page is present; from then on it stays.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::window::Window;
use crate::guests::ControlWord;

/// A look at the guest from the switch on.
pub(super) struct FirstSecond {
    began: Instant,
    /// Writes that were done at the source.
    before: u64,
    thread: JoinHandle<Vec<(Instant, u64)>>,
}

impl FirstSecond {
    /// The guest has just begun to run at the destination, `there`; the source, `here`, has its last count.
    ///
    /// # Errors
    /// When the source cannot be seen.
    pub(super) fn start(here: &Window, there: Window) -> Result<Self> {
        let began = Instant::now();
        let before = here.word(ControlWord::Writes).context("the guest is out of sight")?;
        let look = move || {
            let mut counts = Vec::new();
            while began.elapsed() < WINDOW {
                if there.is_present(ControlWord::Writes).is_ok_and(|present| present)
                    && let Ok(writes) = there.word(ControlWord::Writes)
                {
                    counts.push((Instant::now(), writes));
                }
                thread::sleep(BETWEEN_LOOKS);
            }
            counts
        };
        let thread = thread::Builder::new().name("first-second".into()).spawn(look).context("no thread")?;
        Ok(Self { began, before, thread })
    }

    /// Writes a second, over a second or until `end` if that comes first. Waits for the second to pass.
    pub(super) fn writes_per_s(self, end: Option<Instant>) -> Option<f64> {
        let counts = self.thread.join().ok()?;
        rate(self.began, self.before, &counts, end)
    }
}

fn rate(began: Instant, before: u64, counts: &[(Instant, u64)], end: Option<Instant>) -> Option<f64> {
    let end = end.map_or(began + WINDOW, |end| end.min(began + WINDOW));
    // No count at all: the guest got nowhere, or was not seen; only the first is a figure.
    counts.first()?;
    let last = counts.iter().take_while(|(when, _)| *when <= end).last().map_or(before, |(_, writes)| *writes);
    let seconds = end.saturating_duration_since(began).as_secs_f64();
    (seconds > 0.0).then(|| last.saturating_sub(before) as f64 / seconds)
}

const WINDOW: Duration = Duration::from_secs(1);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_over_a_second_or_as_long_as_the_guest_ran() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let counts = [(at(100), 1100), (at(400), 1400), (at(990), 1900), (at(1010), 1950)];
        assert_eq!(rate(began, 1000, &counts, None), Some(900.0));
        assert_eq!(rate(began, 1000, &counts, Some(at(500))), Some(800.0), "400 in half a second");
        assert_eq!(rate(began, 1000, &counts, Some(at(50))), Some(0.0), "it waited for its first page");
        assert_eq!(rate(began, 1000, &counts, Some(at(5000))), Some(900.0));
        assert_eq!(rate(began, 1000, &[], None), None, "not seen");
    }
}
