//! The connections of a session that carry pages.

use std::fmt;

use super::message::MAX_CHANNELS;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Carries the bulk of the pages. Numbered from 0.
    Bulk(u16),
    /// Carries pages that the guest waits for, and the requests for them the other way. There is one in a session that
    /// may go on in post-copy, and none in others.
    Urgent,
}

impl Lane {
    /// As on the wire.
    pub(super) fn number(self) -> u16 {
        match self {
            Self::Bulk(channel) => channel,
            Self::Urgent => URGENT,
        }
    }

    pub(super) fn from_number(number: u16) -> Option<Self> {
        match number {
            URGENT => Some(Self::Urgent),
            channel if channel < MAX_CHANNELS => Some(Self::Bulk(channel)),
            _ => None,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk(channel) => write!(f, "bulk {channel}"),
            Self::Urgent => f.write_str("urgent"),
        }
    }
}

const URGENT: u16 = 0xffff;
