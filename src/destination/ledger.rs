//! What has arrived, channel by channel and round by round.

use std::time::Instant;

use super::bulk::BulkReport;
use crate::error::Error;
use crate::stats::{Encodings, Report, RoundKind, RoundReport};
use crate::units::{ByteCount, PageCount};
use crate::wire::ChannelTotals;

/// The books of one session.
#[derive(Debug)]
pub(super) struct Ledger {
    channels: Vec<Entry>,
    rounds: Vec<RoundReport>,
    /// In those.
    reported: (PageCount, ByteCount),
    round_began: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    totals: ChannelTotals,
    encodings: Encodings,
    rounds: u32,
    switched: bool,
    stopped: bool,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { channels: Vec::new(), rounds: Vec::new(), reported: Default::default(), round_began: Instant::now() }
    }
}

impl Ledger {
    pub(super) fn expect_channels(&mut self, channels: u16) {
        self.channels = vec![Entry::default(); usize::from(channels)];
    }

    /// Enters what a bulk worker has to say.
    pub(super) fn enter(&mut self, report: &BulkReport) {
        match *report {
            BulkReport::RoundEnd { channel, totals, encodings } => self.round_end(channel, totals, encodings),
            BulkReport::Switched { channel, totals, encodings } => self.switched(channel, totals, encodings),
            BulkReport::Stopped { channel, totals, .. } => self.stopped(channel, totals),
            BulkReport::Broken { .. } | BulkReport::Complete => {}
        }
    }

    /// A channel has completed a round.
    fn round_end(&mut self, channel: u16, totals: ChannelTotals, encodings: Encodings) {
        let entry = &mut self.channels[usize::from(channel)];
        entry.totals = totals;
        entry.encodings = encodings;
        entry.rounds += 1;
        let complete = self.channels.iter().map(|entry| entry.rounds).min().unwrap_or(0);
        if complete as usize > self.rounds.len() {
            self.close_round(complete - 1);
        }
    }

    /// A channel has completed its last round before post-copy, in which there are no pages.
    fn switched(&mut self, channel: u16, totals: ChannelTotals, encodings: Encodings) {
        let entry = &mut self.channels[usize::from(channel)];
        entry.totals = totals;
        entry.encodings = encodings;
        entry.switched = true;
    }

    /// Whether pre-copy is over on every channel.
    pub(super) fn all_switched(&self) -> bool {
        self.channels.iter().all(|entry| entry.switched)
    }

    /// A channel's worker has stopped.
    fn stopped(&mut self, channel: u16, totals: ChannelTotals) {
        let entry = &mut self.channels[usize::from(channel)];
        entry.totals = totals;
        entry.stopped = true;
    }

    /// Whether every channel has brought at least the frames announced.
    pub(super) fn has_reached(&self, announced: &[ChannelTotals]) -> bool {
        self.channels.iter().zip(announced).all(|(entry, announced)| entry.totals.frames >= announced.frames)
    }

    pub(super) fn all_stopped(&self) -> bool {
        self.channels.iter().all(|entry| entry.stopped)
    }

    /// Whether exactly what was announced has arrived.
    pub(super) fn check(&self, announced: &[ChannelTotals]) -> Result<(), Error> {
        for ((channel, entry), announced) in (0u16..).zip(&self.channels).zip(announced) {
            if entry.totals != *announced {
                return Err(Error::Totals { channel, got: words(&entry.totals), announced: words(announced) });
            }
        }
        Ok(())
    }

    /// Puts the books into `report`.
    pub(super) fn fill(&self, report: &mut Report, complete: bool) {
        report.channels = u16::try_from(self.channels.len()).expect("made from a u16");
        report.pages_transferred = self.pages();
        report.wire_bytes = self.bytes();
        for entry in &self.channels {
            report.pages_by_encoding += entry.encodings;
        }
        report.rounds.clone_from(&self.rounds);
        if complete
            && !self.all_switched()
            && let Some((last, before)) = report.rounds.split_last_mut()
        {
            last.kind = if before.is_empty() { RoundKind::Cold } else { RoundKind::StopAndCopy };
        }
    }

    fn close_round(&mut self, index: u32) {
        let (pages, bytes) = self.reported;
        self.reported = (self.pages(), self.bytes());
        let now = Instant::now();
        self.rounds.push(RoundReport {
            index,
            kind: RoundKind::PreCopy,
            // A channel that is a round ahead counts towards the earlier one: off by little, and right in total.
            pages: PageCount(self.pages().0 - pages.0),
            wire_bytes: ByteCount(self.bytes().0 - bytes.0),
            duration: now - self.round_began,
            dirty_after: None,
            decision: None,
        });
        self.round_began = now;
    }

    fn pages(&self) -> PageCount {
        self.channels.iter().map(|entry| entry.totals.pages).sum()
    }

    fn bytes(&self) -> ByteCount {
        self.channels.iter().map(|entry| entry.totals.bytes).sum()
    }
}

fn words(totals: &ChannelTotals) -> String {
    format!("{} frames, {}, {} bytes, digest {:016x}", totals.frames, totals.pages, totals.bytes.0, totals.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(frames: u64, pages: u64) -> ChannelTotals {
        ChannelTotals { frames, pages: PageCount(pages), bytes: ByteCount(pages * 4096), digest: frames }
    }

    #[test]
    fn totals_must_be_exactly_those_announced() {
        let mut ledger = Ledger::default();
        ledger.expect_channels(2);
        ledger.round_end(0, totals(2, 10), Encodings::default());
        assert!(!ledger.has_reached(&[totals(2, 10), totals(1, 5)]));
        ledger.round_end(1, totals(1, 5), Encodings::default());
        assert!(ledger.has_reached(&[totals(2, 10), totals(1, 5)]));
        assert!(ledger.check(&[totals(2, 10), totals(1, 5)]).is_ok());
        assert!(matches!(ledger.check(&[totals(2, 10), totals(1, 6)]), Err(Error::Totals { channel: 1, .. })));
        assert!(matches!(ledger.check(&[totals(1, 10), totals(1, 5)]), Err(Error::Totals { channel: 0, .. })));
    }

    #[test]
    fn rounds_add_up_to_the_totals() {
        let mut ledger = Ledger::default();
        ledger.expect_channels(2);
        ledger.round_end(0, totals(2, 10), Encodings::default());
        ledger.round_end(0, totals(3, 12), Encodings::default());
        ledger.round_end(1, totals(1, 5), Encodings::default());
        ledger.round_end(1, totals(2, 6), Encodings::default());
        let mut report = Report::new();
        ledger.fill(&mut report, true);
        assert_eq!(report.rounds.iter().map(|round| round.pages).sum::<PageCount>(), PageCount(18));
        assert_eq!(report.rounds.iter().map(|round| round.kind).collect::<Vec<_>>(), [RoundKind::PreCopy, RoundKind::StopAndCopy]);
    }
}
