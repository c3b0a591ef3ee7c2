//! Many guests by one sender: what is said of them. Whether they arrive, a hundred at a time, is tested in `tests/batch`.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pageferry::stats::{BatchReport, GuestOwner, Outcome, Report};

use crate::handover::CutUntil;
use crate::processes::{Ended, Listening, MOMENT, Process, SEND, command, parse, run, userfaultfd};
use crate::proxy::Proxy;
use crate::{GUEST, has_arrived, receiver};

/// A file of this text.
fn file(text: &str) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(text.as_bytes())?;
    Ok(file)
}

#[test]
fn each_guest_has_a_line_of_its_own_and_the_batch_the_last_one() -> Result<()> {
    let mut receiver = Listening::start("127.0.0.1:0", "--max-sessions 3 --allow workload --max-memory 100MiB")?;
    let guests = file("workload:memory=20MiB,working-set=1MiB name=a\nworkload:memory=200MiB name=b\nworkload:memory=20MiB,working-set=1MiB name=c")?;
    let ended = run(SEND, &format!("--to {} --batch {} --json -", receiver.address, guests.path().display()))?.expect(3)?;
    let lines: Vec<&str> = ended.stdout.lines().collect();
    ensure!(lines.len() == 4, "{ended}");
    let mut outcomes = lines[..3].iter().map(|line| parse(line)).collect::<Result<Vec<_>>>()?;
    outcomes.sort_by(|one, other| one.guest.cmp(&other.guest));
    let outcomes: Vec<_> = outcomes.iter().map(|report| (report.guest.as_deref(), report.outcome)).collect();
    ensure!(outcomes == [(Some("a"), Outcome::Completed), (Some("b"), Outcome::Refused), (Some("c"), Outcome::Completed)], "{ended}");
    let batch: BatchReport = serde_json::from_str(lines[3])?;
    ensure!((batch.guests, batch.completed, batch.refused) == (3, 2, 1) && batch.total > Duration::ZERO, "{ended}");
    for line in ["a: moved in", "b: REFUSED: ", "c: moved in"] {
        ensure!(ended.stderr.lines().any(|said| said.starts_with(line)), "{line}: {ended}");
    }
    ensure!((0..3).all(|_| receiver.next_report(MOMENT).is_ok()), "three reports there, too");
    receiver.process.wait(MOMENT)?.expect(0)?;
    Ok(())
}

#[test]
fn a_file_that_makes_no_sense_is_refused_before_anything_starts() -> Result<()> {
    let bad = file("workload:memory=32MiB\ndisk:memory=1GiB\n")?;
    let ended = run(SEND, &format!("--to 127.0.0.1:1 --batch {}", bad.path().display()))?.expect(2)?;
    ensure!(ended.stderr.contains("line 2: there is no guest kind \"disk\""), "{ended}");
    let ended = run(SEND, "--to 127.0.0.1:1 --batch -")?.expect(2)?;
    ensure!(ended.stderr.starts_with("--batch -: no guest in it"), "{ended}");
    let ended = run(SEND, "--to 127.0.0.1:1 --batch /nonexistent")?.expect(1)?;
    ensure!(ended.stderr.contains("--batch /nonexistent: cannot be read"), "{ended}");
    Ok(())
}

/// A sender of a batch in post-copy, if guests can run here before their memory is there.
fn post_copy(address: &str, guests: &tempfile::NamedTempFile, flags: &str) -> Result<Option<Process>> {
    if let Err(reason) = userfaultfd() {
        println!("skipped: {reason}");
        return Ok(None);
    }
    let flags = format!("--to {address} --batch {} --json - --post-copy 0 --compress none {flags}", guests.path().display());
    Process::start(command(SEND, &flags)).map(Some)
}

/// Interrupts a sender that waits for stranded guests only, as often as it takes.
fn give_up(mut sender: Process) -> Result<Ended> {
    sender.signal(Signal::SIGTERM)?;
    sender.stderr.next_with("interrupt again to give it up", MOMENT)?;
    ensure!(sender.is_running()?, "the sender has let go of the memory");
    sender.signal(Signal::SIGINT)?;
    sender.wait(MOMENT)
}

/// What a batch that has ended says of all guests, and what was said last of one.
fn last_words(sent: &Ended, guest: &str) -> Result<(BatchReport, Report)> {
    let mut lines: Vec<&str> = sent.stdout.lines().collect();
    let batch = serde_json::from_str(lines.pop().context("no line")?).with_context(|| format!("no sum: {sent}"))?;
    let reports = lines.into_iter().map(parse).collect::<Result<Vec<_>>>()?;
    let last = reports.into_iter().rfind(|report| report.guest.as_deref() == Some(guest));
    Ok((batch, last.with_context(|| format!("no line of {guest}: {sent}"))?))
}

#[test]
fn a_guest_that_is_stranded_holds_up_no_other_and_has_its_line_in_the_end() -> Result<()> {
    let first = receiver("")?;
    let guests = file(&format!("concurrency 1\n{GUEST} name=a\n{GUEST} name=b\n{GUEST} name=c\n"))?;
    let Some(mut sender) = post_copy(&first.address, &guests, "--bandwidth 20Mbit/s --recover-for 5s")? else { return Ok(()) };
    sender.stderr.next_with("b: the guest runs at the destination", MOMENT)?;
    let address = first.address.clone();
    first.process.kill()?;
    // Another in its place knows nothing of the guest that the first one had, and takes the next one in.
    let mut second = Listening::start(&address, "")?;
    sender.stderr.next_with("b: STRANDED", MOMENT)?;
    let stranded = parse(&sender.stdout.next_with("\"b\"", MOMENT)?)?;
    ensure!(stranded.outcome == Outcome::Failed && stranded.guest_owner == GuestOwner::Destination, "{}", stranded.to_json());
    sender.stderr.next_with("c: moved in", MOMENT)?;
    sender.stdout.next_with("\"c\"", MOMENT)?;
    has_arrived(&mut second)?;
    sender.stderr.next_with("2 of 3 guests moved, 1 STRANDED", MOMENT)?;

    let sent = give_up(sender)?.expect(1)?;
    let (batch, last) = last_words(&sent, "b")?;
    ensure!((batch.guests, batch.completed, batch.failed) == (3, 2, 1), "{sent}");
    ensure!(last.outcome == Outcome::Failed && last.guest_owner == GuestOwner::Destination && last.reason.contains("given up"), "{sent}");
    ensure!(sent.stderr.contains("b: FAILED: "), "{sent}");
    Ok(())
}

#[test]
fn guests_that_are_served_when_all_is_given_up_have_their_lines() -> Result<()> {
    let receiver = receiver("")?;
    let guests = file(&format!("{GUEST} name=a\n{GUEST} name=b\n"))?;
    let Some(mut sender) = post_copy(&receiver.address, &guests, "--bandwidth 20Mbit/s")? else { return Ok(()) };
    for _ in 0..2 {
        sender.stderr.next_with("the guest runs at the destination", MOMENT)?;
    }
    let sent = give_up(sender)?.expect(1)?;
    for guest in ["a", "b"] {
        let (batch, last) = last_words(&sent, guest)?;
        ensure!((batch.guests, batch.failed) == (2, 2), "{sent}");
        ensure!(last.outcome == Outcome::Failed && last.guest_owner == GuestOwner::Destination && last.post_copy.is_some(), "{sent}");
    }
    Ok(())
}

#[test]
fn a_batch_whose_guest_is_in_doubt_ends_in_doubt() -> Result<()> {
    let receiver = receiver("")?;
    let proxy = Proxy::start(&receiver.address, CutUntil(Arc::new(AtomicBool::new(false))))?;
    let guests = file(&format!("{GUEST} name=a\n"))?;
    let Some(mut sender) = post_copy(&proxy.address, &guests, "--recover-for 300ms")? else { return Ok(()) };
    sender.stderr.next_with("a: STRANDED", MOMENT)?;
    let sent = give_up(sender)?.expect(4)?;
    let (batch, last) = last_words(&sent, "a")?;
    ensure!((batch.guests, batch.in_doubt) == (1, 1), "{sent}");
    ensure!(last.outcome == Outcome::InDoubt && last.guest_owner == GuestOwner::InDoubt && last.guest_check.is_none(), "{sent}");
    ensure!(sent.stderr.contains("a: IN DOUBT: "), "{sent}");
    Ok(())
}
