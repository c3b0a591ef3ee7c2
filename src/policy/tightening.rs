//! Short rounds once the downtime limit is met: is one more worth it?
//!
//! The limit says what is allowed, not what is wanted. While the link moves pages clearly faster than the guest dirties
//! them, a round costs little more than it saves: what it sends would have been sent anyway, so its price is what gets
//! dirtied meanwhile. Those prices are added up and bounded.

use std::time::Duration;

/// The short rounds of one migration.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tightening {
    rounds: u32,
    /// What they cost: pages that were sent once more because of them, in time.
    spent: Duration,
    /// What was left before the last of them.
    before: Option<Duration>,
    /// How many of them left about as much.
    in_vain: u32,
}

impl Tightening {
    /// After a round that left `remainder`, within the downtime limit, `elapsed` into the migration; another one would
    /// probably leave `next`. Whether it is worth it; if so, it is taken to be sent.
    pub(super) fn is_worth_it(&mut self, remainder: Duration, next: Duration, elapsed: Duration) -> bool {
        if let Some(before) = self.before {
            self.spent = self.spent.saturating_add(remainder);
            self.in_vain += u32::from(remainder >= before.mul_f64(CLEARLY));
        }
        let shrinks = next < remainder.mul_f64(CLEARLY) && self.in_vain <= ONCE;
        let budget = elapsed.mul_f64(SHARE).max(ALWAYS);
        let worth = remainder > SHORT_ENOUGH && shrinks && self.rounds < MOST_ROUNDS && self.spent.saturating_add(next) <= budget;
        self.before = worth.then_some(remainder);
        self.rounds += u32::from(worth);
        worth
    }
}

/// A round must leave less than this share of what was left before.
const CLEARLY: f64 = 0.7;
/// It can fail to: a host that had something else to do for a moment does not say what the next one will leave.
const ONCE: u32 = 1;
const MOST_ROUNDS: u32 = 8;
/// Of the time spent so far.
const SHARE: f64 = 0.05;
/// What may be spent however short the migration was.
const ALWAYS: Duration = Duration::from_millis(100);
/// Less than this is lost among the fixed costs of a pause.
const SHORT_ENOUGH: Duration = Duration::from_micros(500);

#[cfg(test)]
mod tests {
    use super::*;

    /// How many rounds are sent when each leaves `ratio` of what was left, from `first` ms on, after `elapsed` s.
    fn rounds(first: f64, ratio: f64, elapsed: u64) -> u32 {
        let mut tightening = Tightening::default();
        let mut remainder = Duration::from_secs_f64(first / 1e3);
        let mut rounds = 0;
        while tightening.is_worth_it(remainder, remainder.mul_f64(ratio), Duration::from_secs(elapsed)) {
            rounds += 1;
            remainder = remainder.mul_f64(ratio);
        }
        rounds
    }

    #[test]
    fn rounds_go_on_while_they_are_cheap_and_help() {
        assert_eq!(rounds(100.0, 0.1, 2), 3, "100, 10, 1, 0.1 ms");
        assert_eq!(rounds(100.0, 0.5, 10), 8, "100, 50, ... 0.8, 0.4 ms");
        assert_eq!(rounds(100.0, 0.65, 10), 8, "no more than eight");
        assert_eq!(rounds(100.0, 0.75, 10), 0, "they would hardly help");
        assert_eq!(rounds(0.4, 0.1, 10), 0, "short enough");
        assert_eq!(rounds(200.0, 0.6, 1), 0, "120 ms for a migration of a second");
        assert_eq!(rounds(290.0, 0.3, 3), 6, "87 ms, 26, 8, 2.3, 0.7, 0.2 are affordable after 3 s");
    }

    #[test]
    fn the_second_round_that_did_not_help_is_the_last() {
        let mut tightening = Tightening::default();
        let ms = Duration::from_millis;
        assert!(tightening.is_worth_it(ms(40), ms(4), ms(2000)));
        assert!(tightening.is_worth_it(ms(35), ms(4), ms(2000)), "promised 4, left 35");
        assert!(!tightening.is_worth_it(ms(33), ms(4), ms(2000)), "and again");
    }
}
