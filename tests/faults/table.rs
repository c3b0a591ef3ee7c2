//! What became of all guests: one line for each seed in a file that runs add to, and a table made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::case::{Case, FAULTS, Fault, PHASES, Phase};
use crate::judge::{OUTCOMES, Outcome};
use crate::seeds::ONCE_FAILED;

/// Outcomes by seed, to be kept.
pub(crate) struct Results {
    file: Option<File>,
}

impl Results {
    /// Adds to a file, if one is named.
    pub(crate) fn open(path: Option<&str>) -> Result<Self> {
        let open = |path| File::options().create(true).append(true).open(path).with_context(|| format!("--results {path}"));
        Ok(Self { file: path.map(open).transpose()? })
    }

    pub(crate) fn add(&mut self, seed: u64, outcome: Outcome) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        Ok(writeln!(file, "{seed} {outcome}")?)
    }
}

/// The table of all runs that have added to a file.
///
/// # Errors
/// When the file holds something else.
pub(crate) fn table(results: &Path) -> Result<String> {
    let mut counts: BTreeMap<(Fault, Phase), BTreeMap<Outcome, u32>> = BTreeMap::new();
    let mut all: BTreeMap<Outcome, u32> = BTreeMap::new();
    let mut seeds = BTreeSet::new();
    for line in std::fs::read_to_string(results)?.lines() {
        let (seed, word) = line.split_once(' ').with_context(|| format!("not a result: {line}"))?;
        let outcome = OUTCOMES.into_iter().find(|outcome| outcome.to_string() == word).with_context(|| format!("not an outcome: {word}"))?;
        let seed: u64 = seed.parse()?;
        // Those that once failed are run each time, and are no part of the series.
        if ONCE_FAILED.iter().any(|(once, _)| *once == seed) || !seeds.insert(seed) {
            continue;
        }
        let case = Case::new(seed);
        *counts.entry((case.fault, case.phase)).or_default().entry(outcome).or_default() += 1;
        *all.entry(outcome).or_default() += 1;
    }
    let (first, last) = (seeds.first().context("no results")?, seeds.last().context("no results")?);
    let mut text = format!("# What becomes of the guest\n\n{} seeds from {first} to {last}. ", seeds.len());
    let counted: Vec<String> = all.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    writeln!(text, "In all: {}.\n", counted.join(", "))?;
    let others: Vec<String> = (*first..=*last).filter(|seed| !seeds.contains(seed)).map(|seed| seed.to_string()).collect();
    if !others.is_empty() {
        writeln!(text, "Not in it, since they failed or were skipped: {}.\n", others.join(", "))?;
    }
    text.push_str(HEAD);
    let phases: Vec<String> = PHASES.iter().map(|phase| words(&format!("{phase:?}"))).collect();
    writeln!(text, "| fault | {} |\n|---|{}", phases.join(" | "), "---|".repeat(PHASES.len()))?;
    for fault in FAULTS {
        let cell = |phase| {
            let outcomes = counts.get(&(fault, phase)).into_iter().flatten();
            outcomes.map(|(outcome, count)| format!("{count} {outcome}")).collect::<Vec<_>>().join("<br>")
        };
        writeln!(text, "| {} | {} |", words(&format!("{fault:?}")), PHASES.map(cell).join(" | "))?;
    }
    Ok(text)
}

/// `LongStop(Sender)` as `long stop (sender)`.
pub(crate) fn words(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() && !text.ends_with('(') {
            text.push(' ');
        }
        if letter == '(' {
            text.push(' ');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

const HEAD: &str = "\
Made by `tests/run faults --seed FIRST --count N --results FILE`, in slices, and `tests/run faults --results FILE --table tests/faults/TABLE.md`.
`tests/faults/main.rs` says what the faults are, and that each run ends with one owner of the guest, its memory checked there.

- arrived: the guest runs at the destination, whole. stayed: it runs at the source. Checked in both cases.
- in doubt: Commit was sent and nobody answers; the sender says so and keeps the guest paused.
- waits: post-copy; the destination has the guest and keeps it, and the memory that it lacks is at the source, which is gone or cannot be reached.
- died with its host: the process that had it was killed, or told a second time to end.
- over before: the migration had ended when its fault was due; the guest had arrived.
- not struck: the fault was there and came to nothing, since a disk or a memory had room for all that was wanted of it; the guest had arrived.
  Everywhere else in these rows it is known to have struck: somebody was killed for memory or refused it, or said that there is no space left.

";
