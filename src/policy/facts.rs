//! What was measured: the numbers that go into a decision.

use std::time::Duration;

use crate::units::{ByteCount, PageCount};

/// What was measured in a round that has just ended, its harvest included.
#[derive(Clone, Copy, Debug)]
pub struct RoundFacts {
    /// Which round, from 0.
    pub index: u32,
    /// Since the migration started.
    pub elapsed: Duration,
    /// From the first page of this round to the harvest after it.
    pub duration: Duration,
    /// Of it until nearly all had arrived at the destination's host: without the answers and the harvest that followed.
    pub moving: Duration,
    /// Pages sent in this round; zero pages count, holes that were never touched do not.
    pub pages: PageCount,
    /// Of them sent for the first time.
    pub first: PageCount,
    /// Of them all zeros, which cost next to nothing and say nothing about the others.
    pub empty: PageCount,
    /// What they took on the wire.
    pub wire_bytes: ByteCount,
    /// Bytes that arrived at the destination's host meanwhile: less than were written while queues fill up.
    pub arrived: ByteCount,
    /// What made the workers wait.
    pub bottleneck: Bottleneck,
    /// `v_mig`: guest memory sent in all rounds so far, resends counted.
    pub memory_sent_total: ByteCount,
    /// What a next round would send: pages the guest dirtied meanwhile, and those that were left for it.
    pub dirty_after: PageCount,
    /// Of them not sent in this round: it was cut short, or they were held back. Those that the guest wrote meanwhile count
    /// here, not as dirtied.
    pub unsent: PageCount,
    /// Of them never sent at all: they cost what pages cost the first time.
    pub never_sent: PageCount,
    /// What a pause costs besides the pages: what is still under way, last harvest, state, acknowledgements.
    pub fixed_cost: Duration,
}

impl RoundFacts {
    /// Pages that the guest dirtied meanwhile.
    pub(super) fn dirtied(&self) -> PageCount {
        PageCount(self.dirty_after.0.saturating_sub(self.unsent.0))
    }
}

/// What a round could have been faster with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// More bytes a second: the queues were full, or the rate is limited on purpose.
    Link,
    /// More processor time: the link was not kept busy.
    Processor,
    /// Neither: it was hardly longer than a round trip, or next to nothing, so that rates can only be said to be at least so high.
    RoundTrip,
}

/// What is known once the guest is paused and harvested for the last time.
#[derive(Clone, Copy, Debug)]
pub struct PauseFacts {
    /// How long the guest has been paused.
    pub paused_for: Duration,
    /// Pages left to send.
    pub remaining: PageCount,
    /// Of them never sent at all.
    pub never_sent: PageCount,
    /// What is still to come besides the pages: what is under way, state, acknowledgements.
    pub fixed_cost: Duration,
}
