//! The part of a page that shows one migration.

use std::cmp::Ordering;

use super::bars::{Bar, Bars, Length};
use super::markup::{Element, element};
use super::pairing::Ends;
use super::post_copy::{self, Followed};
use super::quantity::{Unit, share};
use super::read::{Figure, Migration};
use super::stack::Stack;
use super::table::{self, Cell, NONE, Table};
use super::timeline::{self, timeline};

/// One line about how it went.
pub(super) fn headline(ends: &Ends<'_>) -> String {
    let report = ends.main();
    let time = |figure: Figure| Unit::Millis.show(figure.0);
    let whose = report.guest.as_ref().map_or_else(String::new, |guest| format!("{guest}: "));
    if report.is_completed() {
        let how = if Followed::of(ends).is_some() { " in post-copy" } else { "" };
        format!("{whose}Completed in {}{how}, downtime {}", time(report.total_ms), time(report.downtime_ms))
    } else {
        format!("{whose}Not completed: {}, after {}", report.outcome, time(report.total_ms))
    }
}

/// Everything about it; `id` is unique on the page.
pub(super) fn body(id: &str, ends: &Ends<'_>) -> Vec<Element> {
    let report = ends.main();
    let mut parts = vec![tiles(ends)];
    if !report.reason.is_empty() {
        let why = if report.is_completed() { "Pre-copy ended by: " } else { "Reason: " };
        parts.push(element("p").class("reason").text(why).child(element("strong").text(&report.reason)));
    }
    if let Some(picture) = timeline(format!("{id}-timeline"), report) {
        parts.extend([picture, element("p").class("note").text(timeline::NOTE)]);
    }
    if !report.rounds.is_empty() {
        parts.push(rounds(report));
    }
    if let Some(followed) = Followed::of(ends) {
        parts.push(element("div").class("columns").children(followed.pictures(id)));
        parts.extend(followed.note());
    }
    parts.push(element("div").class("columns").children(columns(id, ends)));
    parts.push(facts(ends));
    parts
}

/// The figures that matter most.
fn tiles(ends: &Ends<'_>) -> Element {
    let report = ends.main();
    let time = |figure: Figure| Unit::Millis.show(figure.0);
    let mut tiles = vec![("total migration time", time(report.total_ms)), ("downtime", time(report.downtime_ms))];
    tiles.extend(guest_gap(ends).map(|gap| ("longest gap the guest saw", time(gap))));
    if let Some(followed) = Followed::of(ends) {
        tiles.push(("until all memory was there", time(report.resume_ms)));
        tiles.extend(followed.tiles());
    }
    tiles.push(("bytes on the wire", Unit::Bytes.show(report.wire_bytes.0)));
    tiles.push(("pages transferred", Unit::Pages.show(report.pages_transferred.0)));
    tiles.extend(report.guest_owner.clone().map(|owner| ("guest is held by", owner)));
    tiles.extend(guest_check(ends).map(|check| ("guest check", check.to_owned())));
    let tile = |(name, figure): (&str, String)| element("div").child(element("dt").text(name)).child(element("dd").text(figure));
    element("dl").class("tiles").children(tiles.into_iter().map(tile))
}

fn guest_gap(ends: &Ends<'_>) -> Option<Figure> {
    ends.receiver.or(ends.sender)?.guest_gap_ms
}

fn guest_check<'a>(ends: &Ends<'a>) -> Option<&'a str> {
    ends.receiver.or(ends.sender)?.guest_check.as_deref()
}

fn rounds(report: &Migration) -> Element {
    use table::{figures, words};
    let columns = [
        figures("Round"),
        words("Kind"),
        figures("Pages"),
        figures("On the wire"),
        figures("Time"),
        figures("Bandwidth"),
        figures("Dirty after"),
        figures("Dirty rate"),
        words("Then"),
    ];
    let mut table = Table::new("Rounds", &columns);
    let or_none = |figure: Option<f64>, unit: Unit| figure.map_or_else(|| NONE.to_owned(), |figure| unit.show(figure));
    for (round, dirty_rate) in report.rounds.iter().zip(report.dirty_rates()) {
        table.row([
            round.index.to_string(),
            round.kind.clone(),
            Unit::Pages.show(round.pages.0),
            Unit::Bytes.show(round.wire_bytes.0),
            Unit::Millis.show(round.duration_ms.0),
            or_none(round.bandwidth(), Unit::BitsPerSec),
            or_none(round.dirty_after.map(|pages| pages.0), Unit::Pages),
            or_none(dirty_rate, Unit::PagesPerSec),
            round.decision.clone().unwrap_or_else(|| NONE.to_owned()),
        ]);
    }
    table.draw()
}

/// The smaller pictures, beside each other where there is room.
fn columns(id: &str, ends: &Ends<'_>) -> Vec<Element> {
    let report = ends.main();
    let mut columns = Vec::new();
    // The source's parts make up its downtime; the destination sees only what it does itself.
    if let Some(parts) = ends.sender.and_then(|sender| sender.downtime_parts_ms.as_ref()) {
        let whole = Some((report.downtime_ms.0, "in no part"));
        let stack = Stack { id: format!("{id}-downtime"), title: "Downtime in parts", unit: Unit::Millis, parts: &parts.0, whole };
        columns.push(element("div").children(stack.draw()));
    }
    if let Some(parts) = ends.receiver.and_then(|receiver| receiver.downtime_parts_ms.as_ref()) {
        let title = "The destination's own work in downtime";
        let stack = Stack { id: format!("{id}-settling"), title, unit: Unit::Millis, parts: &parts.0, whole: None };
        columns.push(element("div").children(stack.draw()));
    }
    let encodings: Vec<_> = report.pages_by_encoding.0.iter().filter(|(_, pages)| *pages > 0.0).cloned().collect();
    if !encodings.is_empty() {
        let whole = Some((report.pages_transferred.0, "other"));
        let stack = Stack { id: format!("{id}-encodings"), title: "Pages by encoding", unit: Unit::Pages, parts: &encodings, whole };
        columns.push(element("div").children(stack.draw()));
    }
    if let Some(predicted) = report.predicted.as_ref().filter(|_| report.is_completed()) {
        let pairs = [("total", "Total time", predicted.total_ms, report.total_ms), ("down", "Downtime", predicted.downtime_ms, report.downtime_ms)];
        let pictures = pairs.map(|(short, name, predicted, actual)| prediction(format!("{id}-predicted-{short}"), name, predicted.0, actual.0));
        columns.push(element("div").children(pictures));
    }
    columns
}

fn prediction(id: String, name: &str, predicted: f64, actual: f64) -> Element {
    let bar = |name: &str, class, figure| Bar { name: name.to_owned(), length: Length::Of(vec![(class, figure)]), runs: Vec::new() };
    let bars = vec![bar("predicted after round 0", "expected", predicted), bar("actual", "ours", actual)];
    let picture = Bars { id, title: format!("{name}, predicted and actual"), unit: Unit::Millis, bars, lines: Vec::new() }.draw();
    let verdict = match (actual - predicted).total_cmp(&0.0) {
        _ if predicted <= 0.0 => "Nothing was predicted to compare with.".to_owned(),
        Ordering::Greater => format!("It took {} longer than predicted.", share(actual - predicted, predicted)),
        Ordering::Equal => "It took as long as predicted.".to_owned(),
        Ordering::Less => format!("It took {} less than predicted.", share(predicted - actual, predicted)),
    };
    element("div").child(picture).child(element("p").class("note").text(verdict))
}

/// Everything else, from both ends.
fn facts(ends: &Ends<'_>) -> Element {
    let sides: Vec<(&str, &Migration)> =
        [("Sender", ends.sender), ("Receiver", ends.receiver)].into_iter().filter_map(|(name, side)| Some((name, side?))).collect();
    let headings = std::iter::once(table::words("Figure")).chain(sides.iter().map(|(name, _)| if *name == "Sender" { SENDER } else { RECEIVER }));
    let caption = if sides.len() == 2 { "Both ends in figures" } else { "All figures" };
    let mut table = Table::new(caption, &headings.collect::<Vec<_>>());
    for (name, figure) in FACTS {
        let cells: Vec<Option<String>> = sides.iter().map(|(_, side)| figure(side)).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| Cell::from(cell.unwrap_or_else(|| NONE.to_owned())));
            table.row_of(std::iter::once(Cell::from((*name).to_owned())).chain(cells));
        }
    }
    table.draw()
}

const SENDER: table::Column = table::figures("Sender");
const RECEIVER: table::Column = table::figures("Receiver");

/// A figure's name and how it is found.
type Fact = (&'static str, fn(&Migration) -> Option<String>);

const FACTS: &[Fact] = &[
    ("Outcome", |report| Some(report.outcome.clone())),
    ("Preparation time: the guest runs at the source", |report| millis(report.preparation_ms)),
    ("Downtime: the guest runs nowhere", |report| millis(report.downtime_ms)),
    ("Resume time: until nothing depends on the source", |report| millis(report.resume_ms)),
    ("Total migration time", |report| millis(report.total_ms)),
    ("Guest stopped outside downtime", |report| millis(report.stall_ms?)),
    ("Longest gap the guest saw", |report| millis(report.guest_gap_ms?)),
    ("Pages transferred", |report| Some(Unit::Pages.show(report.pages_transferred.0))),
    ("Bytes on the wire", |report| Some(Unit::Bytes.show(report.wire_bytes.0))),
    ("Channels", |report| Some(Unit::Pages.show(report.channels?.0))),
    ("Tracker", |report| report.tracker.clone()),
    ("Guest is held by", |report| report.guest_owner.clone()),
    ("Guest check", |report| report.guest_check.clone()),
    ("Throttled: least share of time to run", |report| Some(share(report.throttle?.lowest_share?.0, 1.0))),
    ("Throttled: for", |report| millis(report.throttle?.time_ms?)),
    ("Post-copy: pages", |report| Some(Unit::Pages.show(report.post_copy.as_ref()?.pages?.0))),
    ("Post-copy: faults", |report| Some(Unit::Pages.show(report.post_copy.as_ref()?.faults?.0))),
    ("Post-copy: pages pushed", |report| Some(Unit::Pages.show(report.post_copy.as_ref()?.bulk_pages?.0))),
    ("Post-copy: pages sent at once for a fault", |report| Some(Unit::Pages.show(report.post_copy.as_ref()?.urgent_pages?.0))),
    ("Post-copy: pages asked for", |report| Some(Unit::Pages.show(report.post_copy.as_ref()?.requests?.0))),
    ("Post-copy: fault, median", |report| micros(report.post_copy.as_ref()?.fault_us?.p50?)),
    ("Post-copy: fault, 90th percentile", |report| micros(report.post_copy.as_ref()?.fault_us?.p90?)),
    ("Post-copy: fault, 99th percentile", |report| micros(report.post_copy.as_ref()?.fault_us?.p99?)),
    ("Post-copy: fault, longest", |report| micros(report.post_copy.as_ref()?.fault_us?.max?)),
    ("Post-copy: the guest's threads waited", |report| millis(report.post_copy.as_ref()?.lost_ms?)),
    ("Post-copy: connections made again", |report| Some(Unit::Pages.show(report.post_copy.as_ref()?.recoveries?.0))),
    ("Post-copy: without a connection", |report| millis(report.post_copy.as_ref()?.interrupted_ms?)),
];

#[expect(clippy::unnecessary_wraps, reason = "a table of facts wants options")]
fn millis(figure: Figure) -> Option<String> {
    Some(Unit::Millis.show(figure.0))
}

#[expect(clippy::unnecessary_wraps, reason = "a table of facts wants options")]
fn micros(figure: Figure) -> Option<String> {
    Some(post_copy::micros(figure.0))
}
