//! Migrations that end before they are done: called off, given up, or with nowhere to write.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use pageferry::stats::Outcome;

use crate::processes::{MOMENT, RECEIVE, SEND, run};
use crate::{GUEST, SLOWLY, receiver, runs_on, still_serves, was_dropped};

/// A person or a supervisor calls it off in the middle.
fn called_off(signal: Signal) -> Result<()> {
    let mut receiver = receiver("")?;
    let mut sender = receiver.send(GUEST, SLOWLY)?;
    sender.stderr.next_with("copying", MOMENT)?;
    std::thread::sleep(Duration::from_millis(200));
    let since = Instant::now();
    sender.signal(signal)?;
    let report = runs_on(sender.wait(MOMENT)?, Outcome::Aborted, 1)?;
    ensure!(since.elapsed() < Duration::from_secs(5), "took {:?}", since.elapsed());
    ensure!(report.reason.contains("cancelled"), "{}", report.to_json());
    let dropped = was_dropped(&mut receiver)?;
    ensure!(dropped.reason.contains("cancelled"), "the destination does not know why: {}", dropped.to_json());
    still_serves(&mut receiver)
}

#[test]
fn ctrl_c_calls_it_off_and_the_guest_runs_on() -> Result<()> {
    called_off(Signal::SIGINT)
}

#[test]
fn sigterm_calls_it_off_and_the_guest_runs_on() -> Result<()> {
    called_off(Signal::SIGTERM)
}

#[test]
fn a_limit_may_end_it() -> Result<()> {
    let mut receiver = receiver("")?;
    let unending = format!("{GUEST},rate=max");
    let flags = "--bandwidth 400Mbit/s --downtime-limit 1ms --max-rounds 3 --on-limit abort";
    let report = runs_on(receiver.send(&unending, flags)?.wait(MOMENT)?, Outcome::Aborted, 1)?;
    ensure!(report.reason.contains("max-rounds") || report.reason.contains("plateau"), "{}", report.to_json());
    was_dropped(&mut receiver)?;
    still_serves(&mut receiver)
}

#[test]
fn a_timeout_may_end_it_in_the_middle_of_a_round() -> Result<()> {
    let mut receiver = receiver("")?;
    let report = runs_on(receiver.send(GUEST, &format!("{SLOWLY} --timeout 500ms --on-limit abort"))?.wait(MOMENT)?, Outcome::Aborted, 1)?;
    ensure!(report.reason.contains("timeout"), "{}", report.to_json());
    ensure!(report.total < Duration::from_millis(1500), "{}", report.to_json());
    was_dropped(&mut receiver)?;
    Ok(())
}

#[test]
fn a_full_disk_at_the_source_leaves_the_guest_there() -> Result<()> {
    let mut receiver = receiver("")?;
    let report = runs_on(receiver.send(GUEST, "--dump /dev/full")?.wait(MOMENT)?, Outcome::Failed, 1)?;
    ensure!(report.reason.contains("No space left"), "{}", report.to_json());
    was_dropped(&mut receiver)?;
    still_serves(&mut receiver)
}

#[test]
fn a_full_disk_at_the_destination_leaves_the_guest_at_the_source() -> Result<()> {
    let mut receiver = receiver("--dump /dev/full")?;
    let report = runs_on(receiver.send(GUEST, "")?.wait(MOMENT)?, Outcome::Failed, 1)?;
    let dropped = was_dropped(&mut receiver)?;
    for reason in [report.reason, dropped.reason] {
        ensure!(reason.contains("No space left"), "{reason}");
    }
    Ok(())
}

#[test]
fn files_that_cannot_be_written_are_named_before_anything_begins() -> Result<()> {
    for flag in ["--dump", "--json"] {
        for program in [format!("{SEND} --to 127.0.0.1:1 --guest {GUEST}"), format!("{RECEIVE} --listen 127.0.0.1:0")] {
            let (program, flags) = program.split_once(' ').expect("a program and its flags");
            let ended = run(program, &format!("{flags} {flag} /nonexistent/file"))?.expect(1)?;
            for word in [flag, "/nonexistent/file", "No such file"] {
                ensure!(ended.stderr.contains(word), "{ended}");
            }
            ensure!(!ended.stderr.contains("connecting") && !ended.stderr.contains("listening"), "{ended}");
        }
    }
    Ok(())
}

#[test]
fn a_report_that_cannot_be_written_does_not_undo_the_migration() -> Result<()> {
    let receiver = receiver("--max-sessions 1")?;
    let flags = format!("--to {} --guest {GUEST} --json /dev/full", receiver.address);
    let sent = run(SEND, &flags)?.expect(0)?;
    ensure!(sent.stderr.contains("the report could not be written"), "{sent}");
    Ok(())
}

#[test]
fn an_address_that_is_taken_is_named() -> Result<()> {
    let receiver = receiver("")?;
    let ended = run(RECEIVE, &format!("--listen {}", receiver.address))?.expect(1)?;
    ensure!(ended.stderr.contains(&receiver.address) && ended.stderr.contains("in use"), "{ended}");
    Ok(())
}
