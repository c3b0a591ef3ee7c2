//! Every order in which things can happen, explored to the last state.
//!
//! From every state reached, also the calm continuation is run: once nothing breaks any more and the destination can be
//! asked, exactly one end owns the guest and no doubt is left.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use pageferry::protocol::Timeouts;

use crate::node::{CHOICES, Node};

/// Every state that can be reached, each once.
fn explore(timeouts: Timeouts) -> (usize, usize) {
    let now = Instant::now();
    let first = Node::new(now, timeouts);
    let mut seen = HashSet::new();
    let mut open = vec![first];
    let mut transitions = 0;
    while let Some(node) = open.pop() {
        for choice in CHOICES {
            let Some(next) = node.after(choice, now) else { continue };
            transitions += 1;
            let mut hasher = DefaultHasher::new();
            format!("{next:?}").hash(&mut hasher);
            if seen.insert(hasher.finish()) {
                next.clone().settle(now);
                open.push(next);
            }
        }
    }
    (seen.len(), transitions)
}

#[test]
fn no_order_of_events_makes_two_owners_or_a_lasting_doubt() {
    const SOON: Duration = Duration::ZERO;
    // A source that gives up asking at any moment, and one that never does (it would not ask twice if it always gave up).
    for resolve in [SOON, Duration::MAX] {
        let timeouts = Timeouts { heartbeat: SOON, silence: SOON, handshake: SOON, resolve, recover: resolve, tombstone: SOON };
        let (states, transitions) = explore(timeouts);
        println!("{states} states, {transitions} transitions");
        assert!(states > 1000, "the exploration has lost its point");
    }
}
