//! Bars to compare: a line of text over each, names on the left, figures on the right, all from zero.

use super::axis::Axis;
use super::markup::{Element, element};
use super::plot::{self, Across, Picture};
use super::quantity::{Unit, shortened};

/// Bars of one figure.
pub(super) struct Bars<'a> {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) unit: Unit,
    pub(super) bars: Vec<Bar>,
    /// Figures that are not anyone's: what they are called, where they lie, their class.
    pub(super) lines: Vec<(&'a str, f64, &'static str)>,
}

/// One bar.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) length: Length,
    /// Single runs around it.
    pub(super) runs: Vec<f64>,
}

/// How long a bar is.
pub(super) enum Length {
    /// As long as these together, each in its class.
    Of(Vec<(&'static str, f64)>),
    /// There is no figure, and why.
    Unknown(String),
}

impl Length {
    fn figure(&self) -> Option<f64> {
        match self {
            Self::Of(pieces) => Some(pieces.iter().map(|(_, figure)| figure).sum()),
            Self::Unknown(_) => None,
        }
    }
}

impl Bars<'_> {
    pub(super) fn draw(self) -> Element {
        let figures = self.bars.iter().flat_map(|bar| bar.length.figure().into_iter().chain(bar.runs.iter().copied()));
        let longest = figures.chain(self.lines.iter().map(|line| line.1)).fold(0.0, f64::max);
        // Room for the dots of the longest.
        let axis = Axis::from_zero(longest * 1.02);
        let top = if self.lines.is_empty() { 0.0 } else { LINE_LABELS };
        let bottom = top + self.bars.len() as f64 * PITCH;
        let mut shapes = plot::across(&axis, self.unit, 4, top, bottom);
        let mut texts = Vec::new();
        for (bar, row) in self.bars.iter().zip(0_u32..) {
            self.bar(bar, top + f64::from(row) * PITCH, &axis, &mut shapes, &mut texts);
        }
        self.lines(&axis, top, bottom, &mut shapes, &mut texts);
        shapes.append(&mut texts);
        let description = self.description();
        Picture { id: self.id, title: self.title, description, height: bottom + 20.0, class: "plot" }.draw(shapes)
    }

    fn bar(&self, bar: &Bar, y: f64, axis: &Axis, shapes: &mut Vec<Element>, texts: &mut Vec<Element>) {
        let name = shortened(&bar.name, LONGEST_NAME);
        texts.push(plot::label("0", y + 15.0, name).class("name"));
        match &bar.length {
            Length::Unknown(why) => texts.push(plot::label_before("100%", y + 15.0, shortened(why, LONGEST_NAME)).class("missing")),
            Length::Of(pieces) => {
                let figure = self.unit.show(bar.length.figure().unwrap_or_default());
                let says = format!("{}: {figure}", bar.name);
                texts.push(plot::label_before("100%", y + 15.0, &figure).class("value"));
                let mut from = 0.0;
                for (class, piece) in pieces {
                    let [start, end] = [from, from + piece].map(|at| axis.position(at));
                    shapes.push(plot::block(start, end, y + 20.0, 10.0, &says).class(format_args!("piece {class}")));
                    from += piece;
                }
            }
        }
        if bar.runs.len() > 1 {
            shapes.extend(bar.runs.iter().map(|run| {
                let dot = element("circle").with("cx", Across(axis.position(*run))).with("cy", y + 25.0).with("r", 3).class("run");
                dot.child(element("title").text(format_args!("{}, one run: {}", bar.name, self.unit.show(*run))))
            }));
        }
    }

    /// The lines, with their labels above the bars, in turns where there are several.
    fn lines(&self, axis: &Axis, top: f64, bottom: f64, shapes: &mut Vec<Element>, texts: &mut Vec<Element>) {
        for ((name, figure, class), row) in self.lines.iter().zip(0_u32..) {
            let at = axis.position(*figure);
            let text = format!("{name} {}", self.unit.show(*figure));
            let y = top - 20.0 + f64::from(row % 2) * 14.0;
            shapes.push(plot::upright(at, y + 3.0, bottom).class(format_args!("mark {class}")));
            let text = if at > 0.5 { plot::label_before(Across(at), y, text) } else { plot::label(Across(at), y, text) };
            texts.push(text.class(format_args!("mark-label {class}")));
        }
    }

    fn description(&self) -> String {
        let bars = self.bars.iter().map(|bar| match (&bar.length, bar.length.figure()) {
            (Length::Unknown(why), _) => format!("{}: {why}", bar.name),
            (Length::Of(_), figure) => format!("{}: {}", bar.name, self.unit.show(figure.unwrap_or_default())),
        });
        let lines = self.lines.iter().map(|(name, figure, _)| format!("{name}: {}", self.unit.show(*figure)));
        format!("Bars from zero. {}.", bars.chain(lines).collect::<Vec<_>>().join("; "))
    }
}

/// From bar to bar.
const PITCH: f64 = 38.0;
/// Height of the labels of two lines.
const LINE_LABELS: f64 = 32.0;
/// Characters of a name that a narrow screen has room for beside a figure.
const LONGEST_NAME: usize = 26;
