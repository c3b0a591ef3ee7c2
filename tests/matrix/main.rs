//! Every guest, pattern, tracker and number of channels: does the guest arrive as it was?
//!
//! ```text
//! tests/run matrix           # every combination, in a few minutes
//! tests/run matrix --quick   # each value of each parameter at least once, within a minute; plain `cargo test` runs this
//! ```
//! In each case a receiver and a sender move one guest and write its memory image to files, the sender at the last pause
//! and the receiver before the guest runs there. Passed means: `cmp` has nothing to say, the guest that arrived was
//! checked, both programs ended with 0, both reports say that the destination has the guest, and they agree on what
//! crossed. The downtime limit is low, so that pages travel more than once.
//!
//! The rows of post-copy (`post_copy.rs`) run the guest at the destination before its memory is there: every missing page is
//! counted once at both ends, and where the guest is held there `cmp` is asked as well. Huge pages are reserved where this
//! process may, and given back.
//!
//! Environment: `MEMORY` (64MiB), `FILL` (24MiB), `WORKING_SET` (8MiB), `RATE` (100000), `ONLY` (cases whose name contains
//! it).
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod processes;

mod post_copy;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pageferry::stats::{GuestOwner, Outcome, Report};
use pageferry::units::text::parse_size;
use processes::huge_pages::{self, HugePages};
use processes::tally::{Tally, Verdict, clean_up_at_interrupt};
use processes::{Ended, Listening, compare, kvm};
use tempfile::TempDir;

fn main() -> ExitCode {
    let full = std::env::args().any(|argument| argument == "--full");
    let directory = TempDir::with_prefix("pageferry-matrix-").expect("a temporary directory");
    let path = directory.path().to_owned();
    let clean_up = move || {
        huge_pages::give_back();
        drop(std::fs::remove_dir_all(path));
    };
    clean_up_at_interrupt(clean_up).expect("signals can be watched");
    let only = setting("ONLY", "");
    let mut tally = Tally::default();
    for case in cases().into_iter().filter(|case| (full || case.quick) && case.name().contains(&only)) {
        tally.case(&case.name(), || match huge_ends(u64::from(case.special == Some(Special::HugeTlb)) * 2) {
            Ok(_reserve) => case.run(&directory),
            Err(error) => Ok(Verdict::Skipped(format!("{error:#}"))),
        });
    }
    for case in post_copy::cases().into_iter().filter(|case| (full || case.quick) && case.name().contains(&only)) {
        tally.case(&case.name(), || match huge_ends(case.huge_ends()) {
            Ok(_reserve) => case.run(&directory),
            Err(error) => Ok(Verdict::Skipped(format!("{error:#}"))),
        });
    }
    drop(directory);
    tally.finish()
}

/// One migration.
#[derive(Clone)]
struct Case {
    guest: &'static str,
    pattern: &'static str,
    tracker: &'static str,
    channels: u16,
    /// What makes it different from the others of its row, if anything does.
    special: Option<Special>,
    quick: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Special {
    /// Over a Unix socket.
    Unix,
    /// Memory that is a memfd, at both ends.
    Memfd,
    /// Anonymous memory at the source, a memfd at the destination.
    ToMemfd,
    /// Huge pages at both ends.
    HugeTlb,
    /// The guest stays paused where it arrives.
    Hold,
    /// Paused from the start.
    Cold,
    /// No compression.
    Uncompressed,
    /// Every chunk by Zstandard.
    Zstd,
    /// Every page by LZ4, and no differences.
    Lz4NoDelta,
    /// Room for the differences of a few pages only.
    SmallCache,
    /// A guest that writes as fast as it can.
    Unpaced,
}

fn cases() -> Vec<Case> {
    let rows = [("workload", "write-protect"), ("workload", "soft-dirty"), ("workload", "marked"), ("kvm", "write-protect"), ("kvm", "kvm-log")];
    let patterns = ["sweep", "random", "rewrite", "hot-cold"];
    let mut cases = Vec::new();
    for (row, (guest, tracker)) in rows.into_iter().enumerate() {
        for (column, pattern) in patterns.into_iter().enumerate() {
            for (index, channels) in [1, 2, 4].into_iter().enumerate() {
                // A diagonal: every pattern and every number of channels with every tracker.
                let quick = column % 3 == (row + index) % 3 && (column < 3 || channels == 4);
                cases.push(Case { guest, pattern, tracker, channels, special: None, quick });
            }
        }
        let specials = [
            Special::Unix,
            Special::Memfd,
            Special::ToMemfd,
            Special::HugeTlb,
            Special::Hold,
            Special::Cold,
            Special::Uncompressed,
            Special::Zstd,
            Special::Lz4NoDelta,
            Special::SmallCache,
            Special::Unpaced,
        ];
        for (index, special) in specials.into_iter().enumerate() {
            let pattern = patterns[(row + index) % 4];
            cases.push(Case {
                guest,
                pattern,
                tracker,
                channels: 2,
                special: Some(special),
                quick: (row + index) % 4 == 0 || special == Special::Unpaced,
            });
        }
    }
    cases
}

impl Case {
    fn name(&self) -> String {
        let special = match self.special {
            None => "",
            Some(Special::Unix) => " unix",
            Some(Special::Memfd) => " memfd",
            Some(Special::ToMemfd) => " to-memfd",
            Some(Special::HugeTlb) => " hugetlb",
            Some(Special::Hold) => " hold",
            Some(Special::Cold) => " cold",
            Some(Special::Uncompressed) => " uncompressed",
            Some(Special::Zstd) => " zstd",
            Some(Special::Lz4NoDelta) => " lz4-no-delta",
            Some(Special::SmallCache) => " small-cache",
            Some(Special::Unpaced) => " unpaced",
        };
        let Self { guest, pattern, tracker, channels, .. } = self;
        format!("{guest} {pattern} {tracker} x{channels}{special}")
    }

    fn run(&self, directory: &TempDir) -> Result<Verdict> {
        if self.guest == "kvm"
            && let Err(reason) = kvm()
        {
            return Ok(Verdict::Skipped(reason));
        }
        let memory = setting("MEMORY", "64MiB");
        let bytes = parse_size(&memory)?.0;
        let began = Instant::now();
        let [source, destination, socket] = ["source.image", "destination.image", "socket"].map(|name| directory.path().join(name));
        let (mut send, mut receive, mut rounds) = (String::new(), String::new(), 5);
        let (mut listen, mut rate) = ("127.0.0.1:0".to_owned(), setting("RATE", "100000"));
        match self.special {
            None => {}
            Some(Special::HugeTlb) => (send, receive) = ("--backing hugetlb".into(), "--backing hugetlb".into()),
            Some(Special::Unix) => listen = format!("unix:{}", socket.display()),
            Some(Special::Memfd) => (send, receive) = ("--backing memfd".into(), "--backing memfd".into()),
            Some(Special::ToMemfd) => receive = "--backing memfd".into(),
            Some(Special::Hold) => receive = "--hold".into(),
            Some(Special::Cold) => rounds = 0,
            Some(Special::Uncompressed) => send = "--compress none".into(),
            Some(Special::Zstd) => send = "--compress zstd".into(),
            Some(Special::Lz4NoDelta) => send = "--compress lz4 --delta off".into(),
            Some(Special::SmallCache) => send = "--delta-cache 1MiB".into(),
            Some(Special::Unpaced) => rate = "max".into(),
        }
        let receiver = Listening::start(&listen, &format!("--max-sessions 1 --dump {} {receive}", destination.display()))?;
        let (fill, working_set) = (setting("FILL", "24MiB"), setting("WORKING_SET", "8MiB"));
        let Self { guest, pattern, tracker, channels, .. } = self;
        let guest = format!("{guest}:memory={memory},fill={fill},working-set={working_set},rate={rate},pattern={pattern},seed={channels}");
        let flags = format!(
            "--tracker {tracker} --channels {channels} --bandwidth {PACE} --downtime-limit 1ms --dirty-threshold 0 --max-rounds {rounds} --warm-up 50ms --dump {} {send}",
            source.display()
        );
        let sent = receiver.send(&guest, &flags)?.wait(LIMIT)?;
        if sent.code == Some(2) && ["is not usable", "not built in"].iter().any(|reason| sent.stderr.contains(reason)) {
            return Ok(Verdict::Skipped(sent.stderr.trim().to_owned()));
        }
        let sent = sent.expect(0)?;
        let received = receiver.process.wait(LIMIT)?.expect(0)?;
        let report = self.check(&sent, &received)?;
        compare(&source, &destination, bytes)?;
        let took = began.elapsed().as_secs_f64();
        Ok(Verdict::Passed(format!("{} rounds, {} pages, {took:.1} s", report.rounds.len(), report.pages_transferred.0)))
    }

    fn check(&self, sent: &Ended, received: &Ended) -> Result<Report> {
        let (source, destination) = (sent.report()?, received.report()?);
        for report in [&source, &destination] {
            ensure!(report.outcome == Outcome::Completed && report.guest_owner == GuestOwner::Destination, "{}", report.to_json());
            ensure!(report.channels == self.channels, "{} channels", report.channels);
        }
        ensure!(destination.guest_check.as_deref() == Some("ok"), "the guest that arrived: {:?}", destination.guest_check);
        ensure!(source.tracker.as_deref() == Some(self.tracker), "tracked by {:?}", source.tracker);
        let crossed = |report: &Report| (report.pages_transferred, report.wire_bytes, report.pages_by_encoding, report.rounds.len());
        ensure!(crossed(&source) == crossed(&destination), "sent {:?}, received {:?}", crossed(&source), crossed(&destination));
        let sent = source.pages_by_encoding;
        let no_differences = [Special::Lz4NoDelta, Special::Cold].map(Some).contains(&self.special);
        // Pages that are rewritten whole with random words have none to make, nor has a guest that hardly got to write.
        let again: u64 = source.rounds.iter().skip(1).map(|round| round.pages.0).sum();
        let may_have_none = self.pattern == "rewrite" || again < 100;
        ensure!(if no_differences { sent.delta.0 == 0 } else { sent.delta.0 > 0 || may_have_none }, "{sent:?}");
        let cold = self.special == Some(Special::Cold);
        ensure!((source.rounds.len() == 1) == cold, "{} rounds", source.rounds.len());
        Ok(source)
    }
}

/// So slow that what was sent in round 0 is remembered: where processors are waited for, differences begin a round later.
const PACE: &str = "500Mbit/s";

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Huge pages for the guest, at so many ends.
fn huge_ends(ends: u64) -> Result<Option<HugePages>> {
    if ends == 0 {
        return Ok(None);
    }
    let pages = parse_size(&setting("MEMORY", "64MiB"))?.0.div_ceil(2 << 20);
    HugePages::reserve(ends * pages).map(Some)
}

/// For one program; a case takes about a second.
const LIMIT: Duration = Duration::from_secs(60);
