//! Which reports are the two ends of one migration.
//!
//! A report does not name its migration. But both ends count the same pages and bytes in all, and bytes hardly ever come
//! out the same twice; where they do, order decides. After post-copy only what went before it is compared. Single rounds do not agree: with several channels, frames of a round
//! may arrive after the first of the next.

use super::read::Migration;

/// A migration as one end or both saw it.
#[derive(Clone, Debug)]
pub(super) struct Ends<'a> {
    /// Where the reports come from.
    pub(super) origins: Vec<&'a str>,
    pub(super) sender: Option<&'a Migration>,
    pub(super) receiver: Option<&'a Migration>,
}

impl<'a> Ends<'a> {
    /// A report alone.
    pub(super) fn one(origin: Option<&'a str>, report: &'a Migration) -> Self {
        let (sender, receiver) = if report.is_receivers() { (None, Some(report)) } else { (Some(report), None) };
        Self { origins: origin.into_iter().collect(), sender, receiver }
    }

    /// The end that knows more.
    pub(super) fn main(&self) -> &'a Migration {
        self.sender.or(self.receiver).expect("made from a report")
    }

    /// Takes in the report of the other end, if that is what it is.
    fn take(&mut self, origin: &'a str, report: &'a Migration) -> bool {
        let slot = if report.is_receivers() { &mut self.receiver } else { &mut self.sender };
        if slot.is_some() {
            return false;
        }
        *slot = Some(report);
        let same = matches!((self.sender, self.receiver), (Some(sender), Some(receiver)) if are_ends_of_one(sender, receiver));
        if same {
            self.origins.push(origin);
        } else if report.is_receivers() {
            self.receiver = None;
        } else {
            self.sender = None;
        }
        same
    }
}

/// Joins what belongs together, in order of first appearance.
pub(super) fn pair<'a>(reports: impl IntoIterator<Item = (&'a str, &'a Migration)>) -> Vec<Ends<'a>> {
    let mut all: Vec<Ends<'a>> = Vec::new();
    for (origin, report) in reports {
        if !all.iter_mut().any(|ends| ends.take(origin, report)) {
            all.push(Ends::one(Some(origin), report));
        }
    }
    all
}

fn are_ends_of_one(sender: &Migration, receiver: &Migration) -> bool {
    let counts = |report: &Migration| (report.wire_bytes, report.pages_transferred, report.rounds.len());
    let are_same = match (&sender.post_copy, &receiver.post_copy) {
        (None, None) => counts(sender) == counts(receiver),
        (Some(one), Some(other)) => one.pages == other.pages && before_post_copy(sender) == before_post_copy(receiver),
        _ => false,
    };
    !sender.rounds.is_empty() && are_same
}

/// Pages and bytes that were sent while the guest ran at the source. What was under way when a connection broke goes
/// twice, so the ends agree on nothing else.
fn before_post_copy(report: &Migration) -> (f64, f64) {
    let rounds = || report.rounds.iter().filter(|round| round.kind != "post-copy");
    (rounds().map(|round| round.pages.0).sum(), rounds().map(|round| round.wire_bytes.0).sum())
}
