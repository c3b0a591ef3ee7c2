//! A whole and its parts: one bar and the table of its pieces.

use super::axis::Axis;
use super::markup::Element;
use super::plot::{self, Across, Picture};
use super::quantity::{Unit, share, shortened};
use super::table::{self, Cell, Table};

/// A bar made of parts.
pub(super) struct Stack<'a> {
    pub(super) id: String,
    pub(super) title: &'a str,
    pub(super) unit: Unit,
    /// Names and figures, in order.
    pub(super) parts: &'a [(String, f64)],
    /// What the parts should add up to, and what the rest of it is called.
    pub(super) whole: Option<(f64, &'a str)>,
}

impl Stack<'_> {
    /// The picture and its table.
    pub(super) fn draw(self) -> [Element; 2] {
        let sum: f64 = self.parts.iter().map(|(_, figure)| figure).sum();
        let mut pieces: Vec<(&str, String, f64)> =
            self.parts.iter().enumerate().map(|(index, (name, figure))| (name.as_str(), colour(name, index), *figure)).collect();
        if let Some((whole, rest)) = self.whole
            && whole - sum > whole * SLACK
        {
            pieces.push((rest, REST.to_owned(), whole - sum));
        }
        let length = self.whole.map_or(sum, |(whole, _)| whole.max(sum));
        let axis = Axis::from_zero(length);
        let mut shapes = plot::across(&axis, self.unit, 5, 18.0, 56.0);
        let mut from = 0.0;
        for (name, class, figure) in &pieces {
            let [start, end] = [from, from + figure].map(|at| axis.position(at));
            from += figure;
            if *figure > 0.0 {
                let says = format!("{name}: {} ({})", self.unit.show(*figure), share(*figure, length));
                shapes.push(plot::block(start, end, 22.0, 30.0, &says).class(format_args!("piece {class}")));
                let name = shortened(name, 24);
                let fits = plot::fits_everywhere(&name, end - start);
                shapes.extend(fits.then(|| plot::label(Across(start), 12.0, name)));
            }
        }
        let mut table = Table::new(self.title, &[table::words("Part"), table::figures(heading(self.unit)), table::figures("Share")]);
        for (name, class, figure) in &pieces {
            table.row_of([Cell::with_swatch(class, *name), self.unit.show(*figure).into(), share(*figure, length).into()]);
        }
        let description = format!("One bar of {}, made of {} parts; the table below lists them.", self.unit.show(length), pieces.len());
        [Picture { id: self.id, title: self.title.to_owned(), description, height: 76.0, class: "plot" }.draw(shapes), table.without_caption().draw()]
    }
}

/// What a column of figures is called.
fn heading(unit: Unit) -> &'static str {
    match unit {
        Unit::Millis => "Time",
        Unit::Pages => "Pages",
        _ => "Figure",
    }
}

/// The colour of a part: encodings always have theirs, other parts take turns.
fn colour(name: &str, index: usize) -> String {
    const ENCODINGS: [&str; COLOURS] = ["zero", "uniform", "unchanged", "delta", "lz4", "zstd", "raw", "columns"];
    let turn = ENCODINGS.iter().position(|encoding| *encoding == name).unwrap_or(index) % COLOURS;
    format!("colour-{}", turn + 1)
}

/// Colours that the style defines.
const COLOURS: usize = 8;
/// The class of what is in no part.
const REST: &str = "rest";
/// The share of the whole that rounding may cost.
const SLACK: f64 = 1e-3;
