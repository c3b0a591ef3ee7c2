//! Which lanes have been attached.

use crate::wire::{Features, Lane, Message, RefuseReason};

/// Why a connection for pages is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Not this session's token.
    #[error("the token is not the session's")]
    Token,
    /// Channels are numbered from 0 to what was granted.
    #[error("channel {channel} of {channels}")]
    Channel {
        /// The channel named.
        channel: u16,
        /// Channels granted.
        channels: u16,
    },
    /// One connection each.
    #[error("lane {lane} is attached already")]
    Twice {
        /// The lane named.
        lane: Lane,
    },
    /// There is no urgent lane in a session without post-copy.
    #[error("post-copy was not granted")]
    NotGranted,
    /// Of a time before the last recovery, or of one that did not happen.
    #[error("it is of generation {found}, this is generation {current}")]
    Generation {
        /// The generation named.
        found: u32,
        /// The session's.
        current: u32,
    },
    /// Not the time for it.
    #[error("the session is {state}")]
    State {
        /// What it is doing.
        state: &'static str,
    },
}

impl AttachError {
    /// What to answer on that connection, before closing it.
    #[must_use]
    pub fn refusal(self) -> Message {
        let reason = if self == Self::Token { RefuseReason::Authorization } else { RefuseReason::Other };
        Message::Refuse { reason, detail: self.to_string() }
    }
}

/// The lanes of one generation that are attached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attached {
    /// One bit for each channel.
    bulk: u64,
    urgent: bool,
}

impl Attached {
    /// Adds `lane`; whether that was the last one.
    pub(super) fn add(&mut self, lane: Lane, channels: u16, granted: Features) -> Result<bool, AttachError> {
        let with_urgent = granted.contains(Features::POST_COPY);
        let was_there = match lane {
            Lane::Bulk(channel) if channel >= channels => return Err(AttachError::Channel { channel, channels }),
            Lane::Bulk(channel) => {
                let was_there = self.bulk & (1 << channel) != 0;
                self.bulk |= 1 << channel;
                was_there
            }
            Lane::Urgent if !with_urgent => return Err(AttachError::NotGranted),
            Lane::Urgent => std::mem::replace(&mut self.urgent, true),
        };
        if was_there {
            return Err(AttachError::Twice { lane });
        }
        Ok(self.bulk.count_ones() == u32::from(channels) && self.urgent == with_urgent)
    }
}
