//! The page around its parts: head, contents, a section for each migration and bench.

use super::bench;
use super::markup::{Element, element};
use super::migration;
use super::pairing::{Ends, pair};
use super::quantity::Unit;
use super::read::{Bench, Content, Document};
use super::table::{self, Cell, NONE, Table};

/// A part of the page.
struct Section<'a> {
    id: String,
    headline: String,
    origins: Vec<&'a str>,
    subject: Subject<'a>,
}

enum Subject<'a> {
    Migration(Ends<'a>),
    Bench(&'a Bench),
}

/// The whole page.
#[must_use]
pub fn page(documents: &[Document]) -> String {
    let sections = sections(documents);
    let title = match sections.as_slice() {
        [only] => only.headline.clone(),
        many => format!("{} reports", many.len()),
    };
    let mut main = element("main");
    if sections.len() > 1 {
        main = main.child(element("header").child(element("h1").text(&title)).child(contents(&sections)));
    }
    let alone = sections.len() == 1;
    let main = main.children(sections.iter().map(|section| section.draw(alone)));
    let made_by = format!("Made by pageferry report {}.", env!("CARGO_PKG_VERSION"));
    let body = element("body").child(main).child(element("footer").child(element("p").text(made_by)));
    let html = element("html").with("lang", "en").with("xmlns", "http://www.w3.org/1999/xhtml").child(head(&title)).child(body);
    format!("<!DOCTYPE html>\n{html}\n")
}

fn head(title: &str) -> Element {
    element("head").children([
        element("meta").with("charset", "utf-8"),
        // Nothing is fetched and nothing runs, whatever is on the page.
        element("meta").with("http-equiv", "Content-Security-Policy").with("content", "default-src 'none'; style-src 'unsafe-inline'"),
        element("meta").with("name", "viewport").with("content", "width=device-width, initial-scale=1"),
        element("meta").with("name", "color-scheme").with("content", "light dark"),
        element("title").text(format_args!("{title} – pageferry")),
        element("style").text(STYLE),
    ])
}

/// Benches, then migrations, each in order; both ends of a migration are one section.
fn sections(documents: &[Document]) -> Vec<Section<'_>> {
    let migrations = documents.iter().filter_map(|document| match &document.content {
        Content::Migration(report) => Some((document.origin.as_str(), report.as_ref())),
        Content::Bench(_) => None,
    });
    let benches = documents.iter().filter_map(|document| match &document.content {
        Content::Bench(bench) => Some((document.origin.as_str(), bench)),
        Content::Migration(_) => None,
    });
    let benches = benches.map(|(origin, bench)| (bench::headline(bench), vec![origin], Subject::Bench(bench)));
    let migrations = pair(migrations).into_iter().map(|ends| (migration::headline(&ends), ends.origins.clone(), Subject::Migration(ends)));
    let all = benches.chain(migrations).zip(1..);
    all.map(|((headline, origins, subject), index)| Section { id: format!("r{index}"), headline, origins, subject }).collect()
}

/// A row for each section, to find and to compare.
fn contents(sections: &[Section<'_>]) -> Element {
    let figures = ["Total time", "Downtime", "On the wire", "Rounds"].map(table::figures);
    let columns = [&[table::words("Report")], figures.as_slice()].concat();
    let mut table = Table::new("Contents", &columns);
    for section in sections {
        let link = Cell::with_link(&section.id, &section.headline, format!(" ({})", section.origins.join("; ")));
        let figures = match &section.subject {
            Subject::Bench(_) => [(); 4].map(|()| NONE.to_owned()),
            Subject::Migration(ends) => {
                let report = ends.main();
                [
                    Unit::Millis.show(report.total_ms.0),
                    Unit::Millis.show(report.downtime_ms.0),
                    Unit::Bytes.show(report.wire_bytes.0),
                    report.rounds.len().to_string(),
                ]
            }
        };
        table.row_of(std::iter::once(link).chain(figures.map(Cell::from)));
    }
    element("nav").with("aria-label", "Contents").child(table.without_caption().draw())
}

impl Section<'_> {
    fn draw(&self, alone: bool) -> Element {
        let heading = element(if alone { "h1" } else { "h2" }).text(&self.headline);
        let origin = element("p").class("origin").text(format_args!("From {}", self.origins.join(" and ")));
        let parts = match &self.subject {
            Subject::Migration(ends) => migration::body(&self.id, ends),
            Subject::Bench(bench) => bench::body(&self.id, bench),
        };
        element("section").with("id", &self.id).child(heading).child(origin).children(parts)
    }
}

/// Holds no character that would be escaped: a style is not text to HTML.
const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    #[test]
    fn the_style_reads_the_same_as_html_and_as_xml() {
        assert!(!super::STYLE.contains(['<', '>', '&', '"', '\'']), "these would be escaped");
        for outside in ["url(", "@import", "http"] {
            assert!(!super::STYLE.contains(outside), "{outside}");
        }
    }
}
