//! Guests that are given away before their memory is there.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pageferry::stats::{GuestOwner, Outcome, PostCopyReport, Report, RoundKind};
use pageferry::units::text::parse_size;
use tempfile::TempDir;

use crate::processes::tally::Verdict;
use crate::processes::{Ended, Listening, compare, kvm, userfaultfd};
use crate::{LIMIT, setting};

/// One migration that ends in post-copy.
#[derive(Clone)]
pub(crate) struct Case {
    guest: &'static str,
    pattern: &'static str,
    after: &'static str,
    channels: u16,
    backing: Backing,
    /// The guest stays paused where it arrives, and its image is compared. It runs on otherwise.
    hold: bool,
    pub(crate) quick: bool,
}

/// What memory is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Backing {
    Anonymous,
    Memfd,
    /// Huge pages, at the destination alone: it fills them whole.
    ToHugeTlb,
    HugeTlb,
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (row, guest) in ["workload", "kvm"].into_iter().enumerate() {
        for (column, pattern) in ["sweep", "random", "rewrite", "hot-cold"].into_iter().enumerate() {
            for (third, after) in ["0", "2", "auto"].into_iter().enumerate() {
                for (fourth, channels) in [1, 4].into_iter().enumerate() {
                    for (fifth, backing) in [Backing::Anonymous, Backing::Memfd, Backing::ToHugeTlb, Backing::HugeTlb].into_iter().enumerate() {
                        // A diagonal: every pattern and backing with every guest, and the rest somewhere among them.
                        let quick = fifth == (column + row) % 4 && third == (column + row) % 3 && fourth == (column + row / 2) % 2;
                        let hold = (column + third + fourth + fifth) % 3 == 0;
                        cases.push(Case { guest, pattern, after, channels, backing, hold, quick });
                    }
                }
            }
        }
    }
    cases
}

impl Case {
    pub(crate) fn name(&self) -> String {
        let Self { guest, pattern, after, channels, backing, .. } = self;
        let backing = match backing {
            Backing::Anonymous => "",
            Backing::Memfd => " memfd",
            Backing::ToHugeTlb => " to-hugetlb",
            Backing::HugeTlb => " hugetlb",
        };
        format!("{guest} {pattern} post-copy {after} x{channels}{backing}{}", if self.hold { " hold" } else { "" })
    }

    /// Ends that need huge pages.
    pub(crate) fn huge_ends(&self) -> u64 {
        match self.backing {
            Backing::Anonymous | Backing::Memfd => 0,
            Backing::ToHugeTlb => 1,
            Backing::HugeTlb => 2,
        }
    }

    pub(crate) fn run(&self, directory: &TempDir) -> Result<Verdict> {
        let unusable = userfaultfd().and_then(|()| if self.guest == "kvm" { kvm() } else { Ok(()) });
        if let Err(reason) = unusable {
            return Ok(Verdict::Skipped(reason));
        }
        let began = Instant::now();
        let memory = setting("MEMORY", "64MiB");
        let [source, destination] = ["source.image", "destination.image"].map(|name| directory.path().join(name));
        let (send, mut receive) = match self.backing {
            Backing::Anonymous => ("", String::new()),
            Backing::Memfd => ("--backing memfd", "--backing memfd".into()),
            Backing::ToHugeTlb => ("", "--backing hugetlb".into()),
            Backing::HugeTlb => ("--backing hugetlb", "--backing hugetlb".into()),
        };
        if self.hold {
            receive += &format!(" --hold --dump {}", destination.display());
        }
        let receiver = Listening::start("127.0.0.1:0", &format!("--max-sessions 1 {receive}"))?;
        let Self { guest, pattern, after, channels, .. } = self;
        let (fill, working_set) = (setting("FILL", "24MiB"), setting("WORKING_SET", "8MiB"));
        // A guest that can be caught up with does not come to post-copy by itself, and a vCPU may stand still for a while
        // on a busy machine: no page may be cheap then.
        let (rate, pace) = match *after {
            "auto" => ("max".into(), "--compress none --delta off --bandwidth 400Mbit/s"),
            _ => (setting("RATE", "100000"), "--bandwidth 1Gbit/s"),
        };
        let guest = format!("{guest}:memory={memory},fill={fill},working-set={working_set},rate={rate},pattern={pattern},seed={channels}");
        let flags = format!(
            "--post-copy {after} --channels {channels} --downtime-limit 1ms --dirty-threshold 0 --warm-up 50ms {pace} --dump {} {send}",
            source.display()
        );
        let sent = receiver.send(&guest, &flags)?.wait(LIMIT)?.expect(0)?;
        let received = receiver.process.wait(LIMIT)?.expect(0)?;
        let seen = self.check(&sent, &received).with_context(|| format!("sender: {sent}\nreceiver: {received}"))?;
        if self.hold {
            compare(&source, &destination, parse_size(&memory)?.0)?;
        }
        Ok(Verdict::Passed(format!("{seen}, {:.1} s", began.elapsed().as_secs_f64())))
    }

    fn check(&self, sent: &Ended, received: &Ended) -> Result<String> {
        let (here, there) = (sent.report()?, received.report()?);
        for report in [&here, &there] {
            ensure!(report.outcome == Outcome::Completed && report.guest_owner == GuestOwner::Destination, "not completed");
            ensure!(report.channels == self.channels, "{} channels", report.channels);
        }
        ensure!(there.guest_check.as_deref() == Some("ok"), "the guest that arrived: {:?}", there.guest_check);
        let (ours, theirs) = (post_copy(&here)?, post_copy(&there)?);
        for (end, post_copy) in [("sender", ours), ("receiver", theirs)] {
            let all = post_copy.urgent_pages + post_copy.bulk_pages;
            ensure!(all == post_copy.pages && post_copy.recoveries == 0, "the {end} counts {all} of {}", post_copy.pages);
        }
        ensure!(ours.pages == theirs.pages && ours.urgent_pages == theirs.urgent_pages, "{ours:?} is not {theirs:?}");
        let granule = if self.huge_ends() > 0 { 512 } else { 1 };
        ensure!(ours.pages.0 > 0 && ours.pages.0 % granule == 0, "{} missing", ours.pages);
        let crossed = |report: &Report| (report.pages_transferred, report.wire_bytes, report.pages_by_encoding, report.rounds.len());
        ensure!(crossed(&here) == crossed(&there), "sent {:?}, received {:?}", crossed(&here), crossed(&there));
        let before = here.rounds.iter().filter(|round| round.kind == RoundKind::PreCopy).count();
        let last = here.rounds.last().context("no rounds")?;
        ensure!(last.kind == RoundKind::PostCopy && last.pages == ours.pages, "the last round: {last:?}");
        ensure!(self.after.parse().map_or(before > 0, |after: usize| before == after), "{before} rounds before post-copy");
        Ok(format!("{before} rounds, {} missing, {} urgent, {} faults", ours.pages, ours.urgent_pages.0, theirs.faults.unwrap_or(0)))
    }
}

fn post_copy(report: &Report) -> Result<&PostCopyReport> {
    report.post_copy.as_ref().context("nothing about post-copy in a report")
}
