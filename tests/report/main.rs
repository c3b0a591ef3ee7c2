//! Pages made of reports and benches: well-formed, complete, self-contained, and the same whatever the JSON says.

mod structure;
mod tree;

use pageferry::report;

/// The sender's report of a migration, of five rounds, with some fields invented.
const SENDER: &str = include_str!("fixtures/sender.json");
/// The receiver's report of the same migration.
const RECEIVER: &str = include_str!("fixtures/receiver.json");
/// Both ends of a post-copy migration whose connection broke once; the figures are invented.
const FOLLOWED: [&str; 2] = [include_str!("fixtures/post-copy-sender.json"), include_str!("fixtures/post-copy-receiver.json")];
/// A bench of two scenarios; every figure in it is invented.
const BENCH: &str = include_str!("fixtures/bench.json");

/// The page of these files.
fn page(files: &[&str]) -> String {
    let read = |file: &&str| report::read("file.json", file.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    report::page(&files.iter().flat_map(read).collect::<Vec<_>>())
}
