//! What is wrong with a description.

use super::{KEYS, MAX_GUEST_BYTES};
use crate::units::ByteCount;
use crate::units::text::Exact;

/// Why a text describes no guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Not a kind of guest.
    #[error("there is no guest kind {found:?}: workload and kvm are accepted")]
    Kind {
        /// What was given.
        found: String,
    },
    /// A part without `=`.
    #[error("{found:?} is not of the form key=value")]
    NotAPair {
        /// What was given.
        found: String,
    },
    /// Not a key.
    #[error("there is no guest key {found:?}: accepted are {}", KEYS.join(", "))]
    Key {
        /// What was given.
        found: String,
    },
    /// The same key again.
    #[error("the guest key {key} is given twice")]
    Twice {
        /// Which.
        key: &'static str,
    },
    /// A value its key cannot have.
    #[error("guest key {key}={found}: {accepted} is accepted")]
    Value {
        /// Of which key.
        key: &'static str,
        /// What was given.
        found: String,
        /// In words.
        accepted: &'static str,
    },
    /// Too little or too much memory.
    #[error("guest key memory={}: from {} to {} is accepted", Exact(*.found), Exact(*.least), Exact(MAX_GUEST_BYTES))]
    Memory {
        /// What was given.
        found: ByteCount,
        /// The program and one page.
        least: ByteCount,
    },
    /// The working set or the fill does not fit the memory.
    #[error("guest key {key}={}: {} is accepted (the memory less 16MiB for the program)", Exact(*.found), accepted_room(key, *.room))]
    Room {
        /// Which of them.
        key: &'static str,
        /// What was given.
        found: ByteCount,
        /// What is there.
        room: ByteCount,
    },
}

fn accepted_room(key: &str, room: ByteCount) -> String {
    format!("{} to {}", if key == "fill" { "0" } else { "4096" }, Exact(room))
}
