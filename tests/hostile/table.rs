//! The table of hostile peers: what each did, what it got, and what the honest end says. Behind each row an honest guest
//! came in, or ran on.
//!
//! Where a session was opened, the texts are the parts of the reasons that were looked for and found. `TABLE.md` is what
//! comes of it; with `PAGEFERRY_WRITE_TABLE=1` this writes it, otherwise it must be up to date.

use std::fmt::Write;
use std::path::Path;

use crate::{floods, in_post_copy, limits, on_receiver, on_source};

/// A hostile peer.
pub(crate) struct Row {
    pub(crate) what: String,
    /// The last words that it heard.
    pub(crate) heard: String,
    /// At the honest end.
    pub(crate) said: String,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, heard: impl Into<String>, said: impl Into<String>) -> Self {
        Self { what: what.into(), heard: heard.into(), said: said.into() }
    }
}

/// A title, and what makes the rows.
type Section = (&'static str, fn() -> Vec<Row>);

const HEAD: &str = "# Hostile peers, and what they got

Made by the test `table` of `tests/hostile`, which fails when this is out of date; `PAGEFERRY_WRITE_TABLE=1 cargo test
--test hostile table` writes it. After every row of a source the same receiver took an honest guest in, byte for byte;
after every row of a destination the guest ran on at the source. In post-copy the rightful source came back first, was
told that nothing had arrived but what it had sent, and brought the rest (one that had never gone just brought it); then the
guest had its memory, byte for byte but for what it writes itself.
";

#[test]
fn the_table_of_hostile_peers_is_up_to_date() {
    let sections: Vec<Section> = vec![
        ("A source before there is a session", on_receiver::bad_beginnings),
        ("A source that leaves the path in a session", on_receiver::off_the_path),
        ("A source whose frames make no sense", on_receiver::nonsense),
        ("A stranger to a session", on_receiver::strangers),
        ("A source that is slow or silent", floods::slow_ones),
        ("A source that takes more than it may", limits::one_too_many),
        #[cfg(feature = "tls")]
        ("Certificates", crate::certified::bad_certificates),
        ("A source that goes on to post-copy, before Commit", in_post_copy::before_the_guest_goes),
        ("A source in post-copy, while pages are missing", in_post_copy::while_pages_are_missing),
        ("A source in post-copy that is there and no more", in_post_copy::signs_of_life_while_pages_are_missing),
        ("A stranger to a session in post-copy", in_post_copy::strangers_while_pages_are_missing),
        ("A destination", on_source::bad_destinations),
    ];
    let sections = std::thread::scope(|scope| {
        // Two at a time: the honest ends have time limits.
        let make_all = |sections: &[Section]| sections.iter().map(|(title, make)| (*title, make())).collect::<Vec<_>>();
        let running: Vec<_> = sections.chunks(6).map(|sections| scope.spawn(move || make_all(sections))).collect();
        running.into_iter().flat_map(|rows| rows.join().expect("every row holds")).collect::<Vec<_>>()
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/TABLE.md");
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let mut table = HEAD.to_owned();
    for (title, rows) in &sections {
        if rows.is_empty() {
            // It cannot be made on this host, and has said so.
            table.push_str(section(&committed, title));
            continue;
        }
        write!(table, "\n## {title}\n\n| what it did | what it heard | what the honest end says |\n|---|---|---|\n").unwrap();
        for Row { what, heard, said } in rows {
            writeln!(table, "| {} | {} | {} |", cell(what), cell(heard), cell(said)).unwrap();
        }
    }
    if cfg!(not(feature = "tls")) {
        println!("skipped: the committed table has a section on TLS, which is not built in");
        return;
    }
    if std::env::var_os("PAGEFERRY_WRITE_TABLE").is_some() {
        return std::fs::write(&path, &table).unwrap();
    }
    if let Some((old, new)) = committed.lines().zip(table.lines()).find(|(old, new)| old != new) {
        panic!("TABLE.md says\n  {old}\nbut now it is\n  {new}");
    }
    assert_eq!(committed.lines().count(), table.lines().count(), "TABLE.md has another number of rows");
}

/// The section of that title.
fn section<'t>(table: &'t str, title: &str) -> &'t str {
    let Some(start) = table.find(&format!("\n## {title}\n")) else { return "" };
    let end = table[start + 1..].find("\n## ").map_or(table.len(), |length| start + 1 + length);
    &table[start..end]
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
