//! The rounds of a migration along its time, with bandwidth and dirty rate.
//!
//! A report holds durations, not moments: pre-copy rounds are drawn end to end from the start, the last round from the
//! pause, post-copy from the resume. The moments between rounds (harvest, decision) are therefore found before the pause.

use super::axis::Axis;
use super::markup::{Element, element};
use super::plot::{self, Across, Picture};
use super::quantity::Unit;
use super::read::{Migration, Round};

/// A round with its place in time.
struct Placed<'a> {
    round: &'a Round,
    from: f64,
    to: f64,
    /// Pages a second that the guest dirtied.
    dirty_rate: Option<f64>,
}

/// Steps of one figure.
struct Steps<'a> {
    class: &'static str,
    figure: &'a dyn Fn(&Placed<'_>) -> Option<f64>,
}

/// What a reader of the picture has to know.
pub(super) const NOTE: &str = "Dirtied are the distinct pages found dirty after a round, without those it left over, by its time. Reports hold durations, not moments: rounds are \
    drawn end to end, the last one from the pause, or, in post-copy, from the moment the guest runs at the destination.";

/// The picture; `None` when there were no rounds.
pub(super) fn timeline(id: String, report: &Migration) -> Option<Element> {
    let placed = place(report);
    let end = placed.iter().map(|round| round.to).fold(report.total_ms.0, f64::max);
    if placed.is_empty() || end <= 0.0 {
        return None;
    }
    let time = Axis::from_zero(end);
    let mut shapes = downtime(report, &time);
    shapes.extend(plot::across(&time, Unit::Millis, 6, STRIP, BOTTOM));
    shapes.extend(strip(&placed, &time));
    let bandwidth = Steps { class: "bandwidth", figure: &|placed| placed.round.bandwidth() };
    shapes.extend(panel(FIRST, "Bandwidth on the wire", Unit::BitsPerSec, &placed, &time, &[("", bandwidth)]));
    let sent = Steps { class: "sent", figure: &|placed| placed.round.send_rate() };
    let dirtied = Steps { class: "dirtied", figure: &|placed| placed.dirty_rate };
    shapes.extend(panel(SECOND, "Rates", Unit::PagesPerSec, &placed, &time, &[("sent", sent), ("dirtied", dirtied)]));
    let description = format!(
        "{} rounds along {}; bandwidth and the rates of pages sent and dirtied as steps. The table of rounds holds the same figures.",
        placed.len(),
        Unit::Millis.show(end),
    );
    Some(Picture { id, title: "Rounds along time".to_owned(), description, height: BOTTOM + 20.0, class: "plot gutter" }.draw(shapes))
}

fn place<'a>(report: &'a Migration) -> Vec<Placed<'a>> {
    let pause = report.preparation_ms.0;
    let resume = pause + report.downtime_ms.0;
    let mut now = 0.0_f64;
    let place = |(round, dirty_rate): (&'a Round, Option<f64>)| {
        let earliest = match kind(round) {
            "pre-copy" => 0.0,
            "post-copy" => resume,
            _ => pause,
        };
        let from = now.max(earliest);
        now = from + round.duration_ms.0;
        Placed { round, from, to: now, dirty_rate }
    };
    report.rounds.iter().zip(report.dirty_rates()).map(place).collect()
}

/// The time in which the guest runs nowhere, behind everything.
fn downtime(report: &Migration, time: &Axis) -> Vec<Element> {
    if report.downtime_ms.0 <= 0.0 {
        return Vec::new();
    }
    let pause = report.preparation_ms.0;
    let [from, to] = [pause, pause + report.downtime_ms.0].map(|at| time.position(at));
    let text = format!("downtime {}", Unit::Millis.show(report.downtime_ms.0));
    let text = if to > 0.5 { plot::label_before(Across(to), 10.0, &text) } else { plot::label(Across(from), 10.0, &text) };
    vec![
        plot::block(from, to, 16.0, BOTTOM - 16.0, "").class("downtime"),
        plot::upright(from, 16.0, BOTTOM).class("pause"),
        text.class("downtime-label"),
    ]
}

/// A block a round with its number in it, and the decision after it below.
fn strip(placed: &[Placed<'_>], time: &Axis) -> Vec<Element> {
    let mut shapes = vec![plot::label_before("-8", STRIP + 15.0, "round").class("tick"), plot::label_before("-8", DECISIONS, "then").class("tick")];
    for Placed { round, from, to, .. } in placed {
        let [start, end] = [*from, *to].map(|at| time.position(at));
        let mut says =
            format!("round {}, {}: {} pages in {}", round.index, round.kind, Unit::Pages.show(round.pages.0), Unit::Millis.show(to - from));
        if let Some(decision) = &round.decision {
            says = format!("{says}; then {decision}");
        }
        shapes.push(plot::block(start, end, STRIP, 22.0, &says).class(format_args!("piece {}", kind(round))));
        // What follows the guest is no round like the others.
        let followed = (kind(round) == "post-copy").then(|| "post-copy".to_owned()).filter(|name| plot::fitting(name, end - start).is_some());
        let number = followed.unwrap_or_else(|| round.index.to_string());
        let fits = plot::fitting(&number, end - start);
        shapes.extend(
            fits.map(|fits| plot::label_around(Across(f64::midpoint(start, end)), STRIP + 15.0, number).class(format_args!("number {fits}"))),
        );
    }
    shapes.extend(decisions(placed, time));
    shapes
}

/// The decision that ended pre-copy, always; those before it where they fit.
fn decisions(placed: &[Placed<'_>], time: &Axis) -> Vec<Element> {
    let mut decided = placed.iter().filter_map(|placed| Some((placed, placed.round.decision.as_deref()?)));
    let Some((last, decision)) = decided.next_back() else { return Vec::new() };
    let at = time.position(last.to);
    let text = super::quantity::shortened(decision, 34);
    let mut shapes = vec![
        if at > 0.5 { plot::label_before(Across(at), DECISIONS + 15.0, text) } else { plot::label(Across(at), DECISIONS + 15.0, text) }
            .class("decision"),
    ];
    for (placed, decision) in decided {
        let [start, end] = [placed.from, placed.to].map(|at| time.position(at));
        shapes.extend(
            plot::fitting(decision, end - start)
                .map(|fits| plot::label_before(Across(end), DECISIONS, decision).class(format_args!("decision {fits}"))),
        );
    }
    shapes
}

/// The class of a kind of round.
fn kind(round: &Round) -> &'static str {
    match round.kind.as_str() {
        "pre-copy" => "pre-copy",
        "post-copy" => "post-copy",
        _ => "stop-and-copy",
    }
}

/// Figures over the same time, each as steps.
fn panel(top: f64, title: &str, unit: Unit, placed: &[Placed<'_>], time: &Axis, lines: &[(&str, Steps<'_>)]) -> Vec<Element> {
    let figures: Vec<f64> = lines.iter().flat_map(|(_, steps)| placed.iter().filter_map(|placed| (steps.figure)(placed))).collect();
    let axis = Axis::for_lines(&figures);
    let low = top + HEADING + PANEL;
    let scale = if axis.is_logarithmic() { ", log" } else { "" };
    let heading =
        element("text").with("x", -GUTTER).with("y", top + 8.0).class("heading").text(format_args!("{title}, {}{scale}", axis.unit_name(unit)));
    let keys = lines.iter().filter(|(name, _)| !name.is_empty()).flat_map(|(name, steps)| {
        [element("tspan").with("dx", 10).class(format_args!("key {}", steps.class)).text("■"), element("tspan").with("dx", 3).text(name)]
    });
    let mut shapes = vec![heading.children(keys)];
    for tick in axis.ticks(unit, 3) {
        let y = low - tick.at * PANEL;
        shapes.push(plot::level(0.0, 1.0, y).class("grid"));
        shapes.push(plot::label_before("-8", y + 4.0, tick.label).class("tick"));
    }
    shapes.push(plot::level(0.0, 1.0, low).class("base"));
    for (_, steps) in lines {
        let mut before: Option<(f64, f64)> = None;
        for placed in placed {
            let Some(figure) = (steps.figure)(placed).filter(|figure| axis.holds(*figure)) else {
                before = None;
                continue;
            };
            let y = ((low - axis.position(figure) * PANEL) * 100.0).round() / 100.0;
            let [start, end] = [placed.from, placed.to].map(|at| time.position(at));
            shapes.extend(
                before
                    .filter(|(_, until)| start - until < TOUCHING)
                    .map(|(earlier, _)| plot::upright(start, earlier, y).class(format_args!("step {}", steps.class))),
            );
            let says = format!("round {}: {}", placed.round.index, unit.show(figure));
            shapes.push(plot::level(start, end, y).class(format_args!("step {}", steps.class)).child(element("title").text(says)));
            before = Some((y, end));
        }
    }
    shapes
}

/// Pixels from the top: the rounds, the decisions, the panels, the axis of time.
const STRIP: f64 = 22.0;
const DECISIONS: f64 = 60.0;
const FIRST: f64 = 96.0;
const SECOND: f64 = 220.0;
const BOTTOM: f64 = SECOND + HEADING + PANEL;
/// Height of a panel's heading, and of the panel below it.
const HEADING: f64 = 18.0;
const PANEL: f64 = 84.0;
/// Left of a picture, for labels; the style leaves as much.
const GUTTER: f64 = 60.0;
/// Steps closer than this (a share of the width) are joined.
const TOUCHING: f64 = 0.01;
