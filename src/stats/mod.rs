//! What happened in a migration, as it is reported.
//!
//! Durations come in from outside; nothing here reads a clock. The JSON form is an interface that other tools rely on:
//! fields are added, never renamed, and [`SCHEMA`] counts the changes.
#![forbid(unsafe_code)]

mod batch;
mod downtime;
mod metrics;
mod millis;
mod owner;
mod post_copy;
mod report;
mod throttle;

pub use batch::{BATCH_KIND, BATCH_SCHEMA, BatchReport};
pub use downtime::DowntimeParts;
pub(crate) use downtime::Laps;
pub use metrics::Metrics;
pub use owner::GuestOwner;
pub use post_copy::{FaultTimes, PostCopyReport, ThreadLoss};
pub use report::{Encodings, Outcome, Predicted, PredictionError, Report, RoundKind, RoundReport, SCHEMA};
pub use throttle::ThrottleReport;
