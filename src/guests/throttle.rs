//! Slowing a test guest down: of each period it runs the first part and is held for the rest.
//!
//! Periods are counted from the host's clock, so whoever holds the guest and whoever interrupts it need not talk to each
//! other. A held guest loses the time: it does not make up afterwards for the writes it could not do, as it otherwise
//! does after short delays.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::state::nanos;
use crate::guest::RunShare;

/// The share in force, shared by the guest's threads.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Nanoseconds of each period that the guest runs.
    runs_ns: AtomicU64,
}

impl Throttle {
    /// Runs all the time.
    pub(super) fn none() -> Self {
        Self { runs_ns: AtomicU64::new(PERIOD_NS) }
    }

    /// Holds from now on.
    pub(super) fn set(&self, share: RunShare) {
        // Relaxed, here and below: a number that nothing else depends on.
        self.runs_ns.store(nanos(Duration::from_nanos(PERIOD_NS).mul_f64(share.value())), Ordering::Relaxed);
    }

    /// Whether the guest is ever held.
    #[cfg(any(test, all(feature = "kvm", target_arch = "x86_64")))]
    pub(super) fn is_on(&self) -> bool {
        self.runs_ns.load(Ordering::Relaxed) < PERIOD_NS
    }

    /// How long the guest is to be held from `now_ns` on; none while it may run.
    #[inline]
    pub(super) fn hold(&self, now_ns: u64) -> Option<Duration> {
        let runs = self.runs_ns.load(Ordering::Relaxed);
        if runs >= PERIOD_NS {
            return None;
        }
        let phase = now_ns % PERIOD_NS;
        (phase >= runs).then(|| Duration::from_nanos(PERIOD_NS - phase))
    }

    /// How long until the guest is to be held; nothing while it is.
    #[cfg(all(feature = "kvm", target_arch = "x86_64"))]
    pub(super) fn until_hold(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(self.runs_ns.load(Ordering::Relaxed).saturating_sub(now_ns % PERIOD_NS))
    }
}

/// The local clock.
pub(super) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    nanos(Duration::from(now))
}

const PERIOD_NS: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_share_of_each_period() {
        let throttle = Throttle::none();
        assert_eq!((throttle.hold(9_999_999), throttle.is_on()), (None, false));
        throttle.set(RunShare::new(0.25));
        assert!(throttle.is_on());
        for period in [0, 10_000_000, 70_000_000] {
            assert_eq!(throttle.hold(period), None);
            assert_eq!(throttle.hold(period + 2_499_999), None);
            assert_eq!(throttle.hold(period + 2_500_000), Some(Duration::from_micros(7500)));
            assert_eq!(throttle.hold(period + 9_999_999), Some(Duration::from_nanos(1)));
        }
        throttle.set(RunShare::FULL);
        assert_eq!((throttle.hold(9_999_999), throttle.is_on()), (None, false));
    }
}
