//! What a bench found, and its JSON form.
//!
//! `pageferry bench --json FILE` writes one [`BenchResults`]. Figures carry their units in their names, so that a reader
//! of the file needs nothing else; what could not be had is null, never 0.

use serde::{Deserialize, Serialize};

use crate::stats::Report;

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;
/// What `kind` says in the JSON form: it tells these results from the report of a migration.
pub const KIND: &str = "bench";
/// The name of this engine in [`EngineResults::engine`].
pub const PAGEFERRY: &str = "pageferry";
/// The name of QEMU in [`EngineResults::engine`].
pub const QEMU: &str = "qemu";
/// What [`EngineResults::outcome`] says when every run ended with the guest at the destination.
pub const COMPLETED: &str = "completed";
/// What [`EngineResults::outcome`] begins with when something went wrong.
pub const FAILED: &str = "failed";

/// All that one run of the bench found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BenchResults {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`KIND`].
    pub kind: String,
    /// Processors, memory and kernel of the machine.
    pub machine: String,
    /// What was run.
    pub versions: Versions,
    /// The command that measured this.
    pub command: String,
    /// When it began, UTC, as `2026-01-31T12:00:00Z`.
    pub date: String,
    /// Runs of each engine and mode that count.
    pub pairs: u32,
    /// Scenario by scenario, in the order they were run.
    pub scenarios: Vec<ScenarioResults>,
}

/// Versions of what was run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Versions {
    /// This program.
    pub pageferry: String,
    /// QEMU; null when it was not run.
    pub qemu: Option<String>,
    /// The compiler on this machine; null when there is none.
    pub rustc: Option<String>,
}

/// One guest on one link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScenarioResults {
    /// Short name: as `--scenario` takes it, or `own`.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// The guest, as `--guest` takes it.
    pub guest: String,
    /// What lies between the two ends.
    pub link: LinkResults,
    /// What no engine could undercut.
    pub floor: Floor,
    /// Engine by engine and mode by mode; this engine first.
    pub engines: Vec<EngineResults>,
    /// This engine's medians over QEMU's best; null when QEMU was not run.
    pub ratios: Option<Ratios>,
    /// The same of the modes of post-copy alone; null when one of the two engines was not run in it.
    #[serde(default)]
    pub post_copy_ratios: Option<PostCopyRatios>,
    /// The figures that were to be reached.
    pub bars: Vec<Bar>,
}

/// A link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LinkResults {
    /// What it is shaped to; null when it is not.
    pub rate_bits_per_s: Option<f64>,
    /// What two plain TCP streams reached on it; null when that was not measured.
    pub measured_bytes_per_s: Option<f64>,
}

/// The least that the scenario can take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Floor {
    /// The guest's memory, every page once and as small as the compressors make it.
    pub bytes: u64,
    /// What these take on the link.
    pub total_ms: f64,
}

/// One engine in one mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EngineResults {
    /// [`PAGEFERRY`] or [`QEMU`].
    pub engine: String,
    /// `default` or `post-copy` for this engine; for QEMU `pre-copy`, `multifd`, `multifd-zstd`, `xbzrle` or `post-copy`.
    pub mode: String,
    /// Whether the guest runs at the destination before all of its memory is there: such a mode is no measure for downtime and bytes of
    /// pre-copy.
    pub post_copy: bool,
    /// [`COMPLETED`], or what happened instead: `not done after 40 s`, or [`FAILED`] with the reason.
    pub outcome: String,
    /// The runs that completed, in order.
    pub runs: Vec<Run>,
    /// The median of each figure over them; null when there are none.
    pub median: Option<Figures>,
}

/// One migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Run {
    /// What was measured.
    #[serde(flatten)]
    pub figures: Figures,
    /// The sender's own report; null for QEMU.
    pub report: Option<Report>,
    /// The receiver's, in post-copy: what the guest waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Report>,
}

/// The figures of one migration, or the medians of several.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Figures {
    /// Total migration time, by the engine's own clock.
    pub total_ms: f64,
    /// Downtime, by the engine's own clock.
    pub downtime_ms: f64,
    /// The longest time without a write of the guest, at either end.
    pub guest_gap_ms: Option<f64>,
    /// The longest time meanwhile in which the machine itself stood still, as far as it was seen: a gap that no engine made.
    #[serde(default)]
    pub machine_stopped_ms: Option<f64>,
    /// Bytes that crossed the link towards the destination, headers and all.
    pub wire_bytes: u64,
    /// The same as the engine counts them.
    pub engine_bytes: u64,
    /// Processor time of the source's process while migrating, without that of the vCPU.
    pub cpu_source_s: f64,
    /// Processor time of the destination's process while migrating, without that of the vCPU.
    pub cpu_destination_s: f64,
    /// Writes a second of the guest while it was migrated and ran at the source.
    pub guest_writes_per_s: Option<f64>,
    /// Writes a second before that.
    pub guest_writes_before_per_s: Option<f64>,
    /// Post-copy: writes a second in the first second at the destination.
    #[serde(default)]
    pub guest_writes_after_per_s: Option<f64>,
    /// Post-copy: half of the faults took no longer; null for QEMU, which does not say.
    #[serde(default)]
    pub fault_p50_us: Option<f64>,
    /// Post-copy: all but one in a hundred took no longer.
    #[serde(default)]
    pub fault_p99_us: Option<f64>,
}

/// Medians of this engine over those of QEMU's best mode, column by column; null where one of the two is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ratios {
    /// Total time, over the best mode of all.
    pub total: Option<f64>,
    /// Downtime by the engines' clocks, over the best pre-copy mode.
    pub downtime: Option<f64>,
    /// Longest gap of the guest, over the best pre-copy mode.
    pub guest_gap: Option<f64>,
    /// Bytes on the wire, over the best pre-copy mode.
    pub wire_bytes: Option<f64>,
    /// Processor time of both ends, over the best mode of all.
    pub cpu: Option<f64>,
}

/// Medians of this engine in post-copy over those of QEMU in post-copy; null where one of the two is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PostCopyRatios {
    /// Total time.
    pub total: Option<f64>,
    /// Downtime by the engines' clocks.
    pub downtime: Option<f64>,
    /// Longest gap of the guest.
    pub guest_gap: Option<f64>,
    /// Bytes on the wire.
    pub wire_bytes: Option<f64>,
    /// Processor time of both ends.
    pub cpu: Option<f64>,
    /// Writes of the guest in its first second at the destination: here more than 1 is better.
    pub guest_writes_after: Option<f64>,
}

/// A figure to be reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Bar {
    /// Of what: `total`, `guest_gap`, `wire_bytes`.
    pub what: String,
    /// What `limit` and `value` are in: `ms` or `bytes`.
    pub unit: String,
    /// Where the limit comes from, for people.
    pub rule: String,
    /// At most this.
    pub limit: f64,
    /// What it was; null when the migration did not complete.
    pub value: Option<f64>,
    /// Whether it was reached.
    pub met: bool,
}
