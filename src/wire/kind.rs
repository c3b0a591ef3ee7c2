//! The kinds of messages: their numbers, names and bounds.

use super::message::{
    MAX_BITMAP_WORDS, MAX_CHANNELS, MAX_DESCRIPTION_BYTES, MAX_FETCH_PAGES, MAX_GUEST_KIND_BYTES, MAX_REASON_BYTES, MAX_STATE_BYTES, Message,
};
use crate::memory::MAX_REGIONS;

/// A message without its contents. The discriminants are the numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Hello = 1,
    Accept = 2,
    Refuse = 3,
    Attach = 4,
    Attached = 5,
    Ping = 6,
    Progress = 7,
    Finish = 8,
    Ready = 9,
    Commit = 10,
    Running = 11,
    Released = 12,
    Abort = 13,
    Failed = 14,
    Query = 15,
    Answer = 16,
    Missing = 17,
    Fetch = 18,
    Resume = 19,
    Arrived = 20,
    Resumed = 21,
    Complete = 22,
    Stale = 23,
    Discarded = 24,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 24] = [
        Self::Hello,
        Self::Accept,
        Self::Refuse,
        Self::Attach,
        Self::Attached,
        Self::Ping,
        Self::Progress,
        Self::Finish,
        Self::Ready,
        Self::Commit,
        Self::Running,
        Self::Released,
        Self::Abort,
        Self::Failed,
        Self::Query,
        Self::Answer,
        Self::Missing,
        Self::Fetch,
        Self::Resume,
        Self::Arrived,
        Self::Resumed,
        Self::Complete,
        Self::Stale,
        Self::Discarded,
    ];

    pub(super) fn of(message: &Message) -> Self {
        match message {
            Message::Hello(_) => Self::Hello,
            Message::Accept { .. } => Self::Accept,
            Message::Refuse { .. } => Self::Refuse,
            Message::Attach { .. } => Self::Attach,
            Message::Attached { .. } => Self::Attached,
            Message::Ping => Self::Ping,
            Message::Progress { .. } => Self::Progress,
            Message::Finish { .. } => Self::Finish,
            Message::Ready => Self::Ready,
            Message::Commit { .. } => Self::Commit,
            Message::Running => Self::Running,
            Message::Released => Self::Released,
            Message::Abort { .. } => Self::Abort,
            Message::Failed { .. } => Self::Failed,
            Message::Query { .. } => Self::Query,
            Message::Answer(_) => Self::Answer,
            Message::Missing { .. } => Self::Missing,
            Message::Fetch { .. } => Self::Fetch,
            Message::Resume { .. } => Self::Resume,
            Message::Arrived { .. } => Self::Arrived,
            Message::Resumed { .. } => Self::Resumed,
            Message::Complete { .. } => Self::Complete,
            Message::Stale { .. } => Self::Stale,
            Message::Discarded => Self::Discarded,
        }
    }

    pub(super) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    pub(super) fn number(self) -> u16 {
        self as u16
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hello => "Hello",
            Self::Accept => "Accept",
            Self::Refuse => "Refuse",
            Self::Attach => "Attach",
            Self::Attached => "Attached",
            Self::Ping => "Ping",
            Self::Progress => "Progress",
            Self::Finish => "Finish",
            Self::Ready => "Ready",
            Self::Commit => "Commit",
            Self::Running => "Running",
            Self::Released => "Released",
            Self::Abort => "Abort",
            Self::Failed => "Failed",
            Self::Query => "Query",
            Self::Answer => "Answer",
            Self::Missing => "Missing",
            Self::Fetch => "Fetch",
            Self::Resume => "Resume",
            Self::Arrived => "Arrived",
            Self::Resumed => "Resumed",
            Self::Complete => "Complete",
            Self::Stale => "Stale",
            Self::Discarded => "Discarded",
        }
    }

    /// The longest body of this kind: what a receiver has to make room for.
    pub(super) fn max_body_bytes(self) -> u32 {
        let bytes = match self {
            Self::Hello => 16 + 16 + 2 + 4 + 4 + 2 + MAX_REGIONS * 16 + 2 + MAX_GUEST_KIND_BYTES + 2 + MAX_DESCRIPTION_BYTES,
            Self::Accept => 2 + 4 + 4 + 2,
            Self::Attached | Self::Answer => 2,
            Self::Refuse => 2 + 2 + MAX_REASON_BYTES,
            Self::Attach => 16 + 16 + 2 + 4,
            Self::Progress => 8 + 8,
            Self::Finish => 2 + MAX_CHANNELS as usize * 32 + 2 + 4 + 8 + MAX_STATE_BYTES,
            Self::Commit | Self::Complete => 8,
            Self::Abort | Self::Failed => 2 + MAX_REASON_BYTES,
            Self::Query | Self::Resume => 16 + 16,
            Self::Missing | Self::Arrived => 4 + MAX_BITMAP_WORDS * 8,
            Self::Fetch => MAX_FETCH_PAGES * 8,
            Self::Resumed => 4 + 4 + 8,
            Self::Stale => 2 + MAX_CHANNELS as usize * 32 + 4 + 8,
            Self::Ping | Self::Ready | Self::Running | Self::Released | Self::Discarded => 0,
        };
        u32::try_from(bytes).expect("a few mebibytes at most")
    }
}
