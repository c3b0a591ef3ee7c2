//! Every order in which things can happen in post-copy, explored to the last state.
//!
//! The number of connections and of lanes that break is bounded, or there would be no last state: the source may come
//! back so often. From every state reached, also the calm continuation is run: once nothing breaks any more and the
//! destination can be reached, exactly one end has the guest, with every page, and no page has crossed twice.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use pageferry::protocol::{DestinationEnd, Timeouts};

use super::node::{CHOICES, Node};

/// What was reached.
#[derive(Debug, Default)]
struct Reached {
    states: usize,
    transitions: usize,
    /// Ends of the destination: the guest stayed, was dropped.
    completed: usize,
    dropped: usize,
}

/// The text of a state without what went wrong before: nothing depends on that but words.
fn without_reasons(state: &str) -> String {
    let mut kept = String::with_capacity(state.len());
    let mut rest = state;
    while let Some((at, label)) = ["addr: ", "error: ", "cause: ", "last: ", "unconfirmed: ", "unsettled: "]
        .into_iter()
        .filter_map(|label| Some((rest.find(label)?, label)))
        .min()
    {
        let (before, after) = rest.split_at(at + label.len());
        kept.push_str(before);
        rest = &after[end_of_value(after)..];
    }
    kept + rest
}

/// Where the value at the start of `text` ends.
fn end_of_value(text: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'(' => depth += 1,
            b'}' | b')' | b',' if depth == 0 => return at,
            b'}' | b')' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// Every state that can be reached, each once.
fn explore(recover: Duration, connections: u8, breaks: u8) -> Reached {
    const SOON: Duration = Duration::ZERO;
    let timeouts = Timeouts { heartbeat: SOON, silence: SOON, handshake: SOON, resolve: SOON, recover, tombstone: SOON };
    let now = Instant::now();
    let mut open = vec![Node::new(now, timeouts, connections, breaks)];
    let mut seen = HashSet::new();
    let mut reached = Reached::default();
    while let Some(node) = open.pop() {
        for choice in CHOICES {
            let Some(next) = node.after(choice, now) else { continue };
            reached.transitions += 1;
            let mut hasher = DefaultHasher::new();
            without_reasons(&format!("{next:?}")).hash(&mut hasher);
            if seen.insert(hasher.finish()) {
                match &next.destination_end {
                    Some(DestinationEnd::Completed { .. }) => reached.completed += 1,
                    Some(_) => reached.dropped += 1,
                    None => {}
                }
                let is_over = next.is_over();
                next.clone().settle(now);
                open.extend((!is_over).then_some(next));
            }
        }
    }
    reached.states = seen.len();
    reached
}

#[test]
fn no_order_of_events_makes_two_owners_loses_a_page_or_leaves_a_guest_without_its_source() {
    // A source that gives up looking at any moment, and one that never does.
    for recover in [Duration::ZERO, Duration::MAX] {
        let reached = explore(recover, 2, 1);
        println!("{reached:?}");
        assert!(reached.states > 10_000 && reached.completed > 100 && reached.dropped > 100, "the exploration has lost its point: {reached:?}");
    }
}
