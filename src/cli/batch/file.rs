//! The file of `--batch`: guests, an order, and how many at a time.
//!
//! ```text
//! # what follows a # is a comment
//! concurrency 8
//! kvm:memory=1GiB,rate=5000      name=database priority=10
//! workload:memory=32MiB
//! ```
//! A line for each guest, its description first. Those of a higher priority are started first (it is 0 where nothing is
//! said), those of the same one in the order of the file. The whole file is read before anything starts, and its errors
//! name the line.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use crate::guests::{GuestSpec, SpecError};

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Migrations under way at a time.
    pub concurrency: NonZeroUsize,
    /// In the order in which they are to be started.
    pub guests: Vec<BatchGuest>,
}

/// One guest of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchGuest {
    /// Its own among them, in messages and reports.
    pub name: String,
    /// Higher ones are started first.
    pub priority: i32,
    /// The guest.
    pub spec: GuestSpec,
}

/// Why a text is no batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It is not read to the end.
    #[error("more than {MAX_BYTES} bytes")]
    Size,
    /// Nothing to do.
    #[error("no guest in it: a line for each is expected, such as workload:memory=32MiB")]
    Empty,
    /// Something about one line.
    #[error("line {line}: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What.
        problem: LineError,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than any guest's description.
    #[error("longer than {MAX_LINE} bytes")]
    Length,
    /// Guests beyond the limit.
    #[error("more than {MAX_GUESTS} guests")]
    Guests,
    /// The description.
    #[error("{0}")]
    Spec(#[from] SpecError),
    /// After a guest's description.
    #[error("{0:?}: after a guest come name=NAME and priority=NUMBER")]
    Word(String),
    /// The value of one of these.
    #[error("{0:?}: the same was said before in this line")]
    Again(String),
    /// A name that makes no sense in messages.
    #[error("name={0}: 1 to {MAX_NAME} letters, digits and . _ - are accepted")]
    Name(String),
    /// A name that another guest has.
    #[error("name={0}: another guest has that name")]
    Taken(String),
    /// Not a number.
    #[error("priority={0}: a whole number is accepted, higher ones first")]
    Priority(String),
    /// How many at a time.
    #[error("concurrency {0}: expected once, with a number from 1 to {MAX_GUESTS}")]
    Concurrency(String),
}

impl Batch {
    /// Reads the text of such a file.
    ///
    /// # Errors
    /// With the line that makes no sense.
    pub fn parse(text: &str) -> Result<Self, BatchError> {
        if text.len() > MAX_BYTES {
            return Err(BatchError::Size);
        }
        let (mut concurrency, mut guests, mut names) = (None, Vec::new(), HashSet::new());
        for (line, text) in (1..).zip(text.lines()) {
            let read = read_line(text, &mut concurrency, &mut guests, &mut names);
            read.map_err(|problem| BatchError::Line { line, problem })?;
        }
        if guests.is_empty() {
            return Err(BatchError::Empty);
        }
        guests.sort_by_key(|guest| std::cmp::Reverse(guest.priority));
        let most = NonZeroUsize::new(guests.len().min(AT_A_TIME)).expect("there are some");
        Ok(Self { concurrency: concurrency.unwrap_or(most), guests })
    }
}

fn read_line(text: &str, concurrency: &mut Option<NonZeroUsize>, guests: &mut Vec<BatchGuest>, names: &mut HashSet<String>) -> Result<(), LineError> {
    if text.len() > MAX_LINE {
        return Err(LineError::Length);
    }
    let mut words = text.split('#').next().unwrap_or_default().split_whitespace();
    match words.next() {
        None => Ok(()),
        Some("concurrency") => {
            let rest = words.collect::<Vec<_>>().join(" ");
            let number = rest.parse().ok().filter(|number: &NonZeroUsize| number.get() <= MAX_GUESTS && concurrency.is_none());
            *concurrency = Some(number.ok_or(LineError::Concurrency(rest))?);
            Ok(())
        }
        Some(spec) => {
            if guests.len() >= MAX_GUESTS {
                return Err(LineError::Guests);
            }
            let guest = read_guest(spec.parse()?, words, guests.len() + 1)?;
            if !names.insert(guest.name.clone()) {
                return Err(LineError::Taken(guest.name));
            }
            guests.push(guest);
            Ok(())
        }
    }
}

fn read_guest<'t>(spec: GuestSpec, words: impl Iterator<Item = &'t str>, number: usize) -> Result<BatchGuest, LineError> {
    let (mut name, mut priority) = (None, None);
    for word in words {
        let again = match word.split_once('=') {
            Some(("name", value)) => name.replace(read_name(value)?).is_some(),
            Some(("priority", value)) => priority.replace(value.parse().map_err(|_| LineError::Priority(value.to_owned()))?).is_some(),
            _ => return Err(LineError::Word(word.to_owned())),
        };
        if again {
            return Err(LineError::Again(word.to_owned()));
        }
    }
    Ok(BatchGuest { name: name.unwrap_or_else(|| format!("guest-{number}")), priority: priority.unwrap_or(0), spec })
}

fn read_name(name: &str) -> Result<String, LineError> {
    let is_sound = (1..=MAX_NAME).contains(&name.len()) && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter));
    if is_sound { Ok(name.to_owned()) } else { Err(LineError::Name(name.chars().take(MAX_NAME).collect())) }
}

/// Bytes of a file at most.
pub(super) const MAX_BYTES: usize = 4 << 20;
const MAX_LINE: usize = 4096;
const MAX_NAME: usize = 64;
/// Guests in a file at most.
const MAX_GUESTS: usize = 10_000;
/// Migrations at a time, where the file does not say: as many as a receiver surely has connections for.
const AT_A_TIME: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        Batch::parse(text).unwrap().guests.into_iter().map(|guest| guest.name).collect()
    }

    #[test]
    fn a_file_has_guests_comments_and_how_many_at_a_time() {
        let text = "# all of rack 7\n\nconcurrency 8\nworkload:memory=32MiB,seed=4 # the small one\n  kvm:memory=1GiB name=data.base-1 priority=-3\n";
        let batch = Batch::parse(text).unwrap();
        assert_eq!(batch.concurrency.get(), 8);
        let expected = [("guest-1", 0, "workload:memory=32MiB,seed=4"), ("data.base-1", -3, "kvm:memory=1GiB")]
            .map(|(name, priority, spec)| BatchGuest { name: name.to_owned(), priority, spec: spec.parse().unwrap() });
        assert_eq!(batch.guests, expected);
    }

    #[test]
    fn priorities_come_before_the_order_of_the_file() {
        let text = "workload: name=a\nworkload: name=b priority=5\nworkload: priority=9\nworkload: name=d priority=5\nworkload: name=e priority=-1";
        assert_eq!(names(text), ["guest-3", "b", "d", "a", "e"]);
    }

    #[test]
    fn where_nothing_is_said_all_go_together_up_to_a_limit() {
        assert_eq!(Batch::parse("workload:\nworkload:").unwrap().concurrency.get(), 2);
        assert_eq!(Batch::parse(&"workload:\n".repeat(300)).unwrap().concurrency.get(), AT_A_TIME);
    }

    #[test]
    fn errors_name_the_line_what_it_says_and_what_is_accepted() {
        for (text, expected) in [
            ("workload:\ndisk:memory=1GiB", "line 2: there is no guest kind \"disk\": workload and kvm are accepted"),
            ("\n\nworkload:memory=32", "line 3: guest key memory=32: "),
            ("concurrency 0\nworkload:", "line 1: concurrency 0: expected once, with a number from 1 to 10000"),
            ("concurrency\nworkload:", "line 1: concurrency : expected once"),
            ("concurrency 1\nconcurrency 2\nworkload:", "line 2: concurrency 2: expected once"),
            ("workload: memory=1GiB", "line 1: \"memory=1GiB\": after a guest come name=NAME and priority=NUMBER"),
            ("workload: priority=high", "line 1: priority=high: a whole number is accepted"),
            ("workload: priority=1 priority=2", "line 1: \"priority=2\": the same was said before"),
            ("workload: name=a/b", "line 1: name=a/b: 1 to 64 letters, digits and . _ - are accepted"),
            ("workload: name=a\nworkload: name=a", "line 2: name=a: another guest has that name"),
            ("workload: name=guest-2\nworkload:", "line 2: name=guest-2: another guest has that name"),
            ("# nothing\n", "no guest in it"),
            ("", "no guest in it"),
        ] {
            let error = Batch::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_is_read_is_bounded() {
        assert_eq!(Batch::parse(&" ".repeat(MAX_BYTES + 1)), Err(BatchError::Size));
        assert_eq!(Batch::parse(&"#".repeat(MAX_LINE + 1)), Err(BatchError::Line { line: 1, problem: LineError::Length }));
        let many = Batch::parse(&"workload:\n".repeat(MAX_GUESTS + 1));
        assert_eq!(many, Err(BatchError::Line { line: MAX_GUESTS + 1, problem: LineError::Guests }));
    }
}
