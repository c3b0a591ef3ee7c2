//! An established session, and how it ends.

use std::io::ErrorKind;
use std::time::Duration;

use super::dial::Dial;
use super::pump::{Command, Ended, Pump};
use super::push::Granule;
use super::workers::Workers;
use crate::error::Error;
use crate::page::{Compression, EncoderSettings};
use crate::protocol::{ProtocolError, SourceEnd};

/// All that takes pages to the destination while the guest is here.
pub(super) struct Session<'s> {
    pub(super) pump: Pump,
    pub(super) workers: Workers<'s>,
    pub(super) terms: Terms,
    /// The quickest answer that the destination gave.
    pub(super) round_trip: Duration,
}

/// How pages travel, which both ends agreed on, and where to.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) dial: Dial,
    pub(super) channels: u16,
    /// Whether the destination can run the guest before its memory is there.
    pub(super) can_post_copy: bool,
    /// In which it fills missing memory.
    pub(super) granule: Granule,
    pub(super) compression: Compression,
    /// Of each channel.
    pub(super) encoder: EncoderSettings,
}

/// Ends a session that came to nothing, and tells the destination why; says why as well as can be known.
pub(super) fn part(pump: &Pump, mut error: Error) -> Error {
    // When a connection broke, the destination's own words on the control connection say more, or how that ended.
    if matches!(error, Error::Transport(_))
        && let Ok(ended) = pump.ended().recv_timeout(LAST_WORDS)
    {
        error = session_error(Some(ended));
    }
    pump.command(Command::Abort { reason: error.in_full() });
    error
}

/// Why the session ended although the driver was not done with it.
pub(super) fn session_error(ended: Option<Ended>) -> Error {
    let Some(Ended { end, cause, .. }) = ended else {
        return Error::System { action: "keep the session's thread alive", source: ErrorKind::BrokenPipe.into() };
    };
    match end {
        SourceEnd::Refused { reason, detail } => Error::Refused { reason, detail },
        // What came in says more than what was done about it.
        SourceEnd::Failed { error: error @ (ProtocolError::Closed { .. } | ProtocolError::CalledOff { .. }) } => cause.unwrap_or(error.into()),
        SourceEnd::Failed { error } => error.into(),
        SourceEnd::InDoubt { error } => Error::InDoubt(error),
        SourceEnd::Stranded { error } => Error::Stranded(error),
        SourceEnd::Completed => unreachable!("only a commit completes a session, and it is waited for elsewhere"),
    }
}

/// How long to wait for the destination's reason after a connection broke.
const LAST_WORDS: Duration = Duration::from_millis(500);
