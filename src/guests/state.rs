//! The state of a test guest beside its memory, as bytes.
//!
//! | offset | length | |
//! |---|---|---|
//! | 0 | 8 | `ferryst1`: magic and version |
//! | 8 | 4 | kind: 1 workload, 2 kvm |
//! | 12 | 4 | length of the machine state |
//! | 16 | 8 | writes done |
//! | 24 | 8 | guest time when saved, nanoseconds |
//! | 32 | 8 | `CLOCK_REALTIME` when saved, nanoseconds |
//! | 40 | | machine state: empty (workload), see `kvm/registers.rs` (kvm) |
//!
//! Little-endian. The bytes come from a peer: nothing in them is believed before it is checked.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::spec::GuestKind;

/// What goes with a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SavedState {
    pub(super) kind: GuestKind,
    /// Writes done; the control page must agree.
    pub(super) writes: u64,
    /// Guest time at `saved_at_ns`.
    pub(super) guest_ns: u64,
    /// When, in real time since 1970.
    pub(super) saved_at_ns: u64,
    /// What only this kind of guest has.
    pub(super) machine: Vec<u8>,
}

/// Why bytes are no state of this guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Not the magic and version.
    #[error("the state is not one of a test guest of version 1")]
    Magic,
    /// Too short, too long, or the inner length is wrong.
    #[error("the state has {found} bytes where {expected} are due")]
    Length {
        /// What there is.
        found: usize,
        /// What there should be.
        expected: usize,
    },
    /// Another kind of guest.
    #[error("the state is of guest kind {found}, not {expected}")]
    Kind {
        /// The number in the state.
        found: u32,
        /// The guest's.
        expected: GuestKind,
    },
    /// Machine state that the guest's program could not have.
    #[error("the state has {register} = {found:#x}, which the guest's program never has")]
    Register {
        /// Which register.
        register: &'static str,
        /// What it is.
        found: u64,
    },
}

impl SavedState {
    /// The state of a guest of `kind` with this many `writes` done whose clock now says `guest_ns`.
    pub(super) fn now(kind: GuestKind, writes: u64, guest_ns: u64, machine: Vec<u8>) -> Self {
        Self { kind, writes, guest_ns, saved_at_ns: real_ns(), machine }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.machine.len()).expect("a few hundred bytes of registers");
        let mut out = Vec::with_capacity(HEADER_BYTES + self.machine.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&number(self.kind).to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        for word in [self.writes, self.guest_ns, self.saved_at_ns] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.machine);
        out
    }

    /// Reads the state of a guest of `kind` whose machine state has `machine_bytes` bytes.
    pub(super) fn decode(kind: GuestKind, machine_bytes: usize, bytes: &[u8]) -> Result<Self, StateError> {
        let length = StateError::Length { found: bytes.len(), expected: HEADER_BYTES + machine_bytes };
        let Some((header, machine)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Err(length) };
        if header[..8] != *MAGIC {
            return Err(StateError::Magic);
        }
        let half = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if half(8) != number(kind) {
            return Err(StateError::Kind { found: half(8), expected: kind });
        }
        if machine.len() != machine_bytes || half(12) as usize != machine_bytes {
            return Err(length);
        }
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        Ok(Self { kind, writes: word(16), guest_ns: word(24), saved_at_ns: word(32), machine: machine.to_vec() })
    }

    /// What the guest's clock should say now: saved time and the real time since. Never less than the saved time,
    /// whatever the two hosts think of the date.
    pub(super) fn guest_ns_now(&self) -> u64 {
        self.guest_ns.wrapping_add(real_ns().saturating_sub(self.saved_at_ns))
    }
}

/// `CLOCK_REALTIME` in nanoseconds.
fn real_ns() -> u64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A duration as nanoseconds, as long as it is under 500 years.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn number(kind: GuestKind) -> u32 {
    match kind {
        GuestKind::Workload => 1,
        GuestKind::Kvm => 2,
    }
}

const MAGIC: &[u8; 8] = b"ferryst1";
const HEADER_BYTES: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_documented_ones_and_are_read_back() {
        let state = SavedState { kind: GuestKind::Kvm, writes: 3, guest_ns: 0x0102, saved_at_ns: 1 << 56, machine: vec![7, 8] };
        let bytes = state.encode();
        assert_eq!(bytes, b"ferryst1\x02\0\0\0\x02\0\0\0\x03\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x07\x08");
        assert_eq!(SavedState::decode(GuestKind::Kvm, 2, &bytes), Ok(state));
    }

    #[test]
    fn other_bytes_are_refused() {
        let bytes = SavedState::now(GuestKind::Workload, 1, 2, Vec::new()).encode();
        for cut in 0..bytes.len() {
            assert_eq!(SavedState::decode(GuestKind::Workload, 0, &bytes[..cut]), Err(StateError::Length { found: cut, expected: 40 }));
        }
        assert_eq!(SavedState::decode(GuestKind::Kvm, 0, &bytes), Err(StateError::Kind { found: 1, expected: GuestKind::Kvm }));
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(SavedState::decode(GuestKind::Workload, 0, &longer), Err(StateError::Length { found: 41, expected: 40 }));
        longer[0] = b'F';
        assert_eq!(SavedState::decode(GuestKind::Workload, 0, &longer), Err(StateError::Magic));
    }
}
