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
        let text = match phase {
            Phase::Connecting => "connecting",
            Phase::PreCopy => "copying while the guest runs",
            Phase::StopAndCopy => "the guest is paused; copying the rest",
            Phase::Handover => "handing the guest over",
            Phase::Resolving => "in doubt: asking the destination whether it runs the guest",
        };
        match &self.bar {
            Some(bar) if phase != Phase::Resolving => bar.set_message(text),
            _ => self.line(text),
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
    fn the_live_line_has_what_is_known() {
        let first = live(0, ByteCount(5 << 20), BytesPerSec(125e6), PageCount(50), PageCount(200), None, None);
        assert_eq!(first, "round 0  25 %  5 MiB  1.00 Gbit/s");
        let later =
            live(3, ByteCount(1 << 30), BytesPerSec(125e6), PageCount(0), PageCount(0), Some(PagesPerSec(1e4)), Some(Duration::from_millis(250)));
        assert_eq!(later, "round 3   0 %  1 GiB  1.00 Gbit/s  dirty 10000 pages/s  downtime now 250.0 ms");
    }
}
