//! What an embedder is told while a migration runs.

use std::fmt;
use std::time::Duration;

use crate::guest::RunShare;
use crate::policy::Verdict;
use crate::units::{ByteCount, BytesPerSec, PageCount, PagesPerSec};

/// Where a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Talking to the destination.
    Connecting,
    /// Copying while the guest runs.
    PreCopy,
    /// The guest is paused; the rest is copied.
    StopAndCopy,
    /// Everything is sent; the guest changes hands.
    Handover,
    /// The commit was sent and no answer came; asking.
    Resolving,
    /// The guest runs at the destination; the pages it lacks follow.
    PostCopy,
}

impl fmt::Display for Phase {
    /// One line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::PreCopy => "copying while the guest runs",
            Self::StopAndCopy => "the guest is paused; copying the rest",
            Self::Handover => "handing the guest over",
            Self::PostCopy => "the guest runs at the destination; its pages follow",
            Self::Resolving => "in doubt: asking the destination whether it runs the guest",
        })
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A phase began.
    Phase(Phase),
    /// A round was sent and decided on.
    Round {
        /// Its number, from 0.
        index: u32,
        /// Pages in it.
        pages: PageCount,
        /// Bytes on the wire.
        bytes: ByteCount,
        /// How long it took.
        duration: Duration,
        /// Dirty pages after it.
        dirty_after: PageCount,
        /// What follows, and why.
        verdict: Verdict,
    },
    /// A round is under way.
    Progress {
        /// The round.
        index: u32,
        /// Bytes on the wire since the start.
        bytes: ByteCount,
        /// Rate over the last while.
        rate: BytesPerSec,
        /// Pages of this round sent so far.
        pages_sent: PageCount,
        /// Pages of this round.
        pages: PageCount,
        /// Pages a second the guest dirties, from the last round.
        dirty_rate: Option<PagesPerSec>,
        /// Downtime to expect if it stopped after the last round.
        expected_downtime: Option<Duration>,
        /// How much of the time the guest may run.
        share: RunShare,
    },
    /// The remainder after the pause was over budget; the guest runs again and copying goes on.
    PauseUndone {
        /// Pages that were left.
        remainder: PageCount,
        /// How long the guest stood.
        stalled: Duration,
    },
    /// Pages follow a guest that runs at the destination.
    Following {
        /// Bytes on the wire since the start.
        bytes: ByteCount,
        /// Rate over the last while.
        rate: BytesPerSec,
        /// Pages that were missing when the guest moved.
        pages: PageCount,
        /// Of them not sent yet.
        pages_left: PageCount,
        /// Pages that the guest's faults asked for.
        requests: u64,
        /// Pages sent because of them.
        urgent_pages: PageCount,
    },
    /// The connection broke while pages followed. The guest runs on as far as its pages are there; nothing is lost.
    Interrupted {
        /// Pages not sent yet, as far as is known: those under way may have to go again.
        pages_left: PageCount,
        /// What went wrong.
        error: String,
    },
    /// The connection is being made again.
    Recovering {
        /// For how long there has been none.
        interrupted: Duration,
        /// Attempts so far.
        attempts: u32,
    },
    /// The connection is there again, and pages follow.
    Recovered {
        /// How long there was none.
        interrupted: Duration,
        /// Pages still to be sent.
        pages_left: PageCount,
    },
}
