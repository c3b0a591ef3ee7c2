//! What all pictures share: the frame with its title and description, grid lines, lines at a figure, labels that fit.
//!
//! Across, positions are percentages of a width that nobody knows yet; down, they are pixels. Labels for which a narrow
//! screen has no room get a class that the style hides there; the tables have everything.

use std::fmt;

use super::axis::Axis;
use super::markup::{Element, element};
use super::quantity::Unit;

/// A position along the width, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Across(pub(super) f64);

impl fmt::Display for Across {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A thousandth of a percent is a hundredth of a pixel.
        let percent = (self.0 * 1e5).round() / 1e3;
        write!(f, "{percent}%")
    }
}

/// A picture with its heading.
pub(super) struct Picture {
    /// Unique on the page.
    pub(super) id: String,
    /// Its heading.
    pub(super) title: String,
    /// What it shows, for those who do not see it.
    pub(super) description: String,
    /// In pixels.
    pub(super) height: f64,
    /// Classes of the frame.
    pub(super) class: &'static str,
}

impl Picture {
    /// The figure around `shapes`.
    pub(super) fn draw(self, shapes: Vec<Element>) -> Element {
        let Self { id, title, description, height, class } = self;
        let svg = element("svg")
            .with("xmlns", "http://www.w3.org/2000/svg")
            .with("width", "100%")
            .with("height", height)
            .with("role", "img")
            .with("aria-labelledby", format_args!("{id}-title {id}-description"))
            .child(element("title").with("id", format_args!("{id}-title")).text(&title))
            .child(element("desc").with("id", format_args!("{id}-description")).text(&description))
            .children(shapes);
        element("figure").child(element("figcaption").text(&title)).child(element("div").class(class).child(svg))
    }
}

/// Text at a point, anchored at its start.
pub(super) fn label(x: impl fmt::Display, y: f64, text: impl fmt::Display) -> Element {
    element("text").with("x", x).with("y", y).text(text)
}

/// Text whose end is at a point.
pub(super) fn label_before(x: impl fmt::Display, y: f64, text: impl fmt::Display) -> Element {
    label(x, y, text).with("text-anchor", "end")
}

/// Text around a point.
pub(super) fn label_around(x: impl fmt::Display, y: f64, text: impl fmt::Display) -> Element {
    label(x, y, text).with("text-anchor", "middle")
}

/// A rectangle from one position to another, with what it says when pointed at.
pub(super) fn block(from: f64, to: f64, y: f64, height: f64, says: &str) -> Element {
    let shape = element("rect").with("x", Across(from)).with("width", Across((to - from).max(0.0))).with("y", y).with("height", height);
    if says.is_empty() { shape } else { shape.child(element("title").text(says)) }
}

/// An upright line.
pub(super) fn upright(at: f64, top: f64, bottom: f64) -> Element {
    element("line").with("x1", Across(at)).with("x2", Across(at)).with("y1", top).with("y2", bottom)
}

/// A level line.
pub(super) fn level(from: f64, to: f64, y: f64) -> Element {
    element("line").with("x1", Across(from)).with("x2", Across(to)).with("y1", y).with("y2", y)
}

/// An axis along the width: grid lines from `top` to `bottom`, labels below, the unit at the end of them.
pub(super) fn across(axis: &Axis, unit: Unit, ticks: usize, top: f64, bottom: f64) -> Vec<Element> {
    let mut shapes = Vec::new();
    for tick in axis.ticks(unit, ticks) {
        shapes.push(upright(tick.at, top, bottom).class("grid"));
        // The unit stands at the end.
        if tick.at < 0.88 {
            // A label in the middle of the left edge would reach over it.
            let place = if tick.at < 0.02 { label } else { label_around };
            shapes.push(place(Across(tick.at), bottom + 14.0, tick.label).class("tick"));
        }
    }
    shapes.push(level(0.0, 1.0, bottom).class("base"));
    shapes.push(label_before("100%", bottom + 14.0, axis.unit_name(unit)).class("tick"));
    shapes
}

/// The class under which `text` is shown where `room` (a share of the width) is enough for it; none where it never is.
pub(super) fn fitting(text: &str, room: f64) -> Option<&'static str> {
    let needed = text.chars().count() as f64 * LETTER + 8.0;
    [(NARROW, "always"), (MIDDLE, "middle-up"), (WIDE, "wide-only")].into_iter().find(|(width, _)| room * width >= needed).map(|(_, class)| class)
}

/// Whether `text` has enough room in a picture that is narrow on every screen.
pub(super) fn fits_everywhere(text: &str, room: f64) -> bool {
    fitting(text, room) == Some("always")
}

/// Width of a letter, in pixels; a little more than the mean.
const LETTER: f64 = 7.4;
/// Widths of pictures, in pixels, that the classes of the style stand for: on a telephone, on a tablet, on a desk.
const NARROW: f64 = 280.0;
const MIDDLE: f64 = 560.0;
const WIDE: f64 = 880.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_percentages() {
        assert_eq!(Across(1.0 / 3.0).to_string(), "33.333%");
        assert_eq!(Across(0.0).to_string(), "0%");
        assert_eq!(Across(1.0).to_string(), "100%");
    }

    #[test]
    fn labels_are_shown_where_they_fit() {
        assert_eq!(fitting("0", 0.1), Some("always"));
        assert_eq!(fitting("converging", 0.2), Some("middle-up"));
        assert_eq!(fitting("converging", 0.1), Some("wide-only"));
        assert!(fits_everywhere("0", 0.1) && !fits_everywhere("converging", 0.2));
        assert_eq!(fitting("converging", 0.05), None);
    }
}
