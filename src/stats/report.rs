//! The report of one migration, as one end saw it.
//!
//! Both ends write the same object; what an end cannot know is null, and what only a receiver knows is left out by a
//! sender.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DowntimeParts, GuestOwner, Metrics, PostCopyReport, ThrottleReport, millis};
use crate::units::{ByteCount, PageCount};

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its name, where it was one of many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Completed: why pre-copy ended. Otherwise: what went wrong.
    pub reason: String,
    /// From the start to the end of resume time: when the source has nothing more to do with the guest.
    #[serde(rename = "total_ms", with = "millis")]
    pub total: Duration,
    /// From the start to the pause at the source; the guest runs.
    #[serde(rename = "preparation_ms", with = "millis")]
    pub preparation: Duration,
    /// From the pause at the source to the resume at the destination; the guest runs nowhere.
    #[serde(rename = "downtime_ms", with = "millis")]
    pub downtime: Duration,
    /// From the resume at the destination until nothing depends on the source any more.
    #[serde(rename = "resume_ms", with = "millis")]
    pub resume: Duration,
    /// Pages sent, resends and zero pages counted.
    pub pages_transferred: PageCount,
    /// Bytes on all bulk channels.
    pub wire_bytes: ByteCount,
    /// Round by round, the last one included.
    pub rounds: Vec<RoundReport>,
    /// How the pages went.
    pub pages_by_encoding: Encodings,
    /// What found the dirty pages; the receiver does not know.
    pub tracker: Option<String>,
    /// Bulk channels.
    pub channels: u16,
    /// What was expected after round 0; null before that, and at the receiver.
    pub predicted: Option<Predicted>,
    /// How long the guest was stopped outside downtime.
    #[serde(rename = "stall_ms", with = "millis")]
    pub stall: Duration,
    /// Who holds the guest now.
    pub guest_owner: GuestOwner,
    /// Receiver: `ok`, or what is wrong with the guest that arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_check: Option<String>,
    /// Downtime as the guest felt it; at a sender, of a guest that stayed: its longest gap so far.
    #[serde(rename = "guest_gap_ms", with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub guest_gap: Option<Duration>,
    /// Where downtime went, as far as this end saw it; missing where there was none.
    #[serde(rename = "downtime_parts_ms", default, skip_serializing_if = "Option::is_none")]
    pub downtime_parts: Option<DowntimeParts>,
    /// How the guest was slowed down; missing when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<ThrottleReport>,
    /// How far off the prediction was; missing where there was none, or nothing came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction_error: Option<PredictionError>,
    /// What happened after the guest was moved before its memory; missing where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_copy: Option<PostCopyReport>,
}

impl Report {
    /// Nothing has happened yet: failed, with the guest at the source, until something better is known.
    #[must_use]
    pub fn new() -> Self {
        Self {
            schema: SCHEMA,
            guest: None,
            outcome: Outcome::Failed,
            reason: String::new(),
            total: Duration::ZERO,
            preparation: Duration::ZERO,
            downtime: Duration::ZERO,
            resume: Duration::ZERO,
            pages_transferred: PageCount(0),
            wire_bytes: ByteCount(0),
            rounds: Vec::new(),
            pages_by_encoding: Encodings::default(),
            tracker: None,
            channels: 0,
            predicted: None,
            stall: Duration::ZERO,
            guest_owner: GuestOwner::Source,
            guest_check: None,
            guest_gap: None,
            downtime_parts: None,
            throttle: None,
            prediction_error: None,
            post_copy: None,
        }
    }

    /// Compares what was predicted with what came of it.
    pub(crate) fn compare_prediction(&mut self) {
        let off = |fact: Duration, predicted: Duration| ((fact.as_secs_f64() / predicted.as_secs_f64() - 1.0) * 1e3).round() / 1e3;
        let usable = |predicted: &Predicted| !predicted.total.is_zero() && !predicted.downtime.is_zero();
        self.prediction_error = self
            .predicted
            .filter(usable)
            .map(|predicted| PredictionError { total: off(self.total, predicted.total), downtime: off(self.downtime, predicted.downtime) });
    }

    /// The five metrics, as a table to print.
    #[must_use]
    pub fn metrics(&self) -> Metrics<'_> {
        Metrics::new(self)
    }

    /// The JSON form, on one line.
    ///
    /// # Panics
    /// Never: a report holds nothing that JSON cannot say.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and lists have a JSON form")
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// The guest runs (or waits) at the destination.
    Completed,
    /// Called off, by a person or by a limit.
    Aborted,
    /// The peer would not have it.
    Refused,
    /// Commit was sent and never answered.
    InDoubt,
    /// Something broke.
    Failed,
}

/// What one round did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// Which round, from 0.
    pub index: u32,
    /// What kind.
    pub kind: RoundKind,
    /// Pages sent; zero pages count, untouched holes do not.
    pub pages: PageCount,
    /// What they took on the wire.
    pub wire_bytes: ByteCount,
    /// How long it took.
    #[serde(rename = "duration_ms", with = "millis")]
    pub duration: Duration,
    /// Pages the guest dirtied meanwhile; 0 once it stands still, null at the receiver.
    pub dirty_after: Option<PageCount>,
    /// The decision after it with its reason, such as `stop-and-copy: downtime-limit`; null after the last round.
    pub decision: Option<String>,
}

/// The kinds of rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RoundKind {
    /// The guest ran.
    PreCopy,
    /// The guest stood still: the last round.
    StopAndCopy,
    /// The guest stood still, and it was the only round.
    Cold,
    /// The guest ran at the destination.
    PostCopy,
}

/// Pages by the form in which they went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Encodings {
    /// All zeros.
    pub zero: PageCount,
    /// One word, repeated.
    pub uniform: PageCount,
    /// Written, but the same as before.
    pub unchanged: PageCount,
    /// Differences to what was sent before.
    pub delta: PageCount,
    /// Columns of words that are alike.
    pub columns: PageCount,
    /// Compressed one by one.
    pub lz4: PageCount,
    /// Compressed together with others of their chunk.
    pub zstd: PageCount,
    /// As they are.
    pub raw: PageCount,
}

impl std::ops::AddAssign for Encodings {
    fn add_assign(&mut self, other: Self) {
        self.zero += other.zero;
        self.uniform += other.uniform;
        self.unchanged += other.unchanged;
        self.delta += other.delta;
        self.columns += other.columns;
        self.lz4 += other.lz4;
        self.zstd += other.zstd;
        self.raw += other.raw;
    }
}

/// What was expected of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicted {
    /// Total migration time.
    #[serde(rename = "total_ms", with = "millis")]
    pub total: Duration,
    /// Downtime.
    #[serde(rename = "downtime_ms", with = "millis")]
    pub downtime: Duration,
}

/// How far off a prediction was: 0.1 is a tenth more than predicted, -0.1 a tenth less.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictionError {
    /// Of total migration time.
    pub total: f64,
    /// Of downtime.
    pub downtime: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender() -> Report {
        Report {
            outcome: Outcome::Completed,
            reason: "downtime-limit".into(),
            total: Duration::from_micros(2_345_678),
            preparation: Duration::from_micros(2_200_000),
            downtime: Duration::from_micros(145_078),
            resume: Duration::from_micros(600),
            pages_transferred: PageCount(70_000),
            wire_bytes: ByteCount(200_000_000),
            rounds: vec![
                RoundReport {
                    index: 0,
                    kind: RoundKind::PreCopy,
                    pages: PageCount(66_000),
                    wire_bytes: ByteCount(190_000_000),
                    duration: Duration::from_millis(2200),
                    dirty_after: Some(PageCount(4000)),
                    decision: Some("stop-and-copy: downtime-limit".into()),
                },
                RoundReport {
                    index: 1,
                    kind: RoundKind::StopAndCopy,
                    pages: PageCount(4000),
                    wire_bytes: ByteCount(10_000_000),
                    duration: Duration::from_micros(140_500),
                    dirty_after: Some(PageCount(0)),
                    decision: None,
                },
            ],
            pages_by_encoding: Encodings {
                zero: PageCount(1000),
                uniform: PageCount(2000),
                unchanged: PageCount(10),
                delta: PageCount(20),
                columns: PageCount(40),
                zstd: PageCount(30),
                lz4: PageCount(30_000),
                raw: PageCount(37_000),
            },
            tracker: Some("write-protect".into()),
            channels: 2,
            predicted: Some(Predicted { total: Duration::from_millis(2340), downtime: Duration::from_millis(140) }),
            stall: Duration::ZERO,
            guest_owner: GuestOwner::Destination,
            downtime_parts: Some(DowntimeParts {
                pause: Some(Duration::from_micros(4000)),
                send: Some(Duration::from_micros(140_500)),
                run: Some(Duration::from_micros(578)),
                ..DowntimeParts::default()
            }),
            ..Report::new()
        }
    }

    #[test]
    fn the_senders_json_is_as_it_always_was() {
        let golden = concat!(
            r#"{"schema":1,"outcome":"completed","reason":"downtime-limit","total_ms":2345.678,"preparation_ms":2200.0,"#,
            r#""downtime_ms":145.078,"resume_ms":0.6,"pages_transferred":70000,"wire_bytes":200000000,"rounds":["#,
            r#"{"index":0,"kind":"pre-copy","pages":66000,"wire_bytes":190000000,"duration_ms":2200.0,"dirty_after":4000,"#,
            r#""decision":"stop-and-copy: downtime-limit"},"#,
            r#"{"index":1,"kind":"stop-and-copy","pages":4000,"wire_bytes":10000000,"duration_ms":140.5,"dirty_after":0,"decision":null}],"#,
            r#""pages_by_encoding":{"zero":1000,"uniform":2000,"unchanged":10,"delta":20,"columns":40,"lz4":30000,"zstd":30,"raw":37000},"tracker":"write-protect","channels":2,"#,
            r#""predicted":{"total_ms":2340.0,"downtime_ms":140.0},"stall_ms":0.0,"guest_owner":"destination","#,
            r#""downtime_parts_ms":{"pause":4.0,"send":140.5,"run":0.578}}"#,
        );
        assert_eq!(sender().to_json(), golden);
    }

    #[test]
    fn the_receivers_json_says_what_the_guest_felt() {
        let report = Report {
            tracker: None,
            predicted: None,
            downtime_parts: None,
            guest_check: Some("ok".into()),
            guest_gap: Some(Duration::from_micros(146_250)),
            ..sender()
        };
        let json = report.to_json();
        assert!(json.contains(r#""tracker":null"#) && json.contains(r#""predicted":null"#), "{json}");
        assert!(json.ends_with(r#""guest_owner":"destination","guest_check":"ok","guest_gap_ms":146.25}"#), "{json}");
    }

    #[test]
    fn post_copy_is_a_round_and_has_figures_of_its_own() {
        let round = RoundReport { index: 2, kind: RoundKind::PostCopy, ..sender().rounds.remove(1) };
        let mut report = Report { post_copy: Some(PostCopyReport::of(PageCount(4000))), ..sender() };
        report.rounds.push(round);
        let json = report.to_json();
        assert!(json.contains(r#"{"index":2,"kind":"post-copy","pages":4000,"#), "{json}");
        let end = r#","post_copy":{"pages":4000,"urgent_pages":0,"bulk_pages":0,"recoveries":0,"interrupted_ms":0.0}}"#;
        assert!(json.ends_with(end), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let receiver = Report { guest_check: Some("ok".into()), guest_gap: Some(Duration::from_micros(1)), ..sender() };
        for report in [Report::new(), sender(), receiver] {
            assert_eq!(serde_json::from_str::<Report>(&report.to_json()).unwrap(), report);
        }
    }

    #[test]
    fn the_report_compares_prediction_and_fact() {
        let mut report = sender();
        report.compare_prediction();
        assert_eq!(report.prediction_error, Some(PredictionError { total: 0.002, downtime: 0.036 }));
        assert!(report.to_json().ends_with(r#","prediction_error":{"total":0.002,"downtime":0.036}}"#), "{}", report.to_json());
        report.predicted = Some(Predicted { total: Duration::ZERO, downtime: Duration::ZERO });
        report.compare_prediction();
        assert_eq!(report.prediction_error, None);
    }

    #[test]
    fn outcomes_and_owners_have_their_fixed_names() {
        let names = [Outcome::Completed, Outcome::Aborted, Outcome::Refused, Outcome::InDoubt, Outcome::Failed]
            .map(|outcome| serde_json::to_string(&outcome).unwrap());
        assert_eq!(names, [r#""completed""#, r#""aborted""#, r#""refused""#, r#""in-doubt""#, r#""failed""#]);
        let owners = [GuestOwner::Source, GuestOwner::Destination, GuestOwner::InDoubt].map(|owner| serde_json::to_string(&owner).unwrap());
        assert_eq!(owners, [r#""source""#, r#""destination""#, r#""in-doubt""#]);
    }
}
