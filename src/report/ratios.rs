//! Ratios as points on a logarithmic axis with one in its place: left of it is better.

use super::axis::Axis;
use super::markup::{Element, element};
use super::plot::{self, Across, Picture};
use super::quantity::{Unit, shortened};

/// Ratios of one figure.
pub(super) struct Ratios {
    pub(super) id: String,
    pub(super) title: &'static str,
    /// Names and ratios; none where one of the two figures is missing.
    pub(super) rows: Vec<(String, Option<f64>)>,
}

impl Ratios {
    /// The picture, on an axis that other pictures may share.
    pub(super) fn draw(self, axis: &Axis) -> Element {
        let bottom = self.rows.len() as f64 * PITCH;
        let mut shapes = plot::across(axis, Unit::Times, 4, 0.0, bottom);
        shapes.push(plot::upright(axis.position(1.0), 0.0, bottom).class("one"));
        for ((name, ratio), row) in self.rows.iter().zip(0_u32..) {
            let y = f64::from(row) * PITCH;
            shapes.push(plot::label("0", y + 14.0, shortened(name, LONGEST_NAME)).class("name"));
            let Some(ratio) = ratio else {
                shapes.push(plot::label_before("100%", y + 14.0, "no ratio").class("missing"));
                continue;
            };
            shapes.push(plot::label_before("100%", y + 14.0, Unit::Times.show(*ratio)).class("value"));
            let class = if *ratio > 1.0 { "worse" } else { "better" };
            let [one, at] = [1.0, *ratio].map(|figure| axis.position(figure));
            shapes.push(plot::level(one.min(at), one.max(at), y + 24.0).class(format_args!("stem {class}")));
            let dot = element("circle").with("cx", Across(at)).with("cy", y + 24.0).with("r", 5).class(format_args!("point {class}"));
            shapes.push(dot.child(element("title").text(format_args!("{name}: {}", Unit::Times.show(*ratio)))));
        }
        let rows =
            self.rows.iter().map(|(name, ratio)| format!("{name}: {}", ratio.map_or_else(|| "none".to_owned(), |ratio| Unit::Times.show(ratio))));
        let description = format!("Points on a logarithmic axis; below 1 is better. {}.", rows.collect::<Vec<_>>().join("; "));
        Picture { id: self.id, title: self.title.to_owned(), description, height: bottom + 20.0, class: "plot" }.draw(shapes)
    }
}

const PITCH: f64 = 38.0;
const LONGEST_NAME: usize = 28;
