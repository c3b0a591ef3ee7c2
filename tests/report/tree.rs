//! Pages as a reader's program sees them: parsed, strictly.

use std::collections::BTreeSet;

use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Map, Value};

use crate::{BENCH, FOLLOWED, RECEIVER, SENDER, page};

/// Parses a page, as XML: every element is closed, every attribute quoted, every character allowed.
pub(crate) fn parse(page: &str) -> Document<'_> {
    Document::parse_with_options(page, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() }).unwrap_or_else(|error| panic!("{error}"))
}

/// The elements of a class.
pub(crate) fn of_class<'a>(document: &'a Document<'a>, class: &str) -> Vec<Node<'a, 'a>> {
    let has = |node: &Node<'_, '_>| node.attribute("class").is_some_and(|classes| classes.split(' ').any(|one| one == class));
    document.descendants().filter(has).collect()
}

fn names(document: &Document<'_>) -> Vec<String> {
    document.descendants().filter(Node::is_element).map(|node| node.tag_name().name().to_owned()).collect()
}

#[test]
fn identifiers_are_unique_and_every_reference_has_its_target() {
    let page = page(&[SENDER, RECEIVER, BENCH, SENDER, FOLLOWED[0], FOLLOWED[1]]);
    let document = parse(&page);
    let all: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
    let ids: BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(all.len(), ids.len(), "{all:?}");
    for node in document.descendants() {
        let labels = node.attribute("aria-labelledby").unwrap_or_default().split_whitespace();
        let link = node.attribute("href").map(|link| link.strip_prefix('#').unwrap_or_else(|| panic!("{link} leaves the page")));
        for target in labels.chain(link) {
            assert!(ids.contains(target), "{target}");
        }
    }
}

#[test]
fn a_page_is_all_there_is() {
    let page = page(&[SENDER, RECEIVER, BENCH, FOLLOWED[0], FOLLOWED[1]]);
    let document = parse(&page);
    let policy = document.descendants().find(|node| node.attribute("http-equiv") == Some("Content-Security-Policy")).expect("a policy");
    assert!(policy.attribute("content").is_some_and(|content| content.starts_with("default-src 'none'")));
    for node in document.descendants().filter(Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "link", "img", "image", "use", "iframe", "object", "embed", "base", "form"].contains(&name), "{name}");
        for attribute in node.attributes() {
            assert!(!attribute.name().starts_with("on") && attribute.name() != "src" && attribute.name() != "style", "{name} {}", attribute.name());
        }
    }
}

#[test]
fn every_picture_has_a_title_and_a_description_and_tables_have_headings() {
    let page = page(&[SENDER, RECEIVER, BENCH, FOLLOWED[0], FOLLOWED[1]]);
    let document = parse(&page);
    let text =
        |node: &Node<'_, '_>, name| node.children().find(|child| child.has_tag_name(name)).and_then(|child| child.text()).unwrap_or_default().len();
    // Names are in a namespace there.
    for svg in document.descendants().filter(|node| node.tag_name().name() == "svg") {
        let space = svg.tag_name().namespace().expect("SVG has one");
        assert!(text(&svg, (space, "title")) > 3 && text(&svg, (space, "desc")) > 20, "{svg:?}");
        assert_eq!(svg.attribute("role"), Some("img"));
    }
    for table in document.descendants().filter(|node| node.tag_name().name() == "table") {
        let headings = table.descendants().filter(|node| node.attribute("scope") == Some("col")).count();
        for row in table.descendants().filter(|node| node.tag_name().name() == "tr") {
            assert_eq!(row.children().filter(Node::is_element).count(), headings, "{row:?}");
        }
    }
}

#[test]
fn colours_are_defined_for_light_and_for_dark() {
    let page = page(&[SENDER]);
    let style = page.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next()).expect("a style");
    let (light, rest) = style.split_once("@media (prefers-color-scheme: dark)").expect("a dark scheme");
    let dark = &rest[..rest.find("\n}").expect("its end")];
    let defined = |text: &str| -> BTreeSet<String> {
        let names = text.split([';', '{']).filter_map(|part| part.trim().strip_prefix("--")?.split_once(':'));
        names.map(|(name, _)| name.to_owned()).collect()
    };
    assert_eq!(defined(light), defined(dark));
    let used = style.split("var(--").skip(1).map(|part| part[..part.find(')').expect("closed")].to_owned());
    for name in used.filter(|name| name != "paint") {
        assert!(defined(light).contains(&name), "{name}");
    }
    assert!(!rest[dark.len()..].contains("#"), "colours are defined once");
}

/// Puts `text` in the place of every string and of every name of a part.
fn with_text(value: &mut Value, text: &str) {
    match value {
        Value::String(old) => text.clone_into(old),
        Value::Array(items) => items.iter_mut().for_each(|item| with_text(item, text)),
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if ["pages_by_encoding", "downtime_parts_ms", "versions"].contains(&name.as_str())
                    && let Value::Object(parts) = field
                {
                    *parts =
                        std::mem::take(parts).into_iter().zip(10..).map(|((_, part), count)| (format!("{text}{count}"), part)).collect::<Map<_, _>>();
                }
                if name != "kind" || field != "bench" {
                    with_text(field, text);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn no_text_of_a_file_becomes_markup() {
    let hostile = "\"'><script>alert(1)</script><img src=x onerror=alert(1)></title></style></svg><!--]]>&lt;&#0;\u{0}\u{8}\u{202e}\u{ffff}";
    let harmless = "x".repeat(hostile.chars().count());
    for file in [SENDER, RECEIVER, BENCH] {
        let [attacked, calm] = [hostile, &harmless].map(|text| {
            let mut value: Value = serde_json::from_str(file).expect("a fixture");
            with_text(&mut value, text);
            page(&[&value.to_string()])
        });
        let document = parse(&attacked);
        assert_eq!(names(&document), names(&parse(&calm)));
        assert!(!attacked.contains("<script") && !attacked.contains("<img") && !attacked.contains("<!--"));
        // It is there, as text.
        let shown =
            document.descendants().filter(Node::is_text).any(|node| node.text().is_some_and(|text| text.contains("<script>alert(1)</script>")));
        assert!(shown, "{file}");
    }
}

#[test]
fn the_name_of_a_file_is_text_as_well() {
    let documents = pageferry::report::read("<b>&\".json", SENDER.as_bytes()).expect("a fixture");
    let page = pageferry::report::page(&documents);
    assert!(page.contains("From &lt;b&gt;&amp;&quot;.json") && !page.contains("<b>"));
    parse(&page);
}
