//! `kill -9` at random moments: does exactly one side have the guest, or none with a recorded doubt?
//!
//! ```text
//! tests/run kills [--count N] [--seed N]     # 50 of each
//! tests/run kills --quick                    # 6 of each; plain `cargo test` leaves it out
//! ```
//! Half of the moments lie anywhere in the migration, the other half around its end; how long it takes is measured first.
//! - The receiver is killed: the sender ends with 1, its guest proven to run and checked; or with 4, if Commit may have
//!   been sent; or with 0, if the guest had gone. It never hangs, and a guest that was paused runs again at once.
//! - The sender is killed: the receiver, one for all of them, either never runs the guest, or has it whole and checked, and
//!   then the sender had come to the handover. After all of them it still takes a guest in.
//! - One of them is stopped (SIGSTOP) for longer than the other's patience, in the middle or in the handover, and then goes
//!   on: never do both have the guest, and never none unless the sender says that it is in doubt.
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod processes;

mod moments;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use moments::{CONNECTING, COPYING, Course, HANDOVER, Moment, PAUSED};
use nix::sys::signal::Signal;
use pageferry::stats::{GuestOwner, Outcome, Report};
use processes::random::Random;
use processes::tally::{Tally, Verdict, clean_up_at_interrupt, number};
use processes::{Ended, Listening, kvm};

fn main() -> ExitCode {
    clean_up_at_interrupt(|| {}).expect("signals can be watched");
    let mut tally = Tally::default();
    if std::env::args().len() == 1 {
        tally.case("all of it", || Ok(Verdict::Skipped("it takes a minute or more: tests/run kills".into())));
        return tally.finish();
    }
    let full = std::env::args().any(|argument| argument == "--full");
    let count = number("--count").unwrap_or(if full { 50 } else { 6 });
    let seed = number("--seed").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{count} of each, --seed {seed}, {} guest", kind());
    let mut random = Random(seed);
    match measure() {
        Ok(course) => {
            println!("undisturbed: {course:.1?}");
            kill_receivers(&mut tally, count, &course, &mut random);
            kill_senders(&mut tally, count, &course, &mut random);
            stop(&mut tally, count.div_ceil(10), &course, &mut random);
        }
        Err(error) => tally.case("an undisturbed migration", || Err(error)),
    }
    tally.finish()
}

fn kind() -> &'static str {
    if kvm().is_ok() { "kvm" } else { "workload" }
}

/// A guest of its own number: it is its seed.
fn guest(number: u64) -> String {
    format!("{}:memory=64MiB,fill=32MiB,working-set=8MiB,rate=20000,seed={number}", kind())
}

/// Several rounds in about half a second.
const PACE: &str = "--bandwidth 500Mbit/s --downtime-limit 20ms --max-rounds 4";

fn measure() -> Result<Course> {
    let receiver = Listening::start("127.0.0.1:0", "--max-sessions 1")?;
    let mut sender = receiver.send(&guest(0), PACE)?;
    let mut at = |line| sender.stderr.next_with(line, LIMIT).map(|_| Instant::now());
    let (begun, paused, handed) = (at(CONNECTING)?, at(PAUSED)?, at(HANDOVER)?);
    sender.wait(LIMIT)?.expect(0)?;
    let ended = Instant::now();
    receiver.process.wait(LIMIT)?.expect(0)?;
    Ok(Course { whole: ended - begun, pause: handed - paused, handover: ended - handed })
}

fn kill_receivers(tally: &mut Tally, count: u64, course: &Course, random: &mut Random) {
    for number in 0..count {
        let moment = Moment::choose(number, course, random);
        tally.case(&format!("receiver killed {moment}"), || {
            let receiver = Listening::start("127.0.0.1:0", "--max-sessions 1")?;
            let mut sender = receiver.send(&guest(number), PACE)?;
            moment.await_in(&mut sender)?;
            receiver.process.signal(Signal::SIGKILL)?;
            let sent = sender.wait(LIMIT)?;
            judge_sender(&sent)?;
            let stall = sent.report()?.stall;
            let stood = moment.since_pause();
            ensure!(stood.is_none_or(|stood| stall < stood + RESUMED), "the guest stood still for {stall:?}: {sent}");
            Ok(Verdict::Passed(format!("-> exit {}, stalled for {:.1} ms", sent.code.unwrap_or(-1), stall.as_secs_f64() * 1e3)))
        });
    }
}

fn kill_senders(tally: &mut Tally, count: u64, course: &Course, random: &mut Random) {
    let mut receiver = match Listening::start("127.0.0.1:0", "") {
        Ok(receiver) => receiver,
        Err(error) => return tally.case("a receiver for all senders", || Err(error)),
    };
    for number in 1..=count {
        let moment = Moment::choose(number, course, random);
        tally.case(&format!("sender killed {moment}"), || {
            let mut sender = receiver.send(&guest(number), PACE)?;
            moment.await_in(&mut sender)?;
            let said = sender.kill()?;
            if receiver.process.stderr.next_with(&format!("seed={number} is coming in"), Duration::from_secs(1)).is_err() {
                ensure!(!said.stderr.contains(COPYING), "copied to a receiver that knows nothing of it: {said}");
                return Ok(Verdict::Passed("-> it had not come in".into()));
            }
            let report = receiver.next_report(LIMIT)?;
            judge_receiver(&report)?;
            let arrived = report.guest_owner == GuestOwner::Destination;
            ensure!(!arrived || said.stderr.contains(HANDOVER), "the guest runs without a Commit: {}", report.to_json());
            Ok(Verdict::Passed(if arrived { "-> the guest has arrived".into() } else { format!("-> {}", report.reason) }))
        });
    }
    tally.case("the same receiver takes one more guest in", || {
        receiver.send(&guest(0), PACE)?.wait(LIMIT)?.expect(0)?;
        let report = receiver.next_report(LIMIT)?;
        judge_receiver(&report)?;
        ensure!(report.outcome == Outcome::Completed, "{}", report.to_json());
        ensure!(receiver.process.is_running()?, "the receiver has ended");
        Ok(Verdict::Passed(String::new()))
    });
}

/// Who is stopped for a while.
#[derive(Clone, Copy, Debug)]
enum Stopped {
    Receiver,
    Sender,
}

/// These wait a lot, so they wait together.
fn stop(tally: &mut Tally, count: u64, course: &Course, random: &mut Random) {
    let middle = Moment::new(COPYING, course.whole / 4);
    let mut cases = vec![(Stopped::Receiver, middle), (Stopped::Sender, middle)];
    for _ in 0..count {
        cases.extend([Stopped::Receiver, Stopped::Sender].map(|who| (who, Moment::in_the_handover(course, random))));
    }
    for some in cases.chunks(4) {
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for &(who, moment) in some {
                let results = &results;
                scope.spawn(move || {
                    let result = stopped(who, moment);
                    results.lock().expect("no case panics").push((who, moment, result));
                });
            }
        });
        for (who, moment, result) in results.into_inner().expect("no case panics") {
            tally.case(&format!("{who:?} stopped {moment}"), || result);
        }
    }
}

fn stopped(who: Stopped, moment: Moment) -> Result<Verdict> {
    let mut receiver = Listening::start("127.0.0.1:0", "")?;
    let mut sender = receiver.send(&guest(0), PACE)?;
    moment.await_in(&mut sender)?;
    let since = Instant::now();
    let (sent, received, noticed) = match who {
        Stopped::Receiver => {
            receiver.process.signal(Signal::SIGSTOP)?;
            let sent = sender.wait(LIMIT)?;
            let noticed = since.elapsed();
            receiver.process.signal(Signal::SIGCONT)?;
            (sent, receiver.next_report(LIMIT)?, noticed)
        }
        Stopped::Sender => {
            // One that has just ended by itself cannot be stopped.
            let is_stopped = sender.is_running()? && sender.signal(Signal::SIGSTOP).is_ok();
            let received = receiver.next_report(LIMIT)?;
            let noticed = since.elapsed();
            if is_stopped {
                // One that was on its way out has ended all the same.
                sender.hand().signal(Signal::SIGCONT)?;
            }
            (sender.wait(LIMIT)?, received, noticed)
        }
    };
    judge_sender(&sent)?;
    judge_receiver(&received)?;
    let both = || format!("{sent}\nreceiver: {}", received.to_json());
    match (sent.code, received.guest_owner) {
        (Some(0), GuestOwner::Destination) | (Some(1), GuestOwner::Source) | (Some(4), _) => {}
        (Some(0), _) => bail!("nobody has the guest: {}", both()),
        _ => bail!("both have the guest: {}", both()),
    }
    ensure!(noticed < NOTICED || sent.code == Some(4), "noticed after {noticed:?}: {}", both());
    ensure!(receiver.process.is_running()?, "the receiver has ended: {}", both());
    Ok(Verdict::Passed(format!("-> exit {}, {} has it; after {:.1} s", sent.code.unwrap_or(-1), received.guest_owner, noticed.as_secs_f64())))
}

/// A sender says where the guest is, and if it is there, that it runs.
fn judge_sender(sent: &Ended) -> Result<()> {
    let report = sent.report()?;
    let check = report.guest_check.as_deref();
    let sound = match sent.code.with_context(|| format!("the sender crashed: {sent}"))? {
        0 => report.outcome == Outcome::Completed && report.guest_owner == GuestOwner::Destination,
        1 => report.outcome == Outcome::Failed && report.guest_owner == GuestOwner::Source && check == Some("ok"),
        4 => report.outcome == Outcome::InDoubt && report.guest_owner == GuestOwner::InDoubt && sent.stderr.contains(HANDOVER),
        _ => false,
    };
    ensure!(sound, "{sent}");
    Ok(())
}

/// A receiver has the guest, running and checked, or never ran it.
fn judge_receiver(report: &Report) -> Result<()> {
    let check = report.guest_check.as_deref();
    let sound = match report.outcome {
        Outcome::Completed => report.guest_owner == GuestOwner::Destination && check == Some("ok"),
        Outcome::Failed | Outcome::Aborted => report.guest_owner == GuestOwner::Source && check.is_none() && report.guest_gap.is_none(),
        _ => false,
    };
    ensure!(sound, "{}", report.to_json());
    Ok(())
}

/// Fifteen seconds to notice that the peer says nothing, and what it takes to check a guest and to say so.
const NOTICED: Duration = Duration::from_secs(17);
/// A guest runs on within 100 ms of the failure being noticed, and that of a killed process is noticed within a few more.
const RESUMED: Duration = Duration::from_millis(130);
/// Longer than anything should ever hang.
const LIMIT: Duration = Duration::from_secs(40);
