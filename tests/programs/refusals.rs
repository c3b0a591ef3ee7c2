//! Guests that a receiver will not have: both sides say why.

use anyhow::{Result, ensure};
use pageferry::stats::Outcome;

use crate::processes::MOMENT;
use crate::{GUEST, receiver, runs_on, still_serves};

/// Fails unless a receiver with `flags` refuses the guest with these words, at both ends.
fn refuses(flags: &str, guest: &str, words: &[&str]) -> Result<()> {
    let mut receiver = receiver(flags)?;
    let sent = runs_on(receiver.send(guest, "")?.wait(MOMENT)?, Outcome::Refused, 3)?;
    let received = receiver.next_report(MOMENT)?;
    ensure!(received.outcome == Outcome::Refused, "{}", received.to_json());
    let said = receiver.process.kill()?;
    for word in words {
        ensure!(sent.reason.contains(word), "the sender says: {}", sent.reason);
        ensure!(received.reason.contains(word), "the receiver reports: {}", received.reason);
        ensure!(said.stderr.contains(word), "the receiver says: {said}");
    }
    Ok(())
}

#[test]
fn a_kind_that_is_not_allowed() -> Result<()> {
    refuses("--allow kvm", GUEST, &["workload", "not allowed"])
}

#[test]
fn more_memory_than_the_limit() -> Result<()> {
    refuses("--max-memory 63MiB", GUEST, &["64 MiB", "63 MiB", "limit"])
}

#[test]
fn more_memory_than_the_host_has() -> Result<()> {
    // Empty memory costs the sender nothing, so it can offer what no host has.
    refuses("", "workload:memory=512GiB,fill=16MiB,working-set=4MiB", &["512 GiB", "memory of this host"])
}

#[test]
fn one_session_too_many() -> Result<()> {
    let receiver = receiver("--max-sessions 1")?;
    let mut first = receiver.send(GUEST, crate::SLOWLY)?;
    first.stderr.next_with("copying", MOMENT)?;
    let refused = runs_on(receiver.send(GUEST, "")?.wait(MOMENT)?, Outcome::Refused, 3)?;
    ensure!(refused.reason.contains("no more sessions"), "{}", refused.reason);
    first.wait(MOMENT)?.expect(0)?;
    receiver.process.wait(MOMENT)?.expect(0).map(drop)
}

#[test]
fn a_refusal_leaves_the_receiver_as_it_was() -> Result<()> {
    let mut receiver = receiver("--max-memory 64MiB")?;
    for _ in 0..2 {
        receiver.send("workload:memory=128MiB", "")?.wait(MOMENT)?.expect(3)?;
        ensure!(receiver.next_report(MOMENT)?.outcome == Outcome::Refused);
        still_serves(&mut receiver)?;
    }
    Ok(())
}
