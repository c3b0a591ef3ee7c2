//! Post-copy as a person meets it: what is said, and what an interrupt does when the guest has gone ahead of its memory.

use std::fs::{File, Permissions, copy, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use pageferry::stats::{GuestOwner, Outcome};

use crate::handover::CutUntil;
use crate::processes::{Listening, MOMENT, Process, RECEIVE, SEND, command, parse, userfaultfd};
use crate::proxy::Proxy;
use crate::{GUEST, has_arrived, receiver, runs_on, still_serves, was_dropped};

/// What the sender says once the guest has gone.
const GONE: &str = "the guest runs at the destination";
/// Gives the guest away at once; its pages take two seconds.
const AT_ONCE: &str = "--post-copy 0 --compress none --bandwidth 80Mbit/s";

/// Says why not, if guests cannot run here before their memory is there.
fn usable() -> bool {
    userfaultfd().inspect_err(|reason| println!("skipped: {reason}")).is_ok()
}

/// A sender whose guest has just gone.
fn gone(receiver: &Listening, flags: &str) -> Result<Process> {
    let mut sender = receiver.send(GUEST, &format!("{AT_ONCE} {flags}"))?;
    sender.stderr.next_with(GONE, MOMENT)?;
    Ok(sender)
}

#[test]
fn the_rest_follows_although_the_sender_is_interrupted_once() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    let mut receiver = receiver("")?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let sender = gone(&receiver, "")?;
        sender.signal(signal)?;
        let sent = sender.wait(MOMENT)?.expect(0)?;
        ensure!(sent.stderr.contains("needs memory that is still here") && sent.report()?.outcome == Outcome::Completed, "{sent}");
        let arrived = has_arrived(&mut receiver)?;
        ensure!(arrived.post_copy.is_some_and(|post_copy| post_copy.pages.0 > 0), "it did not come to post-copy");
    }
    Ok(())
}

#[test]
fn a_sender_that_is_interrupted_twice_gives_the_memory_up() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    let receiver = receiver("")?;
    let mut sender = gone(&receiver, "")?;
    sender.signal(Signal::SIGINT)?;
    sender.stderr.next_with("interrupt again to give it up", MOMENT)?;
    sender.signal(Signal::SIGINT)?;
    let sent = sender.wait(MOMENT)?.expect(1)?;
    ensure!(sent.stderr.contains("is given up"), "{sent}");
    let report = sent.report()?;
    ensure!(report.outcome == Outcome::Failed && report.guest_owner == GuestOwner::Destination, "{sent}");
    ensure!(report.post_copy.is_some_and(|post_copy| post_copy.pages.0 > 0), "{sent}");
    Ok(())
}

#[test]
fn a_doubt_that_is_settled_late_gives_the_guest_back() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    let mut receiver = receiver("")?;
    let heals = Arc::new(AtomicBool::new(false));
    let proxy = Proxy::start(&receiver.address, CutUntil(Arc::clone(&heals)))?;
    let flags = format!("--to {} --guest {GUEST} --json - {AT_ONCE} --recover-for 300ms", proxy.address);
    let mut sender = Process::start(command(SEND, &flags))?;
    sender.stderr.next_with("STRANDED", MOMENT)?;
    heals.store(true, Ordering::SeqCst);
    let sent = sender.wait(MOMENT)?.expect(1)?;
    let reports = sent.stdout.lines().map(parse).collect::<Result<Vec<_>>>()?;
    let ends: Vec<_> = reports.iter().map(|report| (report.outcome, report.guest_owner)).collect();
    ensure!(ends.first() == Some(&(Outcome::InDoubt, GuestOwner::InDoubt)), "{sent}");
    ensure!(ends.last() == Some(&(Outcome::Failed, GuestOwner::Source)), "{sent}");
    ensure!(sent.stderr.contains("the guest runs on here (ok;"), "{sent}");
    was_dropped(&mut receiver).map(drop)
}

#[test]
fn a_receiver_that_is_told_to_end_twice_says_what_is_lost_and_the_sender_keeps_the_memory() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut receiver = receiver("")?;
        let mut sender = gone(&receiver, "--recover-for 300ms")?;
        receiver.process.signal(signal)?;
        receiver.process.stderr.next_with("interrupt again to lose them", MOMENT)?;
        receiver.process.signal(signal)?;
        let received = receiver.process.wait(MOMENT)?.expect(1)?;
        ensure!(received.stderr.contains("LOST: 1 guest(s)"), "{received}");
        let lost = received.report()?;
        ensure!((lost.outcome, lost.guest_owner) == (Outcome::Failed, GuestOwner::Destination) && lost.reason.starts_with("lost: "), "{received}");
        sender.stderr.next_with("STRANDED", MOMENT)?;
        ensure!(sender.is_running()?, "the sender has let go of the memory");
        sender.signal(Signal::SIGTERM)?;
        sender.stderr.next_with("interrupt again to give it up", MOMENT)?;
        sender.signal(Signal::SIGTERM)?;
        sender.wait(MOMENT)?.expect(1)?;
    }
    Ok(())
}

/// A receiver that may not handle faults, or why there cannot be one here.
fn unprivileged() -> Result<Result<Listening, String>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Err("needs root, to become nobody".into()));
    }
    if std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|value| value.trim() == "1") {
        return Ok(Err("vm.unprivileged_userfaultfd is 1: everybody may".into()));
    }
    if File::open("/dev/userfaultfd").and_then(|device| device.metadata()).is_ok_and(|device| device.permissions().mode() & 0o006 != 0) {
        return Ok(Err("everybody may open /dev/userfaultfd".into()));
    }
    // Where it was built nobody else may look.
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
    let program = directory.path().join("receive");
    copy(RECEIVE, &program)?;
    set_permissions(&program, Permissions::from_mode(0o755))?;
    let mut command = command(program.to_str().expect("a path of this test"), "--listen 127.0.0.1:0 --json -");
    command.uid(NOBODY).gid(NOBODY);
    // Running by now, it does not need its file.
    Listening::start_as(command).map(Ok)
}

const NOBODY: u32 = 65534;

#[test]
fn a_destination_that_cannot_handle_faults_is_known_before_anything_moves() -> Result<()> {
    let mut receiver = match unprivileged()? {
        Ok(receiver) => receiver,
        Err(reason) => {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
    let sent = receiver.send(GUEST, "--post-copy 2")?.wait(MOMENT)?;
    let report = runs_on(sent, Outcome::Failed, 1)?;
    ensure!(report.reason.contains("no userfaultfd") && report.reason.contains("post-copy"), "{}", report.to_json());
    ensure!(report.rounds.is_empty(), "pages moved: {}", report.to_json());
    receiver.next_report(MOMENT)?;
    // Where post-copy is only one of the ways, there are others.
    receiver.send(GUEST, "--post-copy auto")?.wait(MOMENT)?.expect(0)?;
    has_arrived(&mut receiver)?;
    still_serves(&mut receiver)
}
