//! The part of a page that shows a bench: what it comes to, then scenario by scenario.

use super::axis::Axis;
use super::bars::{Bar, Bars, Length};
use super::markup::{Element, element};
use super::migration;
use super::pairing::Ends;
use super::post_copy::Followed;
use super::quantity::Unit;
use super::ratios::Ratios;
use super::read::{Bench, Engine, Figure, Figures, Run, Scenario};
use super::table::{self, Cell, NONE, Table};

/// One line about what it was.
pub(super) fn headline(bench: &Bench) -> String {
    let goals = bench.scenarios.iter().flat_map(|scenario| &scenario.goals);
    let (met, all) = (goals.clone().filter(|goal| goal.met).count(), goals.count());
    let scenarios = match bench.scenarios.len() {
        1 => "1 scenario".to_owned(),
        count => format!("{count} scenarios"),
    };
    if all == 0 { format!("Bench: {scenarios}") } else { format!("Bench: {scenarios}, {met} of {all} bars met") }
}

/// Everything about it; `id` is unique on the page.
pub(super) fn body(id: &str, bench: &Bench) -> Vec<Element> {
    let mut parts = vec![setting(bench)];
    parts.extend(overview(id, bench));
    for (scenario, index) in bench.scenarios.iter().zip(1..) {
        parts.push(self::scenario(&format!("{id}-s{index}"), scenario));
    }
    parts
}

/// Where, with what and how it was measured.
fn setting(bench: &Bench) -> Element {
    let versions = bench.versions.iter().map(|(name, version)| format!("{name} {}", version.as_deref().unwrap_or("was not run")));
    let rows = [
        ("Machine", bench.machine.clone()),
        ("Versions", versions.collect::<Vec<_>>().join(", ")),
        ("Command", bench.command.clone()),
        ("Date", bench.date.clone()),
        ("Figures", format!("medians of {} alternating runs of each engine and mode", Unit::Pages.show(bench.pairs.0))),
    ];
    let rows = rows.into_iter().flat_map(|(name, value)| {
        let value = if name == "Command" { element("dd").child(element("code").text(value)) } else { element("dd").text(value) };
        [element("dt").text(name), value]
    });
    element("dl").class("setting").children(rows)
}

/// All ratios in one place; nothing when there was nothing to compare with.
fn overview(id: &str, bench: &Bench) -> Vec<Element> {
    let all: Vec<f64> = bench.scenarios.iter().flat_map(|scenario| COLUMNS.iter().filter_map(|(key, ..)| scenario.ratio(key))).collect();
    if all.is_empty() {
        return Vec::new();
    }
    let axis = Axis::for_ratios(&all);
    let pictures = COLUMNS.iter().map(|(key, title, _)| {
        let rows = bench.scenarios.iter().map(|scenario| (scenario.name.clone(), scenario.ratio(key))).collect();
        Ratios { id: format!("{id}-ratio-{key}"), title, rows }.draw(&axis)
    });
    let columns: Vec<_> = std::iter::once(table::words("Scenario"))
        .chain(COLUMNS.iter().map(|(_, title, _)| table::figures(title)))
        .chain([table::words("Bars")])
        .collect();
    let mut table = Table::new("This engine over the best QEMU mode", &columns);
    for scenario in &bench.scenarios {
        let ratios = COLUMNS.iter().map(|(key, ..)| scenario.ratio(key).map_or_else(|| NONE.to_owned(), |ratio| Unit::Times.show(ratio)));
        let cells = std::iter::once(scenario.name.clone()).chain(ratios).map(Cell::from);
        table.row_of(cells.chain([goals_met(scenario)]));
    }
    let mut parts = vec![
        element("h3").text("Against the best QEMU mode"),
        element("p").class("note").text(
            "This engine's median over that of QEMU's best mode, which is chosen for each figure by itself. \
             Left of 1 is better. The axis is logarithmic: half and double are equally far from 1.",
        ),
        element("div").class("columns").children(pictures),
        table.draw(),
    ];
    parts.extend(post_copy_ratios(bench));
    parts
}

/// Post-copy against post-copy; nothing where one of the engines was not run in it.
fn post_copy_ratios(bench: &Bench) -> Option<Element> {
    const WRITES: (&str, &str) = ("guest_writes_after", "Guest writes, first second");
    let keys = || COLUMNS.iter().map(|(key, title, _)| (*key, *title)).chain([WRITES]);
    let columns: Vec<_> = std::iter::once(table::words("Scenario")).chain(keys().map(|(_, title)| table::figures(title))).collect();
    let mut table = Table::new("Post-copy over QEMU's post-copy (of writes, more than 1 is better)", &columns);
    let measured = || bench.scenarios.iter().filter(|scenario| scenario.post_copy_ratios.is_some());
    for scenario in measured() {
        let ratios = keys().map(|(key, _)| scenario.post_copy_ratio(key).map_or_else(|| NONE.to_owned(), |ratio| Unit::Times.show(ratio)));
        table.row_of(std::iter::once(scenario.name.clone()).chain(ratios).map(Cell::from));
    }
    (measured().count() > 0).then(|| table.draw())
}

fn goals_met(scenario: &Scenario) -> Cell {
    let (met, all) = (scenario.goals.iter().filter(|goal| goal.met).count(), scenario.goals.len());
    match (met, all) {
        (_, 0) => NONE.to_owned().into(),
        (met, all) if met == all => Cell::with_sign("met", "✓", format!("{met} of {all} met")),
        (met, all) => Cell::with_sign("missed", "✗", format!("{} of {all} missed", all - met)),
    }
}

fn scenario(id: &str, scenario: &Scenario) -> Element {
    let heading = if scenario.title.is_empty() { &scenario.name } else { &scenario.title };
    let mut parts = vec![element("h3").text(heading), conditions(scenario)];
    parts.extend((!scenario.goals.is_empty()).then(|| goals(scenario)));
    parts.push(element("div").class("columns").children(PICTURES.iter().map(|picture| picture.draw(id, scenario))));
    parts.push(element("p").class("note legend").children([
        element("span").class("swatch ours"),
        element("span").text("this engine (processor time: stronger at the source, fainter at the destination)"),
        element("span").class("swatch theirs"),
        element("span").text("QEMU; dots are single runs"),
    ]));
    parts.push(medians(scenario));
    parts.extend(followed(scenario));
    let ours = scenario.engines.iter().filter(|engine| engine.is_ours());
    parts.extend(ours.zip(1..).filter_map(|(engine, number)| typical_run(&format!("{id}-run{number}"), engine)));
    element("section").with("id", id).class("scenario").children(parts)
}

fn conditions(scenario: &Scenario) -> Element {
    let link = match (scenario.link.rate_bits_per_s, scenario.link.measured_bytes_per_s) {
        (None, None) => "unshaped".to_owned(),
        (Some(rate), None) => Unit::BitsPerSec.show(rate.0),
        (None, Some(measured)) => format!("unshaped, {} measured", Unit::BitsPerSec.show(measured.0 * 8.0)),
        (Some(rate), Some(measured)) => format!("{}, {} measured", Unit::BitsPerSec.show(rate.0), Unit::BitsPerSec.show(measured.0 * 8.0)),
    };
    let floor = scenario.floor.map(|floor| {
        let figures = [floor.total_ms.map(|time| Unit::Millis.show(time.0)), floor.bytes.map(|bytes| Unit::Bytes.show(bytes.0))];
        figures.into_iter().flatten().collect::<Vec<_>>().join(", ")
    });
    let rows = [("Scenario", Some(scenario.name.clone())), ("Guest", Some(scenario.guest.clone())), ("Link", Some(link)), ("Floor", floor)];
    let rows = rows.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    element("dl").class("setting").children(rows.flat_map(|(name, value)| {
        let value = if name == "Guest" { element("dd").child(element("code").text(value)) } else { element("dd").text(value) };
        [element("dt").text(name), value]
    }))
}

fn goals(scenario: &Scenario) -> Element {
    let columns = [table::words("Bar"), table::words("Rule"), table::figures("At most"), table::figures("Was"), table::words("Verdict")];
    let mut table = Table::new("Bars to be met", &columns);
    for goal in &scenario.goals {
        let show = |figure: f64| match goal.unit.as_str() {
            "ms" => Unit::Millis.show(figure),
            "bytes" => Unit::Bytes.show(figure),
            "" => Unit::Times.show(figure),
            other => format!("{} {other}", super::quantity::number(figure, 2)),
        };
        let verdict = if goal.met { Cell::with_sign("met", "✓", "met") } else { Cell::with_sign("missed", "✗", "missed") };
        let title = COLUMNS.iter().find(|(key, ..)| *key == goal.what).map_or(goal.what.as_str(), |(_, title, _)| title);
        let value = goal.value.map_or_else(|| NONE.to_owned(), |value| show(value.0));
        table.row_of([title.to_owned().into(), goal.rule.clone().into(), show(goal.limit.0).into(), value.into(), verdict]);
    }
    table.draw()
}

/// Bars of one figure of all engines.
struct FigurePicture {
    key: &'static str,
    title: &'static str,
    unit: Unit,
    /// The figure, in one or two pieces.
    pieces: fn(&Figures) -> Option<Vec<Figure>>,
    floor: fn(&Scenario) -> Option<Figure>,
}

const PICTURES: [FigurePicture; 5] = [
    FigurePicture {
        key: "total",
        title: "Total time",
        unit: Unit::Millis,
        pieces: |figures| Some(vec![figures.total_ms?]),
        floor: |scenario| scenario.floor?.total_ms,
    },
    FigurePicture {
        key: "guest_gap",
        title: "Longest gap of the guest",
        unit: Unit::Millis,
        pieces: |figures| Some(vec![figures.guest_gap_ms?]),
        floor: |_| None,
    },
    FigurePicture {
        key: "downtime",
        title: "Downtime by the engine's own clock",
        unit: Unit::Millis,
        pieces: |figures| Some(vec![figures.downtime_ms?]),
        floor: |_| None,
    },
    FigurePicture {
        key: "wire_bytes",
        title: "Bytes on the wire",
        unit: Unit::Bytes,
        pieces: |figures| Some(vec![figures.wire_bytes?]),
        floor: |scenario| scenario.floor?.bytes,
    },
    FigurePicture {
        key: "cpu",
        title: "Processor time, both ends",
        unit: Unit::CpuSeconds,
        pieces: |figures| Some(vec![figures.cpu_source_s?, figures.cpu_destination_s?]),
        floor: |_| None,
    },
];

impl FigurePicture {
    fn draw(&self, id: &str, scenario: &Scenario) -> Element {
        let bars = scenario.engines.iter().map(|engine| self.bar(engine)).collect();
        let mut lines = Vec::new();
        lines.extend((self.floor)(scenario).map(|floor| ("floor", floor.0, "floor")));
        let unit = if self.unit == Unit::Bytes { "bytes" } else { "ms" };
        let goals = scenario.goals.iter().filter(|goal| goal.what == self.key && goal.unit == unit);
        lines.extend(goals.map(|goal| ("at most", goal.limit.0, "limit")));
        Bars { id: format!("{id}-{}", self.key), title: self.title.to_owned(), unit: self.unit, bars, lines }.draw()
    }

    fn bar(&self, engine: &Engine) -> Bar {
        let whole = |figures: &Figures| (self.pieces)(figures).map(|pieces| pieces.iter().map(|piece| piece.0).sum());
        let classes = if engine.is_ours() { ["ours", "ours fainter"] } else { ["theirs", "theirs fainter"] };
        let length = match engine.median.as_ref().map(self.pieces) {
            Some(Some(pieces)) => Length::Of(classes.into_iter().zip(pieces.into_iter().map(|piece| piece.0)).collect()),
            Some(None) => Length::Unknown("not measured".to_owned()),
            None => Length::Unknown(engine.outcome.clone()),
        };
        Bar { name: engine.title(), length, runs: engine.runs.iter().filter_map(|run| whole(&run.figures)).collect() }
    }
}

/// Names of ratios and bars in JSON, their titles, and where a column of medians has its figure.
const COLUMNS: [(&str, &str, Unit); 5] = [
    ("total", "Total time", Unit::Millis),
    ("guest_gap", "Guest's gap", Unit::Millis),
    ("downtime", "Downtime", Unit::Millis),
    ("wire_bytes", "Wire bytes", Unit::Bytes),
    ("cpu", "Processor time", Unit::CpuSeconds),
];

fn medians(scenario: &Scenario) -> Element {
    use table::{figures, words};
    let columns = [
        words("Engine and mode"),
        words("Outcome"),
        figures("Runs"),
        figures("Total time"),
        figures("Guest's gap"),
        figures("Downtime"),
        figures("Wire bytes"),
        figures("CPU, source"),
        figures("CPU, destination"),
        figures("Guest writes"),
        figures("Before"),
    ];
    let mut table = Table::new("Medians", &columns);
    for engine in &scenario.engines {
        let median = engine.median.as_ref();
        let show = |unit: Unit, figure: fn(&Figures) -> Option<Figure>| {
            median.and_then(figure).map_or_else(|| NONE.to_owned(), |figure| unit.show(figure.0))
        };
        table.row([
            engine.title(),
            engine.outcome.clone(),
            engine.runs.len().to_string(),
            show(Unit::Millis, |figures| figures.total_ms),
            show(Unit::Millis, |figures| figures.guest_gap_ms),
            show(Unit::Millis, |figures| figures.downtime_ms),
            show(Unit::Bytes, |figures| figures.wire_bytes),
            show(Unit::CpuSeconds, |figures| figures.cpu_source_s),
            show(Unit::CpuSeconds, |figures| figures.cpu_destination_s),
            show(Unit::WritesPerSec, |figures| figures.guest_writes_per_s),
            show(Unit::WritesPerSec, |figures| figures.guest_writes_before_per_s),
        ]);
    }
    table.draw()
}

/// How guests fared whose memory followed them; nothing where none was moved that way.
fn followed(scenario: &Scenario) -> Option<Element> {
    use table::{figures, words};
    let columns =
        [words("Engine and mode"), figures("Guest writes before"), figures("In the first second there"), figures("Half of faults"), figures("99 %")];
    let mut table = Table::new("Post-copy: how the guest fared, faults within", &columns);
    let known = |figure: Option<Figure>, show: fn(f64) -> String| figure.map_or_else(|| NONE.to_owned(), |figure| show(figure.0));
    let writes = |rate| Unit::WritesPerSec.show(rate);
    let medians = || scenario.engines.iter().filter_map(|engine| Some((engine, engine.median?)));
    let measured = || medians().filter(|(_, median)| median.guest_writes_after_per_s.is_some());
    for (engine, median) in measured() {
        table.row([
            engine.title(),
            known(median.guest_writes_before_per_s, writes),
            known(median.guest_writes_after_per_s, writes),
            known(median.fault_p50_us, super::post_copy::micros),
            known(median.fault_p99_us, super::post_copy::micros),
        ]);
    }
    (measured().count() > 0).then(|| table.draw())
}

/// The run of this engine that is closest to its median, round by round, folded up.
fn typical_run(id: &str, ours: &Engine) -> Option<Element> {
    let median = ours.median?.total_ms?.0;
    let distance = |run: &Run| run.figures.total_ms.map_or(f64::INFINITY, |total| (total.0 - median).abs());
    let run = ours.runs.iter().filter(|run| run.report.is_some()).min_by(|one, other| distance(one).total_cmp(&distance(other)))?;
    let mut ends = Ends::one(None, run.report.as_ref()?);
    // What stands in the sender's place may be a receiver's.
    ends.receiver = ends.receiver.or(run.received.as_ref());
    let how = if Followed::of(&ends).is_some() { " in post-copy" } else { "" };
    let summary = element("summary").text(format_args!("This engine's run{how} closest to the median, round by round"));
    Some(element("details").child(summary).children(migration::body(id, &ends)))
}
