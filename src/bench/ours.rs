//! One migration by this engine: `pageferry receive` on one host, `pageferry send` on the other.
//!
//! All figures of time are the programs' own. The guest's longest gap is the receiver's, with what the guest saw before the
//! migration forgotten. The clocks of the processor are read when the sender reports, before the receiver checks the
//! guest that arrived: checking is no part of a migration.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::ballast::Ballast;
use super::first_second::FirstSecond;
use super::measure::{Ended, Job, ms, warm_up};
use super::network::{DESTINATION, End};
use super::process::Process;
use super::results::{Figures, Run};
use super::watch::{Seen, Subject, Watch};
use super::window::Window;
use crate::source::Phase;
use crate::stats::{Outcome, Report};

/// How this engine is told to migrate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    /// As it comes.
    Default,
    /// Post-copy from the start.
    PostCopy,
}

impl Ours {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Default, Self::PostCopy];

    /// The name in tables, results and `--ours`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::PostCopy => "post-copy",
        }
    }

    /// The mode of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::PostCopy => &["--post-copy", "0"],
        }
    }
}

/// Moves the guest once, with `flags` for the sender beside those of the mode. The ballast is given back shortly before.
///
/// # Errors
/// When something else than the cap ended it.
pub(super) fn run(job: &Job<'_>, mode: Ours, flags: &[String], ballast: Option<Ballast>) -> Result<Ended> {
    let (mut receiver, address) = receiver(job)?;
    let mut sender = sender(job, mode, &address, flags)?;
    let result = migrate(job, mode, ballast, &mut sender, &mut receiver);
    result.map_err(|error| {
        let (here, there) = (sender.stderr.last_words(), receiver.stderr.last_words());
        anyhow!("{error:#}\nthe sender said:\n{here}\nthe receiver said:\n{there}")
    })
}

fn migrate(job: &Job<'_>, mode: Ours, ballast: Option<Ballast>, sender: &mut Process, receiver: &mut Process) -> Result<Ended> {
    let (window, own) = (find(job, sender)?, find(job, sender)?);
    let begins = Instant::now() + job.warm_up;
    let before = warm_up(job, &window, ballast)?;
    window.forget_gap()?;
    let watch = Watch::start(Subject { pids: [sender.pid(), receiver.pid()], vcpu: VCPU, windows: vec![window] })?;
    let first_second = if mode == Ours::PostCopy { switched(job, &own, sender, receiver, begins + job.cap)? } else { None };
    let sent = sender.stdout.next_with("{", begins + job.cap)?;
    let ended = Instant::now();
    let seen = watch.stop()?;
    let Some(sent) = sent else { return Ok(Ended::NotDone) };
    let report = parse(&sent)?;
    ensure!(report.outcome == Outcome::Completed, "not migrated: {}", report.reason);
    ensure!(mode != Ours::PostCopy || report.post_copy.is_some(), "the guest was moved, but not in post-copy: {}", report.reason);
    let received = receiver.stdout.next_with("{", Instant::now() + PATIENCE)?.context("the receiver does not report")?;
    let received = parse(&received)?;
    ensure!(received.guest_check.as_deref() == Some("ok"), "the guest that arrived: {}", received.guest_check.unwrap_or_default());
    tracing::debug!(own = ?received.guest_gap, watched = ?seen.longest_gap, "the guest's longest gap");
    let figures = Figures {
        guest_writes_after_per_s: first_second.and_then(|first_second| first_second.writes_per_s(Some(ended + RUNS_ON))),
        ..figures(&report, &received, &seen, before)
    };
    Ok(Ended::Completed(Run { figures, report: Some(report), received: (mode == Ours::PostCopy).then_some(received) }))
}

/// Waits until the sender says that the guest runs at the destination, and looks at it there from then on. `None` when
/// that did not come to pass: how it ended is in the report.
fn switched(job: &Job<'_>, here: &Window, sender: &mut Process, receiver: &Process, deadline: Instant) -> Result<Option<FirstSecond>> {
    match sender.stderr.next_with(&Phase::PostCopy.to_string(), deadline) {
        Ok(Some(_)) => {}
        Ok(None) | Err(_) => return Ok(None),
    }
    Ok(Some(FirstSecond::start(here, Window::of_size(receiver.pid(), job.guest.memory())?)?))
}

fn figures(sent: &Report, received: &Report, seen: &Seen, before: Option<f64>) -> Figures {
    let faults = received.post_copy.as_ref().and_then(|post_copy| post_copy.fault_us);
    Figures {
        total_ms: ms(sent.total),
        downtime_ms: ms(sent.downtime),
        guest_gap_ms: received.guest_gap.map(ms),
        machine_stopped_ms: Some(ms(seen.machine_stopped)),
        wire_bytes: seen.wire_bytes,
        engine_bytes: sent.wire_bytes.0,
        cpu_source_s: seen.cpu_s[0],
        cpu_destination_s: seen.cpu_s[1],
        guest_writes_per_s: seen.end.checked_sub(sent.total).and_then(|start| seen.writes_per_s(start)),
        guest_writes_before_per_s: before,
        guest_writes_after_per_s: None,
        fault_p50_us: faults.map(|times| times.p50 as f64),
        fault_p99_us: faults.map(|times| times.p99 as f64),
    }
}

/// A receiver for one migration, and its address.
fn receiver(job: &Job<'_>) -> Result<(Process, String)> {
    let mut command = program(job, End::Destination)?;
    command.args(["receive", "--listen", &format!("{DESTINATION}:0"), "--insecure", "--max-sessions", "1", "--json", "-"]);
    let mut process = Process::start(command, job.leftovers)?;
    let line = process.stderr.next_with(LISTENING, Instant::now() + PATIENCE)?.context("the receiver does not listen")?;
    let address = line.strip_prefix(LISTENING).context("no address")?.to_owned();
    Ok((process, address))
}

fn sender(job: &Job<'_>, mode: Ours, address: &str, flags: &[String]) -> Result<Process> {
    let mut command = program(job, End::Source)?;
    let (guest, warm_up) = (job.guest.to_string(), format!("{}ms", job.warm_up.as_millis()));
    command.args(["send", "--to", address, "--insecure", "--guest", &guest, "--warm-up", &warm_up, "--json", "-"]).args(mode.flags()).args(flags);
    Process::start(command, job.leftovers)
}

/// This program, on one of the hosts.
fn program(job: &Job<'_>, end: End) -> Result<Command> {
    let path = std::env::current_exe().context("this program cannot find itself")?;
    Ok(job.network.command(end, path.to_str().context("this program lies where no text leads")?))
}

/// Waits until the guest is there and has written, which is when the sender's warm-up begins.
fn find(job: &Job<'_>, sender: &mut Process) -> Result<Window> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        ensure!(sender.is_running(), "the sender gave up before it began");
        if let Some(window) = Window::of_guest(sender.pid(), job.guest.memory())?
            && window.word(crate::guests::ControlWord::Writes)? > 0
        {
            return Ok(window);
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("the guest has not begun within {PATIENCE:?}");
}

fn parse(line: &str) -> Result<Report> {
    serde_json::from_str(line).with_context(|| format!("not a report: {line}"))
}

/// The name of the thread that runs the vCPU.
const VCPU: &str = "vcpu";
const LISTENING: &str = "listening on ";
/// How long the receiver lets a guest run at least before it stops it to check it, and a little less.
const RUNS_ON: Duration = Duration::from_millis(250);
/// For filling and checking memory; generous, for machines under load.
const PATIENCE: Duration = Duration::from_secs(180);
