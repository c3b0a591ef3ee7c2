//! Leave to come in, which a long message needs before its body is read.
//!
//! Whatever else a peer says is short, so that a connection has room for it. A guest's state can be a thousand times as
//! long, and a peer can have many connections: whether there is a place and room for one is asked once its envelope is there.

use std::fmt;

use crate::wire::{Announced, MESSAGE_HEADER_BYTES, SHORT_BODY_BYTES, WireError, announced_message};

/// Whom a connection asks.
pub(super) struct Leave {
    may_come: Option<MayCome>,
    /// The message that is coming in has it.
    is_given: bool,
}

/// Says why a message may not come.
type MayCome = Box<dyn Fn(Announced) -> Result<(), String> + Send>;

impl Leave {
    /// None is given.
    pub(super) fn none() -> Self {
        Self { may_come: None, is_given: false }
    }

    /// It is for `may_come` to say.
    pub(super) fn of(may_come: impl Fn(Announced) -> Result<(), String> + Send + 'static) -> Self {
        Self { may_come: Some(Box::new(may_come)), is_given: false }
    }

    /// Asks about the message that `bytes` begin with, if that is long and has not been asked for. How many bytes all of it
    /// has when it may come.
    pub(super) fn ask(&mut self, bytes: &[u8]) -> Result<Option<usize>, WireError> {
        if self.is_given {
            return Ok(None);
        }
        let Some(announced) = announced_message(bytes)?.filter(|announced| announced.length > SHORT_BODY_BYTES) else { return Ok(None) };
        let Announced { message, length } = announced;
        let asked =
            self.may_come.as_ref().map_or_else(|| Err("no message as long as that has a place here".to_owned()), |may_come| may_come(announced));
        asked.map_err(|why| WireError::NotTakenIn { message, length, why })?;
        self.is_given = true;
        Ok(Some(MESSAGE_HEADER_BYTES + length as usize))
    }

    /// Whether a long message is coming in.
    pub(super) fn is_given(&self) -> bool {
        self.is_given
    }

    /// The message has come.
    pub(super) fn over(&mut self) {
        self.is_given = false;
    }
}

impl fmt::Debug for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leave").field("is_given", &self.is_given).finish_non_exhaustive()
    }
}
