//! A tree of elements that prints as HTML and as XML.
//!
//! Names of elements and attributes are fixed in the program; text and values of attributes can be anything, and are
//! escaped in the one place where they are printed. There is no way to put in markup as text.

use std::fmt::{self, Display, Write};

/// An element with its attributes and children.
#[derive(Clone, Debug)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Element(Element),
    Text(String),
}

/// An empty element.
pub(super) fn element(name: &'static str) -> Element {
    Element { name, attributes: Vec::new(), children: Vec::new() }
}

impl Element {
    /// Sets an attribute, once.
    pub(super) fn with(mut self, name: &'static str, value: impl Display) -> Self {
        debug_assert!(self.attributes.iter().all(|(set, _)| *set != name), "{name} is set already");
        self.attributes.push((name, value.to_string()));
        self
    }

    /// Sets the classes.
    pub(super) fn class(self, classes: impl Display) -> Self {
        self.with("class", classes)
    }

    /// Adds text.
    pub(super) fn text(mut self, text: impl Display) -> Self {
        self.children.push(Node::Text(text.to_string()));
        self
    }

    /// Adds a child.
    pub(super) fn child(mut self, child: Element) -> Self {
        self.children.push(Node::Element(child));
        self
    }

    /// Adds children.
    pub(super) fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children.into_iter().map(Node::Element));
        self
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}=\"")?;
            escape(value, f)?;
            f.write_char('"')?;
        }
        if VOID.contains(&self.name) {
            return f.write_str(" />");
        }
        f.write_char('>')?;
        for child in &self.children {
            match child {
                Node::Element(child) => child.fmt(f)?,
                Node::Text(text) => escape(text, f)?,
            }
        }
        write!(f, "</{}>", self.name)?;
        if BLOCKS.contains(&self.name) { f.write_char('\n') } else { Ok(()) }
    }
}

/// Prints text so that it stays text, in content and in quoted attributes.
///
/// Characters that XML cannot hold, and those that turn the direction of what follows, become U+FFFD.
fn escape(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for character in text.chars() {
        match character {
            '&' => f.write_str("&amp;")?,
            '<' => f.write_str("&lt;")?,
            '>' => f.write_str("&gt;")?,
            '"' => f.write_str("&quot;")?,
            '\'' => f.write_str("&#39;")?,
            '\t' | '\n' => f.write_char(character)?,
            '\u{fffe}' | '\u{ffff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_char('\u{fffd}')?,
            _ if character.is_control() => f.write_char('\u{fffd}')?,
            _ => f.write_char(character)?,
        }
    }
    Ok(())
}

/// Elements of HTML that have no end tag.
const VOID: [&str; 2] = ["meta", "br"];
/// Elements after which a line ends, for those who read the source.
const BLOCKS: [&str; 14] = ["head", "title", "style", "header", "section", "h1", "h2", "h3", "figure", "table", "tr", "svg", "p", "nav"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_stay_what_they_are() {
        let hostile = "\"><script>alert('1')</script>&amp;";
        let printed = element("em").with("title", hostile).text(hostile).to_string();
        let escaped = "&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;";
        assert_eq!(printed, format!("<em title=\"{escaped}\">{escaped}</em>"));
    }

    #[test]
    fn what_xml_cannot_hold_is_replaced() {
        let printed = element("em").text("a\0b\u{8}c\u{7f}d\u{ffff}e\u{202e}f\r\tg\nä").to_string();
        assert_eq!(printed, "<em>a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e\u{fffd}f\u{fffd}\tg\nä</em>");
    }

    #[test]
    fn only_void_elements_have_no_end_tag() {
        assert_eq!(element("meta").with("charset", "utf-8").to_string(), "<meta charset=\"utf-8\" />");
        assert_eq!(element("td").to_string(), "<td></td>");
        assert_eq!(element("td").child(element("b").text(1)).text(2).to_string(), "<td><b>1</b>2</td>");
    }
}
