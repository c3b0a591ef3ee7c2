//! Downtime, part by part, as one end measured it.
//!
//! The source's parts follow one another without a gap from the pause to the word that the guest runs, so they add up to
//! its downtime. The destination measures only what it does itself; that lies within the source's `ready` and `run`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;

/// Where downtime went. What an end does not do itself is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DowntimeParts {
    /// Source: from telling the guest to stop until it stands still.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Duration>,
    /// Source: the last harvest.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub harvest: Option<Duration>,
    /// Source: confirming the decision and giving the remainder to the workers.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Duration>,
    /// Source: saving the state beside memory, while the workers send.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Duration>,
    /// Source: the embedder's step at the pause, while the workers send.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Duration>,
    /// Source: from then on until the last page is written to the network.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub send: Option<Duration>,
    /// Source: until the destination has everything in place and says so.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Duration>,
    /// Source: from giving the guest away until the destination says that it runs.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Duration>,
    /// Destination: from having all pages until memory is closed to the network and checked.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub settle: Option<Duration>,
    /// Destination: loading the state beside memory.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Duration>,
    /// Destination: resuming the guest.
    #[serde(with = "millis::optional", default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Duration>,
}

impl DowntimeParts {
    /// The parts there are, by name, in the order in which they happen.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let all = [
            ("pause", self.pause),
            ("harvest", self.harvest),
            ("plan", self.plan),
            ("state", self.state),
            ("step", self.step),
            ("send", self.send),
            ("ready", self.ready),
            ("run", self.run),
            ("settle", self.settle),
            ("load", self.load),
            ("resume", self.resume),
        ];
        all.into_iter().filter_map(|(name, part)| part.map(|part| (name, part)))
    }

    /// All of them together: at the source, downtime.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.iter().map(|(_, part)| part).sum()
    }
}

/// Takes the time of one part after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Laps {
    since: std::time::Instant,
}

impl Laps {
    /// The first part begins at `start`.
    pub(crate) fn from(start: std::time::Instant) -> Self {
        Self { since: start }
    }

    /// A part ended at `now`, and the next one begins.
    pub(crate) fn end(&mut self, now: std::time::Instant) -> Option<Duration> {
        let lap = now.saturating_duration_since(self.since);
        self.since = now;
        Some(lap)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn laps_leave_no_gap() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut laps = Laps::from(start);
        let parts = DowntimeParts { pause: laps.end(at(1)), harvest: laps.end(at(4)), run: laps.end(at(9)), ..DowntimeParts::default() };
        assert_eq!(parts.sum(), Duration::from_millis(9));
        assert_eq!(parts.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["pause", "harvest", "run"]);
    }

    #[test]
    fn what_was_not_measured_is_not_in_the_json() {
        let parts = DowntimeParts { pause: Some(Duration::from_micros(1500)), ..DowntimeParts::default() };
        let json = serde_json::to_string(&parts).unwrap();
        assert_eq!(json, r#"{"pause":1.5}"#);
        assert_eq!(serde_json::from_str::<DowntimeParts>(&json).unwrap(), parts);
    }
}
