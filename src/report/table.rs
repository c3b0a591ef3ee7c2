//! Tables: the figures of the pictures as text.

use super::markup::{Element, element};

/// A table that scrolls by itself where a screen is narrower.
pub(super) struct Table {
    caption: String,
    caption_class: &'static str,
    columns: Vec<Column>,
    rows: Vec<Element>,
}

/// A column: its heading, and whether it holds figures, which are aligned to the right.
#[derive(Clone, Copy)]
pub(super) struct Column {
    pub(super) heading: &'static str,
    pub(super) figures: bool,
}

/// A column of words.
pub(super) const fn words(heading: &'static str) -> Column {
    Column { heading, figures: false }
}

/// A column of figures.
pub(super) const fn figures(heading: &'static str) -> Column {
    Column { heading, figures: true }
}

impl Table {
    pub(super) fn new(caption: impl Into<String>, columns: &[Column]) -> Self {
        Self { caption: caption.into(), caption_class: "shown", columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Leaves the caption to those who do not see the heading above the table.
    pub(super) fn without_caption(self) -> Self {
        Self { caption_class: "hidden", ..self }
    }

    /// Adds a row of texts; the first names it.
    pub(super) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.row_of(cells.into_iter().map(|cell| Cell::from(cell.into())));
    }

    /// Adds a row; the first cell names it.
    pub(super) fn row_of(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells = cells.into_iter().zip(&self.columns).enumerate().map(|(index, (cell, column))| {
            let element = if index == 0 { element("th").with("scope", "row") } else { element("td") };
            let element = if column.figures { element.class("figure") } else { element };
            element.children(cell.mark).text(cell.text)
        });
        self.rows.push(element("tr").children(cells));
    }

    pub(super) fn draw(self) -> Element {
        let headings = self.columns.iter().map(|column| {
            let heading = element("th").with("scope", "col");
            if column.figures { heading.class("figure") } else { heading }.text(column.heading)
        });
        let table = element("table")
            .class(if self.columns.len() > FEW { "dense" } else { "loose" })
            .child(element("caption").class(self.caption_class).text(&self.caption))
            .child(element("thead").child(element("tr").children(headings)))
            .child(element("tbody").children(self.rows));
        element("div").class("scroll").with("role", "region").with("tabindex", 0).with("aria-label", self.caption).child(table)
    }
}

/// Columns up to which words may wrap; wider tables scroll on narrow screens anyway.
const FEW: usize = 5;

/// What stands in a cell: text, perhaps after a mark.
pub(super) struct Cell {
    mark: Option<Element>,
    text: String,
}

impl Cell {
    /// Text after a square in the colour of `class`.
    pub(super) fn with_swatch(class: &str, text: impl Into<String>) -> Self {
        Self { mark: Some(element("span").class(format_args!("swatch {class}"))), text: text.into() }
    }

    /// A link to another place of the page, and text after it.
    pub(super) fn with_link(id: &str, link: &str, text: impl Into<String>) -> Self {
        Self { mark: Some(element("a").with("href", format_args!("#{id}")).text(link)), text: text.into() }
    }

    /// Text after a sign in the colour of `class`; the sign repeats what the text says.
    pub(super) fn with_sign(class: &str, sign: &str, text: impl Into<String>) -> Self {
        Self { mark: Some(element("span").class(format_args!("sign {class}")).with("aria-hidden", true).text(sign)), text: text.into() }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { mark: None, text }
    }
}

/// What stands where there is no figure.
pub(super) const NONE: &str = "–";
