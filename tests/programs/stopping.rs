//! A receiver that is told to end: before Commit guests stay where they are, from Commit on they arrive.

use std::net::TcpStream;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use pageferry::stats::Outcome;

use crate::processes::{MOMENT, userfaultfd};
use crate::{GUEST, SLOWLY, has_arrived, receiver, runs_on, was_dropped};

const TOLD: &str = "the receiver is told to end";

#[test]
fn an_idle_receiver_ends_at_once_whoever_stands_at_its_door() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let receiver = receiver("")?;
        let _silent = TcpStream::connect(&receiver.address)?;
        receiver.process.signal(signal)?;
        let ended = receiver.process.wait(MOMENT)?.expect(0)?;
        ensure!(ended.stderr.contains("told to end"), "{ended}");
    }
    Ok(())
}

#[test]
fn before_commit_the_guest_stays_and_both_ends_know_why() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut receiver = receiver("")?;
        let mut sender = receiver.send(GUEST, SLOWLY)?;
        sender.stderr.next_with("copying", MOMENT)?;
        receiver.process.signal(signal)?;
        let report = runs_on(sender.wait(MOMENT)?, Outcome::Failed, 1)?;
        ensure!(report.reason.contains(TOLD), "{}", report.to_json());
        let dropped = was_dropped(&mut receiver)?;
        ensure!(dropped.reason.contains(TOLD), "{}", dropped.to_json());
        receiver.process.wait(MOMENT)?.expect(0)?;
    }
    Ok(())
}

#[test]
fn a_guest_that_runs_ahead_of_its_memory_gets_all_of_it_and_nobody_else_comes_in() -> Result<()> {
    if let Err(reason) = userfaultfd() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let mut receiver = receiver("")?;
    let mut sender = receiver.send(GUEST, "--post-copy 0 --compress none --bandwidth 40Mbit/s")?;
    sender.stderr.next_with("the guest runs at the destination", MOMENT)?;
    receiver.process.signal(Signal::SIGTERM)?;
    receiver.process.stderr.next_with("still need", MOMENT)?;
    let late = runs_on(receiver.send(GUEST, "")?.wait(MOMENT)?, Outcome::Refused, 3)?;
    ensure!(late.reason.contains(TOLD), "{}", late.to_json());
    sender.wait(MOMENT)?.expect(0)?;
    let arrived = has_arrived(&mut receiver)?;
    ensure!(arrived.post_copy.is_some_and(|post_copy| post_copy.pages.0 > 0), "it did not come to post-copy");
    receiver.process.wait(MOMENT)?.expect(0).map(drop)
}
