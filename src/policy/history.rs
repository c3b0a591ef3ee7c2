//! What the rounds so far left: have they stopped helping, and is now a good moment?
//!
//! What counts is the time that the remainder takes on the wire, not its pages: a round that leaves as many pages but
//! cheaper ones has helped. The rounds of a guest that works in bursts leave now more, now less; no round then sets a
//! new low any more, and the best moment to stop is when what is left is near the lowest seen.

use std::time::Duration;

/// The remainders of one migration, round by round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct History {
    /// The least that any round left.
    lowest: Option<Duration>,
    /// The most since the last new low.
    highest: Duration,
    last: Duration,
    /// Rounds in a row that each left clearly less than the one before it.
    coming_down: u32,
    /// Times that it did so for a while after it had not helped.
    descents: u32,
    /// Rounds since there was a clear new low.
    flat_rounds: u32,
    /// Rounds spent waiting for a low.
    waited: u32,
}

/// What the rounds so far come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trend {
    /// They help.
    Falling,
    /// They stopped helping.
    Flat,
    /// They stopped helping; what they leave goes up and down, and this one left about the least.
    Low,
    /// They stopped helping, and this one left clearly more than another did: a better one is likely to come.
    High,
}

impl History {
    /// A round left `remainder`.
    pub(super) fn note(&mut self, remainder: Duration) {
        let is_lower = self.lowest.is_none_or(|lowest| remainder < lowest.mul_f64(NEW_LOW));
        (self.flat_rounds, self.highest) = if is_lower { (0, remainder) } else { (self.flat_rounds + 1, self.highest.max(remainder)) };
        self.lowest = Some(self.lowest.map_or(remainder, |lowest| lowest.min(remainder)));
        self.coming_down = if remainder < self.last.mul_f64(DOWN) { self.coming_down + 1 } else { 0 };
        self.descents += u32::from(self.flat_rounds >= FLAT_ROUNDS && self.coming_down == SURELY_DOWN);
        self.last = remainder;
    }

    /// Whether the last round left clearly less than the one before it, as after a burst of writes.
    pub(super) fn is_coming_down(&self) -> bool {
        self.coming_down > 0
    }

    /// Where that leads.
    pub(super) fn trend(&self) -> Trend {
        // As floats: nothing is known of a rate at first, and then a remainder takes for ever.
        let (last, highest) = (self.last.as_secs_f64(), self.highest.as_secs_f64());
        let is_near = last <= self.lowest.unwrap_or_default().as_secs_f64() * NEAR;
        // What a burst left shrinks again, as everything did before it. With the second one it is how the guest works.
        let is_after_a_burst = self.coming_down >= SURELY_DOWN && self.descents <= 1;
        if self.flat_rounds < FLAT_ROUNDS || is_after_a_burst {
            Trend::Falling
        } else if !is_near && self.waited < PATIENCE {
            Trend::High
        } else if is_near && highest > last * FAR {
            Trend::Low
        } else {
            Trend::Flat
        }
    }

    /// Another round is sent in the hope that it leaves less.
    pub(super) fn wait(&mut self) {
        self.waited += 1;
    }
}

/// Less than this share of the lowest so far is a new low.
const NEW_LOW: f64 = 0.9;
/// Less than this share of what the round before left is clearly less, ...
const DOWN: f64 = 0.75;
/// ... and so many rounds in a row like that are no accident.
const SURELY_DOWN: u32 = 2;
/// So many rounds in a row without one have not helped.
const FLAT_ROUNDS: u32 = 2;
/// Up to so many times the lowest is near it.
const NEAR: f64 = 1.15;
/// A guest that once left so many times more goes up and down.
const FAR: f64 = 1.3;
/// So many rounds are spent on waiting for a low, in the whole migration.
const PATIENCE: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn trends(millis: &[u64]) -> Vec<Trend> {
        let mut history = History::default();
        let mut note = |&millis: &u64| {
            history.note(Duration::from_millis(millis));
            let trend = history.trend();
            if trend == Trend::High {
                history.wait();
            }
            trend
        };
        millis.iter().map(&mut note).collect()
    }

    #[test]
    fn remainders_make_a_trend() {
        use Trend::{Falling, Flat, High, Low};
        let table: [(&str, &[u64], &[Trend]); 7] = [
            ("geometric", &[1000, 500, 250, 125, 60], &[Falling; 5]),
            ("flat", &[900, 900, 900, 880], &[Falling, Falling, Flat, Flat]),
            ("one burst", &[900, 500, 400, 900, 600, 410, 260], &[Falling, Falling, Falling, Falling, High, Falling, Falling]),
            ("a saw", &[900, 600, 400, 900, 600, 400, 900, 600, 400], &[Falling, Falling, Falling, Falling, High, Falling, High, High, Low]),
            ("in bursts", &[900, 300, 900, 800, 310], &[Falling, Falling, Falling, High, Low]),
            ("a low just before it is known to oscillate", &[900, 300, 900, 300], &[Falling, Falling, Falling, Low]),
            ("growing: patience ends", &[100, 200, 300, 400, 500, 600, 700, 800, 900], &[Falling, Falling, High, High, High, High, Flat, Flat, Flat]),
        ];
        for (name, millis, expected) in table {
            assert_eq!(trends(millis), expected, "{name}");
        }
    }
}
