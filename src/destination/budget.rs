//! Memory promised to guests.
//!
//! A destination says yes only to what it can hold: within its own limit, and within what the host has left after
//! everything promised to guests that are still arriving. A promise is given back when its guest is gone.

use std::sync::PoisonError;

use super::admission::Refusal;
use crate::sync::{Arc, Mutex};
use crate::units::ByteCount;
use crate::wire::RefuseReason;

/// What may be promised, and what has been.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    limit: Option<ByteCount>,
    promised: Arc<Mutex<u64>>,
}

/// Memory set aside for one guest; given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    bytes: u64,
    promised: Arc<Mutex<u64>>,
}

impl Budget {
    /// At most `limit` for all guests together; `None` leaves it to the host.
    pub(super) fn new(limit: Option<ByteCount>) -> Self {
        Self { limit, promised: Arc::default() }
    }

    /// Sets `bytes` aside.
    pub(super) fn reserve(&self, bytes: ByteCount) -> Result<Reservation, Refusal> {
        self.reserve_from(bytes, crate::sys::meminfo::available())
    }

    fn reserve_from(&self, bytes: ByteCount, available: Option<ByteCount>) -> Result<Reservation, Refusal> {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let refuse = |left: ByteCount, whose: &str| {
            Refusal::new(
                RefuseReason::Memory,
                format!("the guest needs {bytes}, {whose} leaves {left} ({} promised to others)", ByteCount(*promised)),
            )
        };
        if let Some(limit) = self.limit {
            let left = limit.0.saturating_sub(*promised);
            if bytes.0 > left {
                return Err(refuse(ByteCount(left), "the limit of this receiver"));
            }
        }
        // What was promised may not have been touched yet, so it still shows as available: count it off.
        if let Some(available) = available {
            let left = available.0.saturating_sub(*promised);
            if bytes.0 > left {
                return Err(refuse(ByteCount(left), "the memory of this host"));
            }
        }
        *promised += bytes.0;
        Ok(Reservation { bytes: bytes.0, promised: Arc::clone(&self.promised) })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.promised.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_add_up_and_come_back() {
        let budget = Budget::new(Some(ByteCount(100)));
        let first = budget.reserve_from(ByteCount(60), Some(ByteCount(1000))).unwrap();
        assert_eq!(budget.reserve_from(ByteCount(60), Some(ByteCount(1000))).unwrap_err().reason, RefuseReason::Memory);
        drop(first);
        let _second = budget.reserve_from(ByteCount(60), Some(ByteCount(1000))).unwrap();
    }

    #[test]
    fn the_host_must_have_it_too() {
        let budget = Budget::new(None);
        let _first = budget.reserve_from(ByteCount(60), Some(ByteCount(100))).unwrap();
        let refusal = budget.reserve_from(ByteCount(60), Some(ByteCount(100))).unwrap_err();
        assert_eq!(refusal.detail, "the guest needs 60 B, the memory of this host leaves 40 B (60 B promised to others)");
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;

    #[test]
    fn two_guests_are_not_promised_the_same_memory() {
        loom::model(|| {
            let budget = Budget::new(Some(ByteCount(100)));
            let reserve = |budget: &Budget| budget.reserve_from(ByteCount(60), None).ok();
            let other = thread::spawn({
                let budget = budget.clone();
                move || reserve(&budget)
            });
            let mine = reserve(&budget);
            let theirs = other.join().unwrap();
            assert!(mine.is_some() != theirs.is_some());
            drop((mine, theirs));
            assert!(reserve(&budget).is_some(), "a promise did not come back");
        });
    }
}
