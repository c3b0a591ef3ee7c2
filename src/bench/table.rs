//! The results as a table for people.

use std::fmt::{self, Write};

use super::results::{Bar, BenchResults, EngineResults, Figures, ScenarioResults};

/// One scenario, a line for each engine and mode.
#[must_use]
pub fn block(scenario: &ScenarioResults) -> String {
    let mut out = String::new();
    write_block(scenario, &mut out).expect("a string takes everything");
    out
}

/// What was run where, and how many bars were met.
#[must_use]
pub fn summary(results: &BenchResults) -> String {
    let BenchResults { machine, versions, command, pairs, scenarios, .. } = results;
    let qemu = versions.qemu.as_ref().map_or_else(String::new, |version| format!(", QEMU {version}"));
    let mut out = format!("{machine}\npageferry {}{qemu}, medians of {pairs}: {command}\n", versions.pageferry);
    let bars = || scenarios.iter().flat_map(|scenario| &scenario.bars);
    if bars().next().is_some() {
        out.push_str(&format!("{} of {} bars met\n", bars().filter(|bar| bar.met).count(), bars().count()));
    }
    out
}

fn write_block(scenario: &ScenarioResults, out: &mut String) -> fmt::Result {
    let ScenarioResults { name, title, guest, link, floor, engines, ratios, post_copy_ratios, bars } = scenario;
    writeln!(out, "{name}: {title}")?;
    writeln!(out, "  {guest}")?;
    write!(out, "  floor {:.1} MB, {:.0} ms", mega(floor.bytes), floor.total_ms)?;
    match link.measured_bytes_per_s {
        Some(rate) => writeln!(out, " (two TCP streams move {:.0} MB/s)", rate / 1e6)?,
        None => writeln!(out)?,
    }
    let columns = if engines.iter().any(|engine| engine.post_copy) { COLUMNS.len() } else { COMMON };
    writeln!(out, "  {:<24}{}", "", row(COLUMNS.map(str::to_owned).into_iter().take(columns)))?;
    for engine in engines {
        write_engine(engine, columns, out)?;
    }
    if let Some(ratios) = ratios {
        let cells = [ratios.total, ratios.downtime, ratios.guest_gap, ratios.wire_bytes, ratios.cpu].map(Some);
        writeln!(out, "  {:<24}{}", "ratio to QEMU's best", row(cells.into_iter().map(ratio)))?;
    }
    if let Some(ratios) = post_copy_ratios {
        let cells = [ratios.total, ratios.downtime, ratios.guest_gap, ratios.wire_bytes, ratios.cpu].map(Some);
        let cells = cells.into_iter().chain([None, None, Some(ratios.guest_writes_after)]);
        writeln!(out, "  {:<24}{}", "ratio of post-copy", row(cells.map(ratio)))?;
    }
    write_stops(engines, out)?;
    bars.iter().try_for_each(|bar| write_bar(bar, out))
}

/// Where the machine stood still for long enough to be seen in the guest's gaps.
fn write_stops(engines: &[EngineResults], out: &mut String) -> fmt::Result {
    let long = |engine: &EngineResults| {
        let stopped = engine.runs.iter().filter_map(|run| run.figures.machine_stopped_ms).fold(0.0, f64::max);
        (stopped >= WORTH_TELLING_MS).then(|| format!("{stopped:.1} ms in {} {}", engine.engine, engine.mode))
    };
    let stops: Vec<_> = engines.iter().filter_map(long).collect();
    if stops.is_empty() {
        return Ok(());
    }
    writeln!(out, "  the machine itself stood still, at the longest {}: gaps hold that", stops.join(", "))
}

/// Cells of one width, beside each other.
fn row(cells: impl Iterator<Item = String>) -> String {
    cells.map(|cell| format!("{cell:>14}")).collect()
}

/// A ratio, `-` where one of its figures is missing; nothing in a column that has none.
fn ratio(ratio: Option<Option<f64>>) -> String {
    ratio.map_or_else(String::new, |ratio| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")))
}

fn write_engine(engine: &EngineResults, columns: usize, out: &mut String) -> fmt::Result {
    let name = format!("{} {}", engine.engine, engine.mode);
    match &engine.median {
        Some(figures) => writeln!(out, "  {name:<24}{}", row(cells(figures).into_iter().take(columns))),
        None => writeln!(out, "  {name:<24}  {}", engine.outcome.lines().next().unwrap_or_default()),
    }
}

fn cells(figures: &Figures) -> [String; COLUMNS.len()] {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let share = figures.guest_writes_per_s.zip(figures.guest_writes_before_per_s).filter(|(_, before)| *before > 0.0);
    [
        format!("{:.0}", figures.total_ms),
        format!("{:.1}", figures.downtime_ms),
        known(figures.guest_gap_ms.map(|gap| format!("{gap:.1}"))),
        format!("{:.1}", mega(figures.wire_bytes)),
        format!("{:.2}", figures.cpu_source_s + figures.cpu_destination_s),
        known(figures.guest_writes_per_s.map(|rate| format!("{rate:.0}"))),
        known(share.map(|(during, before)| format!("{:.0} %", during / before * 100.0))),
        known(figures.guest_writes_after_per_s.map(|rate| format!("{rate:.0}"))),
        known(figures.fault_p50_us.map(|time| format!("{time:.0}"))),
        known(figures.fault_p99_us.map(|time| format!("{time:.0}"))),
    ]
}

fn write_bar(bar: &Bar, out: &mut String) -> fmt::Result {
    let show = |value: f64| match bar.unit.as_str() {
        "bytes" => format!("{:.1} MB", value / 1e6),
        unit => format!("{value:.1} {unit}"),
    };
    let verdict = if bar.met { "met" } else { "MISSED" };
    let value = bar.value.map_or_else(|| "none".to_owned(), show);
    writeln!(out, "  {verdict:<6}  {} at most {} ({}): {value}", bar.what.replace('_', " "), show(bar.limit), bar.rule)
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

const COLUMNS: [&str; 10] =
    ["total ms", "downtime ms", "guest gap ms", "wire MB", "CPU s", "writes/s", "of before", "then, 1st s", "fault p50 us", "fault p99 us"];
/// Those that are not of post-copy alone.
const COMMON: usize = 7;
/// Milliseconds that the machine must have stood still to be worth a word.
const WORTH_TELLING_MS: f64 = 3.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::tests::{FLOOR, engine, engines, figures};
    use crate::bench::compare::{bars, post_copy_ratios, ratios};
    use crate::bench::results::{KIND, LinkResults, PAGEFERRY, QEMU, SCHEMA, Versions};

    fn results() -> BenchResults {
        let engines = engines();
        let scenario = ScenarioResults {
            name: "busy".into(),
            title: "a busy guest".into(),
            guest: "kvm:memory=1GiB".into(),
            link: LinkResults { rate_bits_per_s: None, measured_bytes_per_s: Some(2e9) },
            floor: FLOOR,
            ratios: ratios(&engines),
            post_copy_ratios: post_copy_ratios(&engines),
            bars: bars(&engines, FLOOR, false),
            engines,
        };
        BenchResults {
            schema: SCHEMA,
            kind: KIND.into(),
            machine: "2 x a processor".into(),
            versions: Versions { pageferry: "0.1.0".into(), qemu: Some("10.0.2".into()), rustc: None },
            command: "pageferry bench --qemu".into(),
            date: "2026-01-31T12:00:00Z".into(),
            pairs: 1,
            scenarios: vec![scenario],
        }
    }

    #[test]
    fn every_engine_has_a_line_and_every_bar_its_verdict() {
        let text = block(&results().scenarios[0]);
        let line = |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_else(|| panic!("{start}\n{text}"));
        assert_eq!(
            line("pageferry default").split_whitespace().collect::<Vec<_>>(),
            ["pageferry", "default", "600", "10.0", "20.0", "0.0", "0.60", "9000", "90", "%", "-", "-", "-"]
        );
        assert!(line("qemu xbzrle").ends_with("not done after 40 s"));
        assert!(line("ratio").contains("0.75") && line("ratio").contains("0.40"));
        assert!(line("MISSED").contains("total at most 440.0 ms (1.1 of the floor): 600.0 ms"), "{text}");
        let summary = summary(&results());
        assert!(summary.contains("QEMU 10.0.2") && summary.ends_with("2 of 3 bars met\n"), "{summary}");
        let width = line("qemu pre-copy").chars().count();
        assert!([line("pageferry default"), line("qemu post-copy")].iter().all(|line| line.chars().count() == width), "{text}");
    }

    #[test]
    fn post_copy_has_columns_of_its_own() {
        let mut scenario = results().scenarios.remove(0);
        let with =
            |writes, fault| Figures { guest_writes_after_per_s: Some(writes), fault_p50_us: fault, fault_p99_us: fault, ..figures(400.0, 4.0, 60) };
        scenario.engines = vec![engine(PAGEFERRY, "post-copy", Some(with(8000.0, Some(210.0)))), engine(QEMU, "post-copy", Some(with(2000.0, None)))];
        scenario.post_copy_ratios = post_copy_ratios(&scenario.engines);
        let text = block(&scenario);
        let ends = |start: &str, end: &str| text.lines().any(|line| line.trim_start().starts_with(start) && line.ends_with(end));
        assert!(ends("", "then, 1st s  fault p50 us  fault p99 us"), "{text}");
        assert!(ends("pageferry post-copy", "8000           210           210"), "{text}");
        assert!(ends("qemu post-copy", "2000             -             -"), "{text}");
        assert!(ends("ratio of post-copy", "1.00                                      4.00"), "{text}");
        scenario.engines.iter_mut().for_each(|engine| engine.post_copy = false);
        assert!(!block(&scenario).contains("1st s"));
    }

    #[test]
    fn a_machine_that_stood_still_is_told_of() {
        let mut scenario = results().scenarios.remove(0);
        assert!(!block(&scenario).contains("stood still"));
        let stopped = |ms| Some(Figures { machine_stopped_ms: Some(ms), ..figures(400.0, 4.0, 60) });
        scenario.engines = vec![engine(PAGEFERRY, "default", stopped(0.4)), engine(QEMU, "pre-copy", stopped(17.0))];
        let text = block(&scenario);
        assert!(text.contains("  the machine itself stood still, at the longest 17.0 ms in qemu pre-copy: gaps hold that\n"), "{text}");
    }

    #[test]
    fn the_json_form_is_read_back_and_has_its_fixed_names() {
        let results = results();
        let json = serde_json::to_value(&results).unwrap();
        assert_eq!(serde_json::from_value::<BenchResults>(json.clone()).unwrap(), results);
        assert_eq!(json["kind"], "bench");
        let scenario = &json["scenarios"][0];
        assert_eq!(scenario["engines"][0]["runs"][0]["total_ms"], 600.0);
        assert!(scenario["engines"][0]["runs"][0]["report"].is_null());
        assert_eq!(scenario["engines"][3]["median"], serde_json::Value::Null);
        assert_eq!(scenario["ratios"]["total"], 0.75);
        assert_eq!(scenario["bars"][0]["met"], false);
        assert!(scenario["link"]["rate_bits_per_s"].is_null());
    }
}
