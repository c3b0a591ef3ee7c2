//! The network fails in post-copy, between real processes: does the guest get all of its memory?
//!
//! ```text
//! tests/run cuts [--count N] [--seed S]      # 60
//! tests/run cuts --quick                     # each way to fail once, in a minute; plain `cargo test` leaves it out
//! ```
//! A guest is given away before its memory is there, over a slow link through a relay (`../network`), which fails at moments
//! that a seed decides (`shapes.rs`): connections are reset, end or fall silent, once or twice, in the middle of the pages,
//! at one message of the handover, during a recovery, or for longer than the sender tries to reconnect. Passed means: both
//! programs end with 0, the guest has arrived and was checked, and the receiver counts each missing page exactly once. Only
//! where Commit itself may have been lost the guest may stay at the source; then it is proven to run there, and the
//! receiver never ran it. Never do both have it, and never nobody.
//!
//! Case I of a run has the seed S + I: `--seed` with what a failed case says and `--count 1` repeats it. The environment
//! reaches the programs, as in `PAGEFERRY_LOG=debug tests/run cuts --seed 7 --count 1`.
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod processes;

#[path = "../network/mod.rs"]
#[expect(dead_code, reason = "cuts happen at messages, not at what programs say")]
mod network;
mod shapes;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use network::Link;
use pageferry::stats::{GuestOwner, Outcome, PostCopyReport, Report};
use processes::tally::{Tally, Verdict, clean_up_at_interrupt, number};
use processes::{Ended, Listening, Process, SEND, command, parse, userfaultfd};
use shapes::{Case, End, SHAPES};

fn main() -> ExitCode {
    clean_up_at_interrupt(|| {}).expect("signals can be watched");
    let mut tally = Tally::default();
    if std::env::args().len() == 1 {
        tally.case("all of it", || Ok(Verdict::Skipped("it takes a minute or more: tests/run cuts".into())));
        return tally.finish();
    }
    let full = std::env::args().any(|argument| argument == "--full");
    let count = number("--count").unwrap_or(if full { 60 } else { SHAPES.len() as u64 });
    let seed = number("--seed").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{count} cases, --seed {seed}");
    if let Err(reason) = userfaultfd() {
        tally.case("all of it", || Ok(Verdict::Skipped(reason)));
        return tally.finish();
    }
    let (slow, fast): (Vec<Case>, Vec<Case>) = (0..count).map(|index| Case::new(seed.wrapping_add(index))).partition(Case::is_slow);
    let tally = Mutex::new(tally);
    let run = |case: &Case| {
        let result = case.run();
        tally.lock().expect("no case panics").case(&case.name(), || result);
    };
    std::thread::scope(|scope| {
        // Those that mostly wait do so side by side.
        for some in slow.chunks(slow.len().div_ceil(WAITING).max(1)) {
            scope.spawn(|| some.iter().for_each(run));
        }
        fast.iter().for_each(run);
    });
    tally.into_inner().expect("no case panics").finish()
}

impl Case {
    fn run(&self) -> Result<Verdict> {
        if let Some(reason) = self.unusable() {
            return Ok(Verdict::Skipped(reason));
        }
        let began = Instant::now();
        let receiver = Listening::start("127.0.0.1:0", "--max-sessions 1 --recover-for 2s")?;
        let link = Link::start(&receiver.address, &self.steps, || {})?;
        let flags = format!("--to {} --guest {} --json - {}", link.address, self.guest(), self.flags());
        let sender = Process::start(command(SEND, &flags))?;
        let Both { sent, received } = self.follow(sender, receiver, &link)?;
        let judged = self.judge(&sent, &received).and_then(|seen| {
            ensure!(link.left() == 0, "{} steps have not happened", link.left());
            Ok(seen)
        });
        match judged {
            Ok(seen) => Ok(Verdict::Passed(format!("{seen}; {:.1} s", began.elapsed().as_secs_f64()))),
            Err(error) => bail!("--seed {}, {:?}: {error:#}\nsender: {sent}\nreceiver: {received}", self.seed, self.steps),
        }
    }

    /// Until both have ended.
    fn follow(&self, mut sender: Process, mut receiver: Listening, link: &Link) -> Result<Both> {
        let hangs = |what: &str, error: anyhow::Error, other: Process| {
            let said = other.kill().map_or_else(|error| error.to_string(), |ended| ended.to_string());
            Err(error.context(format!("--seed {}, {:?}: {what}; the other: {said}", self.seed, self.steps)))
        };
        if self.end == End::Stranded {
            if let Err(error) = sender.stderr.next_with("STRANDED", LIMIT) {
                return hangs("the sender", error, receiver.process);
            }
            std::thread::sleep(Duration::from_millis(500));
            link.repair();
        }
        let sent = match sender.wait(LIMIT) {
            Ok(sent) => sent,
            Err(error) => return hangs("the sender", error, receiver.process),
        };
        // A receiver whose source may not know the end waits a minute for it to ask again: not here.
        let reported = receiver.process.stdout.next_with("{", LIMIT).is_ok();
        let lingers = sent.code != Some(0) || self.ends_unconfirmed();
        let received = if reported && lingers { receiver.process.kill() } else { receiver.process.wait(LIMIT) };
        match received {
            Ok(received) => Ok(Both { sent, received }),
            Err(error) => Err(error.context(format!("--seed {}, {:?}: the receiver; the sender: {sent}", self.seed, self.steps))),
        }
    }

    fn judge(&self, sent: &Ended, received: &Ended) -> Result<String> {
        let (here, there) = (last_report(sent)?, received.report()?);
        match sent.code.context("the sender crashed")? {
            0 if self.end != End::Stays && (received.code == Some(0) || self.ends_unconfirmed()) => self.arrived(&here, &there),
            1 if matches!(self.end, End::Stays | End::Either) => stayed(&here, &there),
            code => bail!("the sender ended with {code}, the receiver with {:?}", received.code),
        }
    }

    fn arrived(&self, here: &Report, there: &Report) -> Result<String> {
        for report in [here, there] {
            ensure!(report.outcome == Outcome::Completed && report.guest_owner == GuestOwner::Destination, "not completed");
        }
        ensure!(there.guest_check.as_deref() == Some("ok"), "the guest that arrived: {:?}", there.guest_check);
        let (ours, theirs) = (post_copy(here)?, post_copy(there)?);
        ensure!(ours.pages == theirs.pages && theirs.pages.0 > 0, "{} missing at the sender, {} at the receiver", ours.pages, theirs.pages);
        let (pushed, installed) = (ours.urgent_pages + ours.bulk_pages, theirs.urgent_pages + theirs.bulk_pages);
        ensure!(installed == theirs.pages, "{installed} installed of {}", theirs.pages);
        ensure!(pushed >= ours.pages, "{pushed} sent of {}", ours.pages);
        ensure!(pushed == ours.pages || self.is_interrupted(), "{pushed} sent for {} and no connection broke", ours.pages);
        let least = u32::from(self.recovers);
        ensure!(ours.recoveries >= least && theirs.recoveries >= least, "{} and {} recoveries", ours.recoveries, theirs.recoveries);
        Ok(format!(
            "{}, {} sent twice, {} urgent, {} recoveries in {:.1} s",
            ours.pages,
            pushed.0 - ours.pages.0,
            theirs.urgent_pages.0,
            ours.recoveries,
            ours.interrupted.as_secs_f64()
        ))
    }
}

/// How both ended.
struct Both {
    sent: Ended,
    received: Ended,
}

/// The guest runs on at the source and never ran at the destination.
fn stayed(here: &Report, there: &Report) -> Result<String> {
    ensure!(here.outcome == Outcome::Failed && here.guest_owner == GuestOwner::Source, "not given back");
    ensure!(here.guest_check.as_deref() == Some("ok"), "the guest at the source: {:?}", here.guest_check);
    let dropped = matches!(there.outcome, Outcome::Failed | Outcome::Aborted) && there.guest_owner == GuestOwner::Source;
    ensure!(dropped && there.guest_check.is_none() && there.guest_gap.is_none(), "the receiver ran it");
    Ok("it stayed at the source".into())
}

/// One that was stranded reports that first.
fn last_report(ended: &Ended) -> Result<Report> {
    parse(ended.stdout.lines().last().context("no report")?)
}

fn post_copy(report: &Report) -> Result<&PostCopyReport> {
    report.post_copy.as_ref().context("nothing about post-copy in a report")
}

/// Slow cases at a time.
const WAITING: usize = 4;
/// For one program.
const LIMIT: Duration = Duration::from_secs(90);
