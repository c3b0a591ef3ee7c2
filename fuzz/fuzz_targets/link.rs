//! Two state machines with their drivers and a link that loses, cuts and delays as the input says, in pre-copy and in
//! post-copy: never two owners, never a page lost; and left in peace, they come to an end at which somebody has the guest.
//!
//! The tests explore every state of the same two machines to a bounded depth; here they go deep, with many connections.
#![no_main]

#[path = "../../tests/protocol/node.rs"]
mod node;
#[path = "../../tests/protocol/pair.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod pair;
#[path = "../../tests/protocol/post_copy/node.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod post_copy;

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use pageferry::protocol::Timeouts;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[kind, connections, breaks], choices)) = bytes.split_first_chunk() else { return };
    let give_up = if kind & 1 == 0 { Duration::ZERO } else { Duration::MAX };
    let now = Instant::now();
    let choices = choices.iter().take(MOST);
    if kind & 2 == 0 {
        pre_copy(now, timeouts(give_up, give_up), choices);
    } else {
        post_copy(now, timeouts(Duration::ZERO, give_up), (connections, breaks), choices);
    }
});

/// With timeouts of zero each is always due: it is one of the choices.
fn timeouts(resolve: Duration, recover: Duration) -> Timeouts {
    const SOON: Duration = Duration::ZERO;
    Timeouts { heartbeat: SOON, silence: SOON, handshake: SOON, resolve, recover, tombstone: SOON }
}

/// A choice that cannot be made there is passed over.
fn pre_copy<'b>(now: Instant, timeouts: Timeouts, choices: impl Iterator<Item = &'b u8>) {
    let mut node = node::Node::new(now, timeouts);
    for &choice in choices {
        node = node.after(node::CHOICES[usize::from(choice) % node::CHOICES.len()], now).unwrap_or(node);
    }
    node.settle(now);
}

fn post_copy<'b>(now: Instant, timeouts: Timeouts, (connections, breaks): (u8, u8), choices: impl Iterator<Item = &'b u8>) {
    let mut node = post_copy::Node::new(now, timeouts, connections % 32, breaks % 32);
    for &choice in choices {
        node = node.after(post_copy::CHOICES[usize::from(choice) % post_copy::CHOICES.len()], now).unwrap_or(node);
    }
    node.settle(now);
}

/// Choices in a session.
const MOST: usize = 200;
