//! What a person sees of a batch: one live line on a terminal, and a line for each guest as it ends.

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
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    guests: usize,
    under_way: usize,
    /// Of those under way.
    standing: usize,
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
        Self { bar, counts: Mutex::new(Counts { guests, ..Counts::default() }) }
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
            Event::Phase(Phase::Resolving) => self.line(&format!("{guest}: in doubt: asking the destination whether it runs the guest")),
            Event::Interrupted { pages_left, error } => {
                self.line(&format!("{guest}: the connection broke with {pages_left} left ({error}); the guest runs on at the destination"));
            }
            Event::Recovered { interrupted, pages_left } => {
                self.line(&format!("{guest}: connected again after {}, {pages_left} left", HumanTime(*interrupted)));
            }
            _ => {}
        }
    }

    /// One has come to its end.
    pub(super) fn ended(&self, guest: &str, report: &Report) {
        {
            let mut counts = self.counts();
            counts.under_way -= 1;
            counts.standing = counts.standing.min(counts.under_way);
            counts.bytes += report.wire_bytes;
            match report.outcome {
                Outcome::Completed => counts.moved += 1,
                _ => counts.not_moved += 1,
            }
        }
        self.line(&format!("{guest}: {}", in_words(report)));
        self.show();
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
}

fn live(counts: Counts) -> String {
    let Counts { guests, under_way, standing, moved, not_moved, bytes } = counts;
    let waiting = guests - under_way - moved - not_moved;
    let mut line = format!("{moved} of {guests} moved, {bytes}  {under_way} under way, {standing} of them stopped, {waiting} waiting");
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
            "it may be running at the destination and stays paused here; make sure that the destination is dead before you resume it".to_owned()
        }
        (GuestOwner::Destination, _) => "it is the destination's".to_owned(),
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
        let counts = Counts { guests: 100, under_way: 8, standing: 2, moved: 40, not_moved: 0, bytes: ByteCount(1 << 30) };
        assert_eq!(live(counts), "40 of 100 moved, 1 GiB  8 under way, 2 of them stopped, 52 waiting");
        assert!(live(Counts { not_moved: 3, moved: 37, ..counts }).ends_with("52 waiting  3 NOT MOVED"));
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
