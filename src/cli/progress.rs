//! What a person sees while a migration runs: a live line on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::guest::RunShare;
use crate::source::{Event, Phase};
use crate::units::{ByteCount, BytesPerSec, HumanTime, PageCount, PagesPerSec};

/// Shows events on stderr.
pub struct Progress {
    /// On a terminal; lines go above it.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// For the stderr this program has.
    #[must_use]
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}").expect("a valid template");
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    /// Shows one event.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Phase(phase) => self.phase(*phase),
            Event::Round { index, pages, bytes, duration, dirty_after, verdict } => {
                self.line(&format!("round {index}: {pages}, {bytes} in {}, {dirty_after} dirty after; {verdict}", HumanTime(*duration)));
            }
            Event::Progress { index, bytes, rate, pages_sent, pages, dirty_rate, expected_downtime, share } => {
                if let Some(bar) = &self.bar {
                    let mut line = live(*index, *bytes, *rate, *pages_sent, *pages, *dirty_rate, *expected_downtime);
                    if *share < RunShare::FULL {
                        line.push_str(&format!("  guest at {share}"));
                    }
                    bar.set_message(line);
                }
            }
            Event::Following { bytes, rate, pages, pages_left, requests, urgent_pages } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(following(*bytes, *rate, *pages, *pages_left, *requests, *urgent_pages));
                }
            }
            Event::Interrupted { pages_left, error } => {
                self.line(&format!("the connection broke with {pages_left} left ({error}); the guest runs on at the destination"));
            }
            Event::Recovering { interrupted, attempts } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("interrupted for {}, {attempts} attempts to connect again", HumanTime(*interrupted)));
                }
            }
            Event::Recovered { interrupted, pages_left } => {
                self.line(&format!("connected again after {}, {pages_left} left", HumanTime(*interrupted)));
            }
            Event::PauseUndone { remainder, stalled } => {
                self.line(&format!("{remainder} were left after the pause, too many: the guest runs again after {}", HumanTime(*stalled)));
            }
        }
    }

    /// Takes the live line away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn phase(&self, phase: Phase) {
        match &self.bar {
            Some(bar) if phase != Phase::Resolving => bar.set_message(phase.to_string()),
            _ => self.line(&phase.to_string()),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The live line of post-copy: pages left, rate, faults.
fn following(bytes: ByteCount, rate: BytesPerSec, pages: PageCount, left: PageCount, requests: u64, urgent: PageCount) -> String {
    let percent = (pages.0 - left.0.min(pages.0)) * 100 / pages.0.max(1);
    format!("post-copy {percent:>3} %  {bytes}  {rate}  {left} left  {requests} asked for, {} sent at once", urgent.0)
}

/// The live line: bytes, rate, round, dirty rate, expected downtime.
fn live(
    index: u32,
    bytes: ByteCount,
    rate: BytesPerSec,
    sent: PageCount,
    pages: PageCount,
    dirty_rate: Option<PagesPerSec>,
    downtime: Option<Duration>,
) -> String {
    let percent = sent.0 * 100 / pages.0.max(1);
    let mut line = format!("round {index} {percent:>3} %  {bytes}  {rate}");
    if let Some(dirty_rate) = dirty_rate {
        line.push_str(&format!("  dirty {dirty_rate}"));
    }
    if let Some(downtime) = downtime {
        line.push_str(&format!("  downtime now {}", HumanTime(downtime)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_line_of_post_copy_says_what_is_left() {
        let line = following(ByteCount(1 << 30), BytesPerSec(125e6), PageCount(1000), PageCount(250), 12, PageCount(10));
        assert_eq!(line, "post-copy  75 %  1 GiB  1.00 Gbit/s  250 pages left  12 asked for, 10 sent at once");
        assert!(following(ByteCount(0), BytesPerSec(0.0), PageCount(0), PageCount(0), 0, PageCount(0)).starts_with("post-copy   0 %"));
    }

    #[test]
    fn the_live_line_has_what_is_known() {
        let first = live(0, ByteCount(5 << 20), BytesPerSec(125e6), PageCount(50), PageCount(200), None, None);
        assert_eq!(first, "round 0  25 %  5 MiB  1.00 Gbit/s");
        let later =
            live(3, ByteCount(1 << 30), BytesPerSec(125e6), PageCount(0), PageCount(0), Some(PagesPerSec(1e4)), Some(Duration::from_millis(250)));
        assert_eq!(later, "round 3   0 %  1 GiB  1.00 Gbit/s  dirty 10000 pages/s  downtime now 250.0 ms");
    }
}
