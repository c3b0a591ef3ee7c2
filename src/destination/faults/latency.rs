//! A histogram of times, of fixed size.
//!
//! Sixteen buckets to each power of two of nanoseconds, so a quantile is off by at most a sixteenth.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct Latencies {
    buckets: Box<[u32; BUCKETS]>,
    count: u64,
    max: Duration,
}

impl Latencies {
    pub(super) fn new() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, max: Duration::ZERO }
    }

    pub(super) fn add(&mut self, time: Duration) {
        let bucket = &mut self.buckets[bucket_of(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))];
        *bucket = bucket.saturating_add(1);
        self.count += 1;
        self.max = self.max.max(time);
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// The time that `share` (0 to 1) of all did not exceed, rounded up to a bucket's end; zero when there are none.
    pub(super) fn quantile(&self, share: f64) -> Duration {
        let mut seen = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += u64::from(count);
            if count > 0 && seen as f64 >= share * self.count as f64 {
                return Duration::from_nanos(end_of(bucket)).min(self.max);
            }
        }
        self.max
    }
}

/// Values below 16 have a bucket each; above, the four bits after the highest one tell.
fn bucket_of(value: u64) -> usize {
    let bucket = match value.checked_ilog2() {
        Some(power @ STEP_BITS..) => u64::from(power - STEP_BITS + 1) * STEPS + ((value >> (power - STEP_BITS)) & (STEPS - 1)),
        _ => value,
    };
    usize::try_from(bucket).expect("at most BUCKETS")
}

/// The largest value of a bucket.
fn end_of(bucket: usize) -> u64 {
    let (power, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    match power.checked_sub(1) {
        None => step,
        Some(shift) => ((STEPS + step) << shift) + ((1 << shift) - 1),
    }
}

const STEP_BITS: u32 = 4;
const STEPS: u64 = 1 << STEP_BITS;
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) << STEP_BITS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_a_bucket_that_ends_little_above_it() {
        for value in (0..63).flat_map(|power| [1 << power, (1 << power) + 1, (1 << power) / 2 * 3, (1u64 << power) - 1]).chain([u64::MAX]) {
            let end = end_of(bucket_of(value));
            assert!(end >= value && end - value <= value / 16, "{value} ends at {end}");
            assert_eq!(bucket_of(end), bucket_of(value));
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_added() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.quantile(0.5), Duration::ZERO);
        (1..=1000).for_each(|micros| latencies.add(Duration::from_micros(micros)));
        for (share, want) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let got = latencies.quantile(share).as_secs_f64() * 1e6;
            assert!((want..=want * 17.0 / 16.0).contains(&got), "{share}: {got}");
        }
        assert_eq!((latencies.quantile(1.0), latencies.max(), latencies.count()), (Duration::from_millis(1), Duration::from_millis(1), 1000));
    }
}
