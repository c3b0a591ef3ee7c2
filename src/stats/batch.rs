//! What came of many migrations that went together.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Outcome, Report, millis};
use crate::units::{ByteCount, PageCount};

/// The version of the JSON form.
pub const BATCH_SCHEMA: u32 = 1;
/// What tells it from the report of a migration.
pub const BATCH_KIND: &str = "batch";

/// All of a batch, the last line of its JSON; each migration has a [`Report`] of its own before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BatchReport {
    /// [`BATCH_SCHEMA`].
    pub schema: u32,
    /// [`BATCH_KIND`]: a report of one migration has no such field.
    pub kind: String,
    /// Guests in it.
    pub guests: usize,
    /// Of them those that ended like this.
    pub completed: usize,
    /// Called off.
    pub aborted: usize,
    /// Refused by the receiver.
    pub refused: usize,
    /// Not known to be here or there.
    pub in_doubt: usize,
    /// Broken.
    pub failed: usize,
    /// From the start of the first to the end of the last.
    #[serde(rename = "total_ms", with = "millis")]
    pub total: Duration,
    /// Pages sent, resends and zero pages counted.
    pub pages_transferred: PageCount,
    /// Bytes on all bulk channels.
    pub wire_bytes: ByteCount,
    /// Bytes of guest memory moved in a second, all guests together.
    pub memory_bytes_per_second: u64,
    /// Bytes on all bulk channels in a second.
    pub wire_bytes_per_second: u64,
    /// The longest downtime of a guest that was moved; null when none was.
    #[serde(rename = "longest_downtime_ms", with = "millis::optional")]
    pub longest_downtime: Option<Duration>,
    /// Whose it was.
    pub longest_downtime_guest: Option<String>,
    /// The longest time that a guest was stopped here outside downtime.
    #[serde(rename = "longest_stall_ms", with = "millis")]
    pub longest_stall: Duration,
    /// The longest gap that a guest felt which is still here; of those that were moved only the receiver knows. Null
    /// when none is.
    #[serde(rename = "longest_gap_ms", with = "millis::optional")]
    pub longest_gap: Option<Duration>,
}

impl BatchReport {
    /// What `reports` come to, which took `total` together.
    #[must_use]
    pub fn of(reports: &[Report], total: Duration) -> Self {
        let count = |outcome| reports.iter().filter(|report| report.outcome == outcome).count();
        let moved = reports.iter().filter(|report| report.outcome == Outcome::Completed);
        let longest = moved.max_by_key(|report| report.downtime);
        let pages: PageCount = reports.iter().map(|report| report.pages_transferred).sum();
        let wire_bytes: ByteCount = reports.iter().map(|report| report.wire_bytes).sum();
        Self {
            schema: BATCH_SCHEMA,
            kind: BATCH_KIND.to_owned(),
            guests: reports.len(),
            completed: count(Outcome::Completed),
            aborted: count(Outcome::Aborted),
            refused: count(Outcome::Refused),
            in_doubt: count(Outcome::InDoubt),
            failed: count(Outcome::Failed),
            total,
            pages_transferred: pages,
            wire_bytes,
            memory_bytes_per_second: per_second(pages.bytes(), total),
            wire_bytes_per_second: per_second(wire_bytes, total),
            longest_downtime: longest.map(|report| report.downtime),
            longest_downtime_guest: longest.and_then(|report| report.guest.clone()),
            longest_stall: reports.iter().map(|report| report.stall).max().unwrap_or_default(),
            longest_gap: reports.iter().filter_map(|report| report.guest_gap).max(),
        }
    }

    /// The JSON form, on one line.
    ///
    /// # Panics
    /// Never: it holds nothing that JSON cannot say.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers have a JSON form")
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
fn per_second(bytes: ByteCount, time: Duration) -> u64 {
    if time.is_zero() { 0 } else { (bytes.0 as f64 / time.as_secs_f64()) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(guest: &str, outcome: Outcome, downtime_ms: u64) -> Report {
        Report {
            outcome,
            guest: Some(guest.to_owned()),
            downtime: Duration::from_millis(downtime_ms),
            pages_transferred: PageCount(1000),
            wire_bytes: ByteCount(1_000_000),
            ..Report::new()
        }
    }

    #[test]
    fn a_batch_is_the_sum_of_its_guests_and_the_worst_of_them() {
        let failed = Report { guest_gap: Some(Duration::from_millis(70)), stall: Duration::from_millis(3), ..report("c", Outcome::Failed, 900) };
        let reports = [report("a", Outcome::Completed, 20), report("b", Outcome::Completed, 40), failed, report("d", Outcome::Refused, 0)];
        let batch = BatchReport::of(&reports, Duration::from_secs(2));
        let json = concat!(
            r#"{"schema":1,"kind":"batch","guests":4,"completed":2,"aborted":0,"refused":1,"in_doubt":0,"failed":1,"total_ms":2000.0,"#,
            r#""pages_transferred":4000,"wire_bytes":4000000,"memory_bytes_per_second":8192000,"wire_bytes_per_second":2000000,"#,
            r#""longest_downtime_ms":40.0,"longest_downtime_guest":"b","longest_stall_ms":3.0,"longest_gap_ms":70.0}"#,
        );
        assert_eq!(batch.to_json(), json);
        assert_eq!(serde_json::from_str::<BatchReport>(json).unwrap(), batch);
    }

    #[test]
    fn nothing_is_made_up_for_a_batch_of_none() {
        let batch = BatchReport::of(&[], Duration::ZERO);
        assert_eq!((batch.guests, batch.wire_bytes_per_second, batch.longest_downtime, batch.longest_gap), (0, 0, None, None));
    }
}
