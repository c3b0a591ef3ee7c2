//! The network fails around Commit, between real processes: never two owners, and none only in recorded doubt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pageferry::dirty::{self, Choice};
use pageferry::guests::{self, GuestSpec, TestGuest};
use pageferry::memory::Backing;
use pageferry::protocol::Timeouts;
use pageferry::source::{Failure, Migration, Outgoing};
use pageferry::stats::{GuestOwner, Outcome};
use pageferry::wire::{AnswerStatus, Message};

use crate::processes::{Ended, Listening, MOMENT, Process, SEND, command};
use crate::proxy::{Fate, Proxy, Tamper};
use crate::{GUEST, SLOWLY, has_arrived, receiver, runs_on, still_serves, was_dropped};

/// Cuts every connection at one message of the sender.
struct CutAt {
    message: &'static str,
    fate: Fate,
    heals: bool,
}

impl Tamper for CutAt {
    fn message(&self, message: &Message) -> Fate {
        if message.name() == self.message { self.fate } else { Fate::Pass }
    }

    fn heals(&self) -> bool {
        self.heals
    }
}

/// One migration through such a network.
fn send_through(receiver: &Listening, message: &'static str, fate: Fate, heals: bool) -> Result<Ended> {
    let proxy = Proxy::start(&receiver.address, CutAt { message, fate, heals })?;
    let since = Instant::now();
    // Time enough for a heartbeat, where one is waited for.
    let pace = if message == "Ping" { SLOWLY } else { "" };
    let sent = Process::start(command(SEND, &format!("--to {} --guest {GUEST} --json - {pace}", proxy.address)))?.wait(Duration::from_secs(40))?;
    ensure!(since.elapsed() < Duration::from_secs(30), "took {:?}: {sent}", since.elapsed());
    Ok(sent)
}

#[test]
fn nothing_lost_nothing_changed() -> Result<()> {
    let mut receiver = receiver("")?;
    send_through(&receiver, "nothing", Fate::Cut, true)?.expect(0)?;
    has_arrived(&mut receiver).map(drop)
}

#[test]
fn a_cut_before_commit_leaves_the_guest_at_the_source() -> Result<()> {
    let mut receiver = receiver("")?;
    for (message, fate) in [("Hello", Fate::PassThenCut), ("Ping", Fate::Cut), ("Finish", Fate::Cut), ("Finish", Fate::PassThenCut)] {
        runs_on(send_through(&receiver, message, fate, true)?, Outcome::Failed, 1)?;
        was_dropped(&mut receiver)?;
    }
    still_serves(&mut receiver)
}

#[test]
fn a_commit_that_is_lost_is_taken_back() -> Result<()> {
    let mut receiver = receiver("")?;
    runs_on(send_through(&receiver, "Commit", Fate::Cut, true)?, Outcome::Failed, 1)?;
    was_dropped(&mut receiver)?;
    still_serves(&mut receiver)
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again() -> Result<()> {
    let mut receiver = receiver("")?;
    send_through(&receiver, "Commit", Fate::PassThenCut, true)?.expect(0)?;
    has_arrived(&mut receiver)?;
    still_serves(&mut receiver)
}

#[test]
fn a_source_that_cannot_ask_is_in_doubt_and_keeps_the_guest_paused() -> Result<()> {
    for (fate, arrives) in [(Fate::Cut, false), (Fate::PassThenCut, true)] {
        let mut receiver = receiver("")?;
        let sent = send_through(&receiver, "Commit", fate, false)?.expect(4)?;
        let report = sent.report()?;
        ensure!(report.outcome == Outcome::InDoubt && report.guest_owner == GuestOwner::InDoubt, "{sent}");
        ensure!(sent.stderr.contains("IN DOUBT") && report.guest_check.is_none(), "a guest in doubt stays paused: {sent}");
        if arrives {
            has_arrived(&mut receiver)?;
        } else {
            was_dropped(&mut receiver)?;
        }
    }
    Ok(())
}

#[test]
fn a_release_that_is_lost_changes_nothing() -> Result<()> {
    let mut receiver = receiver("")?;
    send_through(&receiver, "Released", Fate::Cut, true)?.expect(0)?;
    has_arrived(&mut receiver)?;
    still_serves(&mut receiver)
}

#[test]
fn a_receiver_that_is_done_still_answers_a_source_in_doubt() -> Result<()> {
    let mut receiver = receiver("--max-sessions 1")?;
    send_through(&receiver, "Commit", Fate::PassThenCut, true)?.expect(0)?;
    has_arrived(&mut receiver)?;
    // Nobody can come back any more: it ends, without waiting for the tombstone to expire.
    receiver.process.wait(MOMENT)?.expect(0).map(drop)
}

/// Loses Commit, and everything after it until told otherwise.
pub(crate) struct CutUntil(pub(crate) Arc<AtomicBool>);

impl Tamper for CutUntil {
    fn message(&self, message: &Message) -> Fate {
        if message.name() == "Commit" { Fate::Cut } else { Fate::Pass }
    }

    fn heals(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Moves the guest from within this process, to be able to look at it afterwards. Gives up asking soon.
fn fail_to_migrate(guest: &mut dyn TestGuest, spec: &GuestSpec, address: &str) -> Result<Failure> {
    let memory = Arc::clone(guest.memory());
    let mut tracker = dirty::open(Choice::Auto, &guest.tracked())?;
    let outgoing = Outgoing { guest, memory: &memory, tracker: &mut *tracker, kind: spec.kind().name().to_owned(), description: spec.keys() };
    let timeouts = Timeouts { resolve: Duration::from_secs(2), ..Timeouts::default() };
    let migrated = Migration::to(address.parse()?).timeouts(timeouts).run(outgoing);
    Ok(*migrated.err().context("the guest has gone although Commit was lost")?)
}

#[test]
fn a_guest_in_doubt_stands_still_until_it_is_settled() -> Result<()> {
    let mut receiver = receiver("")?;
    let heals = Arc::new(AtomicBool::new(false));
    let proxy = Proxy::start(&receiver.address, CutUntil(Arc::clone(&heals)))?;
    let spec: GuestSpec = GUEST.parse()?;
    let mut guest = guests::build_source(&spec, Backing::Anonymous)?;
    guest.resume()?;
    let failure = fail_to_migrate(&mut *guest, &spec, &proxy.address)?;
    ensure!(failure.owner == GuestOwner::InDoubt, "{}", failure.report.to_json());
    let (writes, patience) = (guest.writes(), Duration::from_millis(200));
    std::thread::sleep(patience);
    ensure!(guest.writes() == writes, "a guest in doubt runs");
    guest.check()?;

    let in_doubt = failure.in_doubt.context("a way out of the doubt")?;
    ensure!(in_doubt.ask(patience).is_err(), "asked through a network that is cut");
    heals.store(true, Ordering::SeqCst);
    ensure!(in_doubt.ask(MOMENT)? == AnswerStatus::NeverStarted);
    was_dropped(&mut receiver)?;
    guest.resume()?;
    std::thread::sleep(patience);
    ensure!(guest.writes() > writes, "a guest that was given back does not run");
    Ok(guest.pause()?)
}
