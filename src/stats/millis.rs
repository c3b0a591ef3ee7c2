//! Durations as milliseconds with a fraction, to the microsecond, for serde's `with`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes `2.345` for 2345 µs.
pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    in_millis(*duration).serialize(serializer)
}

/// Reads what [`serialize`] wrote.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    from_millis(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn in_millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn from_millis(millis: f64) -> Result<Duration, std::time::TryFromFloatSecsError> {
    // Via whole microseconds, so that what was written is read back exactly.
    Duration::try_from_secs_f64((millis * 1e3).round() / 1e6)
}

/// The same for durations that may be missing.
pub(super) mod optional {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, from_millis, in_millis};

    /// Writes a number or null.
    #[expect(clippy::ref_option, reason = "the form serde asks for")]
    pub(in super::super) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        duration.map(in_millis).serialize(serializer)
    }

    /// Reads a number or null.
    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(deserializer)?.map(from_millis).transpose().map_err(serde::de::Error::custom)
    }
}
