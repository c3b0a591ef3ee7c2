//! Whether rounds can still bring a guest within its limits, as far as that can be foreseen.
//!
//! Where post-copy is allowed nothing is gained by rounds that lead nowhere, so they are not waited for: after each one
//! the rest of the migration is imagined, with the guest dirtying pages as it was seen to and the very same policy
//! deciding. Only if that ends at a limit instead of within the downtime limit is pre-copy given up. To give it up for a
//! guest that would have converged is the worse mistake, so the imagined link is clearly faster than the measured one,
//! and nothing is foreseen before it is known what pages cost that are sent again.

use std::time::Duration;

use super::{Decision, Limits, OnLimit, Policy, PostCopy, Reason, RoundFacts};

impl Policy {
    /// Whether the rest cannot be expected to fit in the downtime limit before another limit is reached.
    pub(super) fn is_hopeless(&self, facts: &RoundFacts) -> bool {
        if !self.estimator().knows_resends() || !self.estimator().knows_link() {
            return false;
        }
        let seen = facts.index.saturating_add(ROUNDS);
        let limits = *self.limits();
        // Limits that lead to nothing but their own name.
        let asked = Limits { post_copy: PostCopy::Never, on_limit: OnLimit::Abort, max_rounds: limits.max_rounds.min(seen), ..limits };
        let mut hopeful = self.imagined(asked, OPTIMISM);
        let go_on = hopeful.verdict(Decision::Round, Reason::Converging, Duration::MAX);
        let rest = hopeful.predict_rest(facts, go_on, self.curve(), None, Duration::ZERO);
        let is_out_of_sight = rest.stopped_by == Reason::MaxRounds && seen < limits.max_rounds;
        rest.decision == Decision::Abort && !is_out_of_sight
    }
}

/// How many times faster than measured the rest is imagined.
const OPTIMISM: f64 = 1.25;
/// So many rounds are looked ahead.
const ROUNDS: u32 = 100;
