//! How the guest was slowed down so that it could be moved.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;
use crate::units::RunShare;

/// What slowing the guest down cost it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThrottleReport {
    /// The smallest share of the time that it was allowed to run.
    pub lowest_share: RunShare,
    /// For how long it did not have its full speed, downtime included.
    #[serde(rename = "time_ms", with = "millis")]
    pub time: Duration,
}
