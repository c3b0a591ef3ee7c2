//! One migration by this engine: `pageferry receive` on one host, `pageferry send` on the other.
//!
//! All figures of time are the programs' own. The guest's longest gap is the receiver's, with what the guest saw before the
//! migration forgotten. The clocks of the processor are read when the sender reports, before the receiver checks the
//! guest that arrived: checking is no part of a migration.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::measure::{Ended, Job, ms, pace};
use super::network::{DESTINATION, End};
use super::process::Process;
use super::results::{Figures, Run};
use super::watch::{Seen, Subject, Watch};
use super::window::Window;
use crate::stats::{Outcome, Report};

/// Moves the guest once, with `flags` for the sender beside the defaults.
///
/// # Errors
/// When something else than the cap ended it.
pub(super) fn run(job: &Job<'_>, flags: &[String]) -> Result<Ended> {
    let (mut receiver, address) = receiver(job)?;
    let mut sender = sender(job, &address, flags)?;
    let result = migrate(job, &mut sender, &mut receiver);
    result.map_err(|error| {
        let (here, there) = (sender.stderr.last_words(), receiver.stderr.last_words());
        anyhow!("{error:#}\nthe sender said:\n{here}\nthe receiver said:\n{there}")
    })
}

fn migrate(job: &Job<'_>, sender: &mut Process, receiver: &mut Process) -> Result<Ended> {
    let window = find(job, sender)?;
    let begins = Instant::now() + job.warm_up;
    thread::sleep(job.warm_up / 8);
    let before = pace(&window, job.warm_up / 2)?;
    window.forget_gap()?;
    let watch = Watch::start(Subject { pids: [sender.pid(), receiver.pid()], vcpu: VCPU, windows: vec![window] })?;
    let sent = sender.stdout.next_with("{", begins + job.cap)?;
    let seen = watch.stop()?;
    let Some(sent) = sent else { return Ok(Ended::NotDone) };
    let report = parse(&sent)?;
    ensure!(report.outcome == Outcome::Completed, "not migrated: {}", report.reason);
    let received = receiver.stdout.next_with("{", Instant::now() + PATIENCE)?.context("the receiver does not report")?;
    let received = parse(&received)?;
    ensure!(received.guest_check.as_deref() == Some("ok"), "the guest that arrived: {}", received.guest_check.unwrap_or_default());
    tracing::debug!(own = ?received.guest_gap, watched = ?seen.longest_gap, "the guest's longest gap");
    Ok(Ended::Completed(Run { figures: figures(&report, &received, &seen, before), report: Some(report) }))
}

fn figures(sent: &Report, received: &Report, seen: &Seen, before: Option<f64>) -> Figures {
    Figures {
        total_ms: ms(sent.total),
        downtime_ms: ms(sent.downtime),
        guest_gap_ms: received.guest_gap.map(ms),
        wire_bytes: seen.wire_bytes,
        engine_bytes: sent.wire_bytes.0,
        cpu_source_s: seen.cpu_s[0],
        cpu_destination_s: seen.cpu_s[1],
        guest_writes_per_s: seen.end.checked_sub(sent.total).and_then(|start| seen.writes_per_s(start)),
        guest_writes_before_per_s: before,
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

fn sender(job: &Job<'_>, address: &str, flags: &[String]) -> Result<Process> {
    let mut command = program(job, End::Source)?;
    let (guest, warm_up) = (job.guest.to_string(), format!("{}ms", job.warm_up.as_millis()));
    command.args(["send", "--to", address, "--insecure", "--guest", &guest, "--warm-up", &warm_up, "--json", "-"]).args(flags);
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
/// For filling and checking memory; generous, for machines under load.
const PATIENCE: Duration = Duration::from_secs(180);
