//! The three programs as other tools see them: flags, exit codes, JSON, and what they say.
//!
//! Each test runs the programs that were built, as processes. The guests are small; where the kind does not matter they
//! are workloads, so that no KVM is needed.
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests that count their own cases use the rest")]
mod processes;

mod batch;
#[cfg(feature = "tls")]
#[path = "../certificates/mod.rs"]
mod certificates;
mod commands;
mod endings;
mod flags;
mod handover;
mod moves;
mod post_copy;
mod proxy;
mod refusals;
mod report;
mod reports;
#[cfg(feature = "sandbox")]
mod sandbox;
mod stopping;
mod strangers;
mod terminal;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_cuts;

use anyhow::{Result, ensure};
use pageferry::stats::{GuestOwner, Outcome, Report};
use processes::{Ended, Listening, MOMENT};

/// A guest of a few moments.
const GUEST: &str = "workload:memory=64MiB,fill=16MiB,working-set=4MiB";
/// Its memory.
const GUEST_BYTES: u64 = 64 << 20;
/// Makes it last for some seconds.
const SLOWLY: &str = "--bandwidth 20Mbit/s";

/// A receiver on loopback.
fn receiver(flags: &str) -> Result<Listening> {
    Listening::start("127.0.0.1:0", flags)
}

/// Fails unless the sender failed with its guest running on; its report.
fn runs_on(sent: Ended, outcome: Outcome, code: i32) -> Result<Report> {
    let sent = sent.expect(code)?;
    let report = sent.report()?;
    let here = report.outcome == outcome && report.guest_owner == GuestOwner::Source && report.guest_check.as_deref() == Some("ok");
    ensure!(here && sent.stderr.contains("the guest runs on here"), "{sent}");
    Ok(report)
}

/// Fails unless the guest is at the destination, whole; its report.
fn has_arrived(receiver: &mut Listening) -> Result<Report> {
    let report = receiver.next_report(MOMENT)?;
    let there = report.outcome == Outcome::Completed && report.guest_owner == GuestOwner::Destination && report.guest_check.as_deref() == Some("ok");
    ensure!(there, "{}", report.to_json());
    Ok(report)
}

/// Fails unless the destination dropped the guest without running it; its report.
fn was_dropped(receiver: &mut Listening) -> Result<Report> {
    let report = receiver.next_report(MOMENT)?;
    let dropped =
        matches!(report.outcome, Outcome::Failed | Outcome::Aborted) && report.guest_owner == GuestOwner::Source && report.guest_check.is_none();
    ensure!(dropped, "{}", report.to_json());
    Ok(report)
}

/// Fails unless the receiver takes a guest in.
fn still_serves(receiver: &mut Listening) -> Result<()> {
    receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?;
    has_arrived(receiver).map(drop)
}
