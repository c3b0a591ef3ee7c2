//! Test guests: guests of which every word of memory is known, and which know how long they were stopped.
//!
//! A guest fills its memory and then writes to it for ever, in a pattern that lets anyone who sees the memory tell
//! whether it is whole ([`TestGuest::check`]). The programs migrate these guests, and so do the tests; the KVM guest is
//! also the example of a VMM that embeds the engine.
//!
//! # Guest memory
//! | guest-physical | |
//! |---|---|
//! | 0x1000 | the control page: the guest's own state |
//! | below 16 MiB | the program of the KVM guest and its page tables |
//! | 16 MiB to 16 MiB + fill | what was there before the first write |
//! | 16 MiB to 16 MiB + working set | what the guest writes to |
//!
//! All else is zeros and stays unpopulated.
#![forbid(unsafe_code)]

mod body;
mod check;
mod control;
mod fill;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod kvm;
mod pages;
mod pattern;
mod spec;
mod state;
mod text;
mod throttle;
mod workload;

use std::sync::Arc;
use std::time::Duration;

pub use check::{CheckError, Expected};
pub use fill::Content;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub use kvm::KvmGuest;
pub use pattern::Pattern;
pub use spec::{GuestKind, GuestSpec, MAX_GUEST_BYTES, MAX_RATE, Rate, SpecError};
pub use state::StateError;
pub use workload::Workload;

use control::{Control, Field};

use crate::dirty::Tracked;
use crate::guest::Guest;
use crate::memory::{Backing, GuestMemory, MemoryError};
use crate::units::{ByteCount, PAGE_SIZE};

/// Guest memory below this is the program's own.
pub const PROGRAM_BYTES: ByteCount = ByteCount(16 << 20);
/// The same in pages: the first page of fill and working set.
const PROGRAM_PAGES: u64 = PROGRAM_BYTES.0 / PAGE_SIZE as u64;

/// A guest that can be built from a description, and checked.
pub trait TestGuest: Guest {
    /// The description.
    fn spec(&self) -> &GuestSpec;

    /// Its memory.
    fn memory(&self) -> &Arc<GuestMemory>;

    /// What a tracker has to know of it.
    fn tracked(&self) -> Tracked;

    /// Checks all of its memory against its description and the number of writes it has done.
    ///
    /// # Errors
    /// What is wrong, and where. Also when the guest is not paused, or has stopped by itself.
    fn check(&mut self) -> Result<(), CheckError>;

    /// Writes done since it was first built, here and elsewhere.
    fn writes(&self) -> u64 {
        Control::new(self.memory()).load(Field::Writes)
    }

    /// The longest time between two writes that the guest has seen, here and elsewhere: migrations included.
    fn longest_gap(&self) -> Duration {
        Duration::from_nanos(Control::new(self.memory()).load(Field::LongestGap))
    }
}

/// Why a guest could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestBuildError {
    /// The host does not give the memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// This host has no KVM, or this process may not use it.
    #[error("no /dev/kvm: {why}")]
    NoKvm {
        /// Why, and what to do about it.
        why: String,
    },
    /// KVM refused.
    #[error("KVM did not {action}")]
    Kvm {
        /// What was asked of it.
        action: &'static str,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
}

/// Builds a guest that begins here: its memory is filled, and [`Guest::resume`] starts it.
///
/// # Errors
/// When the host cannot provide what it needs.
pub fn build_source(spec: &GuestSpec, backing: Backing) -> Result<Box<dyn TestGuest>, GuestBuildError> {
    match spec.kind() {
        GuestKind::Workload => Ok(Box::new(Workload::source(spec, backing)?)),
        #[cfg(all(feature = "kvm", target_arch = "x86_64"))]
        GuestKind::Kvm => Ok(Box::new(KvmGuest::source(spec, backing)?)),
        #[cfg(not(all(feature = "kvm", target_arch = "x86_64")))]
        GuestKind::Kvm => Err(not_built_in()),
    }
}

/// Builds a guest that is to arrive: its memory is empty; [`Guest::load_state`], then [`Guest::resume`] start it.
///
/// # Errors
/// When the host cannot provide what it needs.
pub fn build_destination(spec: &GuestSpec, backing: Backing) -> Result<Box<dyn TestGuest>, GuestBuildError> {
    match spec.kind() {
        GuestKind::Workload => Ok(Box::new(Workload::destination(spec, backing)?)),
        #[cfg(all(feature = "kvm", target_arch = "x86_64"))]
        GuestKind::Kvm => Ok(Box::new(KvmGuest::destination(spec, backing)?)),
        #[cfg(not(all(feature = "kvm", target_arch = "x86_64")))]
        GuestKind::Kvm => Err(not_built_in()),
    }
}

#[cfg(not(all(feature = "kvm", target_arch = "x86_64")))]
fn not_built_in() -> GuestBuildError {
    GuestBuildError::NoKvm { why: "this program was built without the feature `kvm`".to_owned() }
}
