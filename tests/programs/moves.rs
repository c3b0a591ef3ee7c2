//! Migrations that go well, in other ways than the usual.

use anyhow::{Context, Result, ensure};
use pageferry::stats::RoundKind;
use tempfile::TempDir;

use crate::processes::{Listening, MOMENT, compare};
use crate::{GUEST, GUEST_BYTES, SLOWLY, has_arrived, receiver};

#[test]
fn no_rounds_is_a_cold_migration() -> Result<()> {
    let mut receiver = receiver("")?;
    let sent = receiver.send(GUEST, "--max-rounds 0")?.wait(MOMENT)?.expect(0)?.report()?;
    let received = has_arrived(&mut receiver)?;
    for report in [&sent, &received] {
        let [round] = report.rounds.as_slice() else { anyhow::bail!("{}", report.to_json()) };
        ensure!(round.kind == RoundKind::Cold && round.index == 0 && round.decision.is_none(), "{}", report.to_json());
    }
    ensure!(sent.downtime > sent.preparation, "all of it is downtime: {}", sent.to_json());
    Ok(())
}

#[test]
fn a_guest_that_is_held_stays_as_it_was_paused() -> Result<()> {
    let directory = TempDir::new()?;
    let [source, destination] = ["source", "destination"].map(|name| directory.path().join(name));
    let mut receiver = receiver(&format!("--hold --dump {}", destination.display()))?;
    receiver.send(GUEST, &format!("--dump {}", source.display()))?.wait(MOMENT)?.expect(0)?;
    let received = has_arrived(&mut receiver)?;
    ensure!(received.guest_gap.is_none(), "a guest that does not run feels no gap: {}", received.to_json());
    compare(&source, &destination, GUEST_BYTES)
}

#[test]
fn a_unix_socket_serves_as_well() -> Result<()> {
    let directory = TempDir::new()?;
    let path = directory.path().join("socket");
    for _ in 0..2 {
        // The second finds what the first left behind, if it leaves anything.
        let receiver = Listening::start(&format!("unix:{}", path.display()), "--max-sessions 1")?;
        ensure!(receiver.address == format!("unix:{}", path.display()), "listens on {}", receiver.address);
        receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?;
        let received = receiver.process.wait(MOMENT)?.expect(0)?.report()?;
        ensure!(received.guest_check.as_deref() == Some("ok"), "{}", received.to_json());
    }
    Ok(())
}

#[test]
fn port_zero_takes_a_free_one_and_says_which() -> Result<()> {
    let (one, other) = (receiver("")?, receiver("")?);
    let port = |receiver: &Listening| receiver.address.rsplit_once(':')?.1.parse::<u16>().ok();
    let ports = [port(&one).context("a port")?, port(&other).context("a port")?];
    ensure!(ports[0] != ports[1] && !ports.contains(&0), "{ports:?}");
    Ok(())
}

#[test]
fn two_guests_arrive_side_by_side() -> Result<()> {
    let mut receiver = receiver("--max-sessions 2")?;
    let mut senders = [1, 2].map(|seed| receiver.send(&format!("{GUEST},seed={seed}"), SLOWLY));
    for sender in &mut senders {
        sender.as_mut().map_err(|error| anyhow::anyhow!("{error}"))?.stderr.next_with("copying", MOMENT)?;
    }
    for sender in senders {
        sender?.wait(MOMENT)?.expect(0)?;
        has_arrived(&mut receiver)?;
    }
    receiver.process.wait(MOMENT)?.expect(0)?;
    Ok(())
}

#[test]
fn a_receiver_counts_its_sessions() -> Result<()> {
    let mut receiver = receiver("--max-sessions 3")?;
    for _ in 0..3 {
        ensure!(receiver.process.is_running()?, "the receiver has ended early");
        receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?;
        has_arrived(&mut receiver)?;
    }
    receiver.process.wait(MOMENT)?.expect(0)?;
    Ok(())
}

#[test]
fn a_guest_may_run_for_a_while_first() -> Result<()> {
    let receiver = receiver("--max-sessions 1")?;
    let began = std::time::Instant::now();
    let sent = receiver.send(GUEST, "--warm-up 700ms")?.wait(MOMENT)?.expect(0)?.report()?;
    ensure!(began.elapsed() - sent.total > std::time::Duration::from_millis(700), "{}", sent.to_json());
    Ok(())
}
