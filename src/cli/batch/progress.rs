//! What a person sees of a batch: one live line on a terminal, and a line for each guest as it ends.

use std::collections::HashSet;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

use super::{SHOW_EVERY, name};
use crate::source::{Event, Phase};
use crate::stats::{GuestOwner, Outcome, Report};
use crate::units::{ByteCount, HumanTime};

/// Shows a batch on stderr.
pub(super) struct Progress {
    /// On a terminal; lines go above it.
    bar: Option<ProgressBar>,
    counts: Mutex<Counts>,
    stranded: Mutex<HashSet<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    guests: usize,
    under_way: usize,
    /// Of those under way.
    standing: usize,
    /// Not under way, and their memory is here.
    stranded: usize,
    moved: usize,
    not_moved: usize,
    /// Of those that have ended.
    bytes: ByteCount,
}

impl Progress {
    /// For so many guests, on the stderr that this program has.
    pub(super) fn new(guests: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}").expect("a valid template");
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(SHOW_EVERY);
            bar
        });
        Self { bar, counts: Mutex::new(Counts { guests, ..Counts::default() }), stranded: Mutex::default() }
    }

    /// One more is under way.
    pub(super) fn started(&self) {
        self.counts().under_way += 1;
        self.show();
    }

    /// What happens to one.
    pub(super) fn note(&self, guest: &str, event: &Event) {
        match event {
            Event::Phase(Phase::StopAndCopy) => {
                self.counts().standing += 1;
                self.show();
            }
            Event::Phase(phase @ (Phase::PostCopy | Phase::Resolving)) => self.line(&format!("{guest}: {phase}")),
            Event::Interrupted { pages_left, error } => {
                self.line(&format!("{guest}: the connection broke with {pages_left} left ({error}); the guest runs on at the destination"));
            }
            Event::Recovered { interrupted, pages_left } => {
                self.line(&format!("{guest}: connected again after {}, {pages_left} left", HumanTime(*interrupted)));
            }
            _ => {}
        }
    }

    /// One has gone ahead of its memory, and its destination is away.
    pub(super) fn stranded(&self, guest: &str, why: &str) {
        self.strandeds().insert(guest.to_owned());
        {
            let mut counts = self.counts();
            counts.under_way -= 1;
            counts.standing = counts.standing.min(counts.under_way);
            counts.stranded += 1;
        }
        self.line(&format!("{guest}: STRANDED: {why}; its memory is kept and the receiver tried again"));
        self.still_stranded();
        self.show();
    }

    /// One has come to its end.
    pub(super) fn ended(&self, guest: &str, report: &Report) {
        let was_stranded = self.strandeds().remove(guest);
        {
            let mut counts = self.counts();
            *(if was_stranded { &mut counts.stranded } else { &mut counts.under_way }) -= 1;
            counts.standing = counts.standing.min(counts.under_way);
            counts.bytes += report.wire_bytes;
            match report.outcome {
                Outcome::Completed => counts.moved += 1,
                _ => counts.not_moved += 1,
            }
        }
        self.line(&format!("{guest}: {}", in_words(report)));
        self.still_stranded();
        self.show();
    }

    /// Says what the batch waits for, when nothing else is left.
    fn still_stranded(&self) {
        if let Some(text) = last_ones(*self.counts()) {
            self.line(&text);
        }
    }

    /// Takes the live line away.
    pub(super) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    fn show(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message(live(*self.counts()));
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics while holding the lock.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strandeds(&self) -> MutexGuard<'_, HashSet<String>> {
        self.stranded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn waiting(&self) -> usize {
        self.guests - self.under_way - self.stranded - self.moved - self.not_moved
    }
}

/// When only stranded guests are left.
fn last_ones(counts: Counts) -> Option<String> {
    let Counts { guests, stranded, moved, .. } = counts;
    let only_they = stranded > 0 && counts.under_way + counts.waiting() == 0;
    only_they.then(|| {
        format!("{moved} of {guests} guests moved, {stranded} STRANDED: what they lack is kept until the receiver is back, or until this is interrupted twice")
    })
}

fn live(counts: Counts) -> String {
    let Counts { guests, under_way, standing, stranded, moved, not_moved, bytes } = counts;
    let waiting = counts.waiting();
    let mut line = format!("{moved} of {guests} moved, {bytes}  {under_way} under way, {standing} of them stopped, {waiting} waiting");
    if stranded > 0 {
        line.push_str(&format!("  {stranded} STRANDED"));
    }
    if not_moved > 0 {
        line.push_str(&format!("  {not_moved} NOT MOVED"));
    }
    line
}

fn in_words(report: &Report) -> String {
    if report.outcome == Outcome::Completed {
        return format!("moved in {}, downtime {}", HumanTime(report.total), HumanTime(report.downtime));
    }
    let fate = match (report.guest_owner, report.guest_check.as_deref()) {
        (GuestOwner::InDoubt, _) => {
            "it may be running at the destination and does not run here; make sure that the destination is dead before you start it again".to_owned()
        }
        (GuestOwner::Destination, _) => "it is the destination's, without all of its memory".to_owned(),
        (GuestOwner::Source, Some(check)) => format!("it runs on here: {check}"),
        (GuestOwner::Source, None) => "it never ran".to_owned(),
    };
    format!("{}: {}; {fate}", name(report.outcome).to_uppercase(), report.reason)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_live_line_accounts_for_every_guest() {
        let counts = Counts { guests: 100, under_way: 8, standing: 2, moved: 40, bytes: ByteCount(1 << 30), ..Counts::default() };
        assert_eq!(live(counts), "40 of 100 moved, 1 GiB  8 under way, 2 of them stopped, 52 waiting");
        assert!(live(Counts { not_moved: 3, moved: 37, ..counts }).ends_with("52 waiting  3 NOT MOVED"));
        assert!(live(Counts { stranded: 2, moved: 38, ..counts }).ends_with("52 waiting  2 STRANDED"));
    }

    #[test]
    fn what_a_batch_waits_for_is_said_when_nothing_else_is_left() {
        let counts = Counts { guests: 5, stranded: 2, moved: 3, ..Counts::default() };
        assert!(last_ones(counts).is_some_and(|text| text.starts_with("3 of 5 guests moved, 2 STRANDED: ")));
        for busy in [Counts { moved: 2, ..counts }, Counts { moved: 2, under_way: 1, ..counts }, Counts { stranded: 0, moved: 5, ..counts }] {
            assert_eq!(last_ones(busy), None);
        }
    }

    #[test]
    fn the_line_of_a_guest_says_where_it_is() {
        let moved = Report { outcome: Outcome::Completed, total: Duration::from_secs(2), downtime: Duration::from_millis(5), ..Report::new() };
        assert_eq!(in_words(&moved), "moved in 2.000 s, downtime 5.0 ms");
        let stayed = Report { outcome: Outcome::Refused, reason: "too large".into(), guest_check: Some("ok".into()), ..Report::new() };
        assert_eq!(in_words(&stayed), "REFUSED: too large; it runs on here: ok");
        let doubtful = Report { outcome: Outcome::InDoubt, guest_owner: GuestOwner::InDoubt, reason: "no answer".into(), ..Report::new() };
        assert!(in_words(&doubtful).starts_with("IN DOUBT: no answer; it may be running at the destination"));
    }
}
