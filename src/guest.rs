//! What the engine asks of a guest: stop, go on, and hand over the state that is not memory.
//!
//! The engine never looks inside the state; it moves it between [`Guest::save_state`] at the source and
//! [`Guest::load_state`] at the destination.

use std::error::Error as StdError;

use crate::units::ByteCount;
pub use crate::units::RunShare;

/// A guest that can be migrated, as its VMM sees it.
///
/// All calls come from one thread at a time. A guest that fails to pause is left running by the engine; one that fails
/// to resume is reported as such, with its owner.
pub trait Guest: Send {
    /// Stops every writer to guest memory: vCPUs, device threads, DMA in flight. On return nothing writes any more.
    ///
    /// # Errors
    /// When a writer could not be stopped; the guest must then be running as before.
    fn pause(&mut self) -> Result<(), GuestError>;

    /// Lets the guest run (on), also for the first time at the destination.
    ///
    /// # Errors
    /// When the guest cannot run. It must not have run then, not by one instruction: at the destination this gives it
    /// back to the source.
    fn resume(&mut self) -> Result<(), GuestError>;

    /// The state beside memory, of a paused guest: registers, devices. At most
    /// [`MAX_STATE_BYTES`](crate::wire::MAX_STATE_BYTES).
    ///
    /// # Errors
    /// When the state cannot be read out.
    fn save_state(&mut self) -> Result<Vec<u8>, GuestError>;

    /// About how many bytes [`Guest::save_state`] is going to give. They go while the guest stands still, so what is expected
    /// of a pause counts them; a state of some kilobytes, as with this default, need not be told.
    fn state_bytes(&self) -> ByteCount {
        ByteCount(0)
    }

    /// Takes over `state`. The guest must not run before [`Guest::resume`]. Memory is all in place, except in post-copy:
    /// then it must not be touched before [`Guest::resume`], which may and waits for pages that are missing.
    ///
    /// # Errors
    /// When `state` is not one this guest can take. The bytes come from the peer: never panic on them.
    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError>;

    /// Lets the guest run only `share` of the time from now on, so that it writes less; [`RunShare::FULL`] ends that. Holds
    /// across pauses. The engine asks for it only where the limits allow it, and always ends it.
    ///
    /// # Errors
    /// When the guest cannot be slowed down, which is what this default says; it runs as before then.
    fn throttle(&mut self, share: RunShare) -> Result<(), GuestError> {
        if share == RunShare::FULL { Ok(()) } else { Err(GuestError::new("be slowed down", "its VMM does not offer that")) }
    }
}

/// Why a guest did not do as it was told.
#[derive(Debug, thiserror::Error)]
#[error("the guest could not {action}")]
pub struct GuestError {
    /// What was asked, as a verb: "pause", "load its state".
    pub action: &'static str,
    /// What went wrong.
    #[source]
    pub source: Box<dyn StdError + Send + Sync>,
}

impl GuestError {
    /// `action` failed because of `source`.
    pub fn new(action: &'static str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { action, source: source.into() }
    }
}
