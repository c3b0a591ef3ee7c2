//! The results of a bench, as far as they are drawn.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Figure, Migration};

/// The newest version of the JSON form that is read.
pub(super) const SCHEMA: u32 = 1;
/// What `kind` says.
pub(super) const KIND: &str = "bench";

/// A run of the bench.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Bench {
    pub(in super::super) machine: String,
    /// By program; null for one that was not run.
    #[serde(default)]
    pub(in super::super) versions: BTreeMap<String, Option<String>>,
    pub(in super::super) command: String,
    pub(in super::super) date: String,
    pub(in super::super) pairs: Figure,
    pub(in super::super) scenarios: Vec<Scenario>,
}

/// A guest on a link.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Scenario {
    pub(in super::super) name: String,
    #[serde(default)]
    pub(in super::super) title: String,
    #[serde(default)]
    pub(in super::super) guest: String,
    #[serde(default)]
    pub(in super::super) link: Link,
    pub(in super::super) floor: Option<Floor>,
    pub(in super::super) engines: Vec<Engine>,
    pub(in super::super) ratios: Option<BTreeMap<String, Option<Figure>>>,
    /// The same where both run the guest before its memory is there.
    pub(in super::super) post_copy_ratios: Option<BTreeMap<String, Option<Figure>>>,
    #[serde(default, rename = "bars")]
    pub(in super::super) goals: Vec<Goal>,
}

impl Scenario {
    /// This engine over the best QEMU mode.
    pub(in super::super) fn ratio(&self, of: &str) -> Option<f64> {
        self.ratios.as_ref()?.get(of)?.map(|figure| figure.0)
    }

    /// This engine in post-copy over QEMU in post-copy.
    pub(in super::super) fn post_copy_ratio(&self, of: &str) -> Option<f64> {
        self.post_copy_ratios.as_ref()?.get(of)?.map(|figure| figure.0)
    }
}

/// What lies between the two ends.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(in super::super) struct Link {
    pub(in super::super) rate_bits_per_s: Option<Figure>,
    pub(in super::super) measured_bytes_per_s: Option<Figure>,
}

/// What no engine could undercut.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(in super::super) struct Floor {
    pub(in super::super) bytes: Option<Figure>,
    pub(in super::super) total_ms: Option<Figure>,
}

/// One engine in one mode.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Engine {
    pub(in super::super) engine: String,
    #[serde(default)]
    pub(in super::super) mode: String,
    pub(in super::super) outcome: String,
    #[serde(default)]
    pub(in super::super) runs: Vec<Run>,
    pub(in super::super) median: Option<Figures>,
}

impl Engine {
    /// Whether it is the one that all this is about.
    pub(in super::super) fn is_ours(&self) -> bool {
        self.engine == "pageferry"
    }

    /// Engine and mode, as one name.
    pub(in super::super) fn title(&self) -> String {
        match self.mode.as_str() {
            "" | "default" => self.engine.clone(),
            mode => format!("{} {mode}", self.engine),
        }
    }
}

/// One migration.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Run {
    #[serde(flatten)]
    pub(in super::super) figures: Figures,
    pub(in super::super) report: Option<Migration>,
    /// The receiver's, where it says more.
    pub(in super::super) received: Option<Migration>,
}

/// The figures of one migration, or the medians of several.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(in super::super) struct Figures {
    pub(in super::super) total_ms: Option<Figure>,
    pub(in super::super) downtime_ms: Option<Figure>,
    pub(in super::super) guest_gap_ms: Option<Figure>,
    pub(in super::super) wire_bytes: Option<Figure>,
    pub(in super::super) cpu_source_s: Option<Figure>,
    pub(in super::super) cpu_destination_s: Option<Figure>,
    pub(in super::super) guest_writes_per_s: Option<Figure>,
    pub(in super::super) guest_writes_before_per_s: Option<Figure>,
    pub(in super::super) guest_writes_after_per_s: Option<Figure>,
    pub(in super::super) fault_p50_us: Option<Figure>,
    pub(in super::super) fault_p99_us: Option<Figure>,
}

/// A figure that was to be reached.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Goal {
    pub(in super::super) what: String,
    #[serde(default)]
    pub(in super::super) unit: String,
    #[serde(default)]
    pub(in super::super) rule: String,
    pub(in super::super) limit: Figure,
    pub(in super::super) value: Option<Figure>,
    pub(in super::super) met: bool,
}
