//! Everything that can differ between two sessions in post-copy.

use std::time::Duration;

/// What happens in a session beside the session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) forth: Duration,
    pub(super) back: Duration,
    pub(super) start: Start,
    pub(super) cuts: [Option<Cut>; 2],
    pub(super) reconnect: Reconnect,
}

/// Before step `step` the newest connections break.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) step: usize,
    pub(super) ways: Ways,
    pub(super) notice: Notice,
    pub(super) on_the_way: OnTheWay,
}

/// What the cut takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ways {
    Forth,
    Back,
    Both,
    /// The lanes only, not the control connection.
    Lanes,
    /// And the destination's process with it.
    DestinationDead,
    /// And the destination's process, which starts anew and knows nothing.
    DestinationRestarted,
    SourceDead,
}

/// Who is told that the connections are closed. The others notice by silence only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Nobody,
    Source,
    Destination,
    Everyone,
}

impl Notice {
    pub(super) fn is_to_source(self) -> bool {
        matches!(self, Self::Source | Self::Everyone)
    }

    pub(super) fn is_to_destination(self) -> bool {
        matches!(self, Self::Destination | Self::Everyone)
    }
}

/// What becomes of what was sent before the cut and is not yet there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnTheWay {
    Lost,
    /// It sits in a buffer and comes out seconds later, behind a Resume.
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reconnect {
    AtOnce,
    Later,
    /// The first Resume arrives, and nothing that answers it does.
    AnswerLost,
    Never,
}

/// How the destination's guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Works,
    Slow,
    Fails,
}
