//! Many guests, one after the other through the same processes: is everything given back?
//!
//! ```text
//! tests/run soak [--seconds N]               # 60: guests in post-copy
//! tests/run soak --quick                     # 8; plain `cargo test` leaves it out
//! tests/run soak --migrations N [--seed S]   # 1: guests and settings drawn by lot
//! ```
//! # In post-copy
//! Turn after turn as many guests as there are cores are moved side by side from this process to one receiver. Each writes
//! at random over all of its memory, as fast as it can, so that on every core a guest runs into missing pages while they
//! are pushed. Passed means: no turn hangs, every guest arrives and was checked, every missing page is counted once, and
//! between turns both processes have as many descriptors and threads and as much resident and locked memory as after the
//! first turns, which had every number of channels and rounds.
//!
//! # By lot
//! Each migration has its own guest (kind, memory from 20 to 64 MiB, fill, contents, pattern, rate), tracker, channels,
//! compression, deltas, backings, limits and what to do at them, post-copy, bandwidth and TLS, all from the seed. Each is
//! checked: both ends agree on who has the guest and on what crossed, and it is as it should be where it is. After the first
//! 60, at every twentieth, this process and all receivers have no more descriptors, userfaultfds, threads, mappings, resident
//! and locked memory than then. A failure names the migration's flags.
//!
//! Once with 1000 and seed 1, on two busy cores (Linux 6.18 without soft-dirty, whose tracker was skipped): all passed in
//! 457 s. 984 were moved and 16 called off by a limit; 567 went in post-copy, 494 were guests of KVM, 507 went over TLS, and
//! 11740 MiB crossed. From the 60th to the last, this process went from 16 descriptors, 10 threads, 91 mappings and 17.3 MiB
//! resident to 16, 10, 97 and 18.9 MiB; each of the four receivers kept 7 descriptors and one thread, went from 59 to 61
//! mappings at most, and from between 5.4 and 12.0 MiB resident to between 7.0 and 12.5 MiB (one of them, by 7.0 MiB, the
//! most). No userfaultfd and no locked memory was left anywhere.
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod processes;

#[cfg(feature = "tls")]
#[path = "../certificates/mod.rs"]
mod certificates;
mod holdings;
mod lottery;
mod settings;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdings::Holdings;
use pageferry::dirty::{self, Choice};
use pageferry::guests::{self, GuestSpec};
use pageferry::memory::Backing;
use pageferry::policy::{Limits, PostCopy};
use pageferry::source::{Migration, Outgoing};
use pageferry::stats::{GuestOwner, Outcome, Report};
use processes::tally::{Tally, Verdict, clean_up_at_interrupt};
use processes::{Listening, userfaultfd};

fn main() -> ExitCode {
    if std::env::var_os(ARENAS).is_none() {
        // With an arena for each of some threads the allocator keeps more for dozens of turns, and hides what is lost.
        let program = std::env::current_exe().expect("this program has a path");
        let error = Command::new(program).args(std::env::args_os().skip(1)).env(ARENAS, "1").exec();
        panic!("cannot be started again: {error}");
    }
    clean_up_at_interrupt(|| {}).expect("signals can be watched");
    let mut tally = Tally::default();
    if std::env::args().len() == 1 {
        tally.case("all of it", || Ok(Verdict::Skipped("it takes a minute: tests/run soak".into())));
        return tally.finish();
    }
    if let Some(migrations) = number("--migrations") {
        let seed = number("--seed").unwrap_or(1);
        tally.case(&format!("{migrations} migrations by lot, seed {seed}"), || lottery::soak(migrations, seed).map(Verdict::Passed));
        return tally.finish();
    }
    let full = std::env::args().any(|argument| argument == "--full");
    let seconds = number("--seconds").unwrap_or(if full { 60 } else { 8 });
    for (backing, share) in [(Backing::Anonymous, 0.7), (Backing::Memfd, 0.3)] {
        tally.case(&format!("{backing:?}"), || match userfaultfd() {
            Err(reason) => Ok(Verdict::Skipped(reason)),
            Ok(()) => soak(backing, Duration::from_secs(seconds).mul_f64(share)).map(Verdict::Passed),
        });
    }
    tally.finish()
}

/// What a flag says.
fn number(flag: &str) -> Option<u64> {
    let value = std::env::args().skip_while(|argument| argument != flag).nth(1)?;
    Some(value.parse().unwrap_or_else(|_| panic!("{flag} {value}: expected a number")))
}

/// What happened until now.
#[derive(Default)]
struct Sums {
    guests: u64,
    pages: u64,
    faults: u64,
    urgent: u64,
    longest_us: u64,
}

fn soak(backing: Backing, time: Duration) -> Result<String> {
    let flag = if backing == Backing::Memfd { "--backing memfd" } else { "" };
    let mut receiver = Listening::start("127.0.0.1:0", flag)?;
    let pids = [std::process::id(), receiver.process.pid()];
    let mut sums = Sums::default();
    let mut first: Option<[Holdings; 2]> = None;
    let since = Instant::now();
    let mut turns = 0;
    while since.elapsed() < time || turns < LEAST_TURNS {
        turn(turns, backing, &mut receiver, &mut sums).with_context(|| format!("turn {turns}"))?;
        turns += 1;
        match &first {
            None if turns < VARIETY => {}
            None => {
                thread::sleep(SETTLED);
                first = Some([Holdings::of(pids[0])?, Holdings::of(pids[1])?]);
            }
            Some(first) => {
                for ((name, pid), first) in ["sender", "receiver"].into_iter().zip(pids).zip(first) {
                    first.returns(pid, SETTLED).with_context(|| format!("the {name} after turn {turns}"))?;
                }
            }
        }
    }
    ensure!(receiver.process.is_running()?, "the receiver has ended");
    let Sums { guests, pages, faults, urgent, longest_us } = sums;
    ensure!(faults > 0, "no guest ever ran into a missing page");
    let resident: Vec<String> = pids.into_iter().map(|pid| Ok(Holdings::of(pid)?.resident())).collect::<Result<_>>()?;
    let before: Vec<String> = first.iter().flatten().map(Holdings::resident).collect();
    let resident = format!("resident {} at first, {} at last", before.join(" and "), resident.join(" and "));
    Ok(format!("{guests} guests in {turns} turns, {pages} pages, {faults} faults, {urgent} pages urgent, longest wait {longest_us} us, {resident}"))
}

/// As many guests as there are cores, there at the same time.
fn turn(number: u64, backing: Backing, receiver: &mut Listening, sums: &mut Sums) -> Result<()> {
    let cores = thread::available_parallelism()?.get();
    let (tell, told) = channel();
    for core in 0..cores {
        let (tell, address) = (tell.clone(), receiver.address.clone());
        // Not scoped: one that hangs must not keep this process from saying so.
        let run = move || migrate(&tell, number, core, backing, &address);
        thread::Builder::new().name(format!("guest {core}")).spawn(run)?;
    }
    drop(tell);
    let until = Instant::now() + LIMIT;
    for _ in 0..cores {
        let sent = match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(sent) => sent?,
            Err(RecvTimeoutError::Timeout) => bail!("hangs: a migration takes more than {LIMIT:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("a migration panicked"),
        };
        check(&sent, sums)?;
    }
    for _ in 0..cores {
        let report = receiver.next_report(LIMIT)?;
        ensure!(report.guest_check.as_deref() == Some("ok"), "the guest that arrived: {}", report.to_json());
        check(&report, sums)?;
        let post_copy = report.post_copy.expect("checked");
        sums.guests += 1;
        sums.pages += post_copy.pages.0;
        sums.urgent += post_copy.urgent_pages.0;
        sums.faults += post_copy.faults.unwrap_or(0);
        sums.longest_us = sums.longest_us.max(post_copy.fault_us.map_or(0, |times| times.max));
    }
    Ok(())
}

fn check(report: &Report, sums: &Sums) -> Result<()> {
    let completed = report.outcome == Outcome::Completed && report.guest_owner == GuestOwner::Destination;
    let post_copy = report.post_copy.as_ref().with_context(|| format!("no post-copy: {}", report.to_json()))?;
    let all = post_copy.urgent_pages + post_copy.bulk_pages;
    ensure!(completed && all == post_copy.pages && post_copy.recoveries == 0, "after {} guests: {}", sums.guests, report.to_json());
    Ok(())
}

/// One guest, from within this process.
fn migrate(tell: &Sender<Result<Report>>, number: u64, core: usize, backing: Backing, address: &str) {
    let migrated = || -> Result<Report> {
        let spec: GuestSpec =
            format!("workload:memory=64MiB,fill=48MiB,working-set=48MiB,pattern=random,rate=max,seed={}", number * 64 + core as u64 + 1).parse()?;
        let mut guest = guests::build_source(&spec, backing)?;
        let memory = Arc::clone(guest.memory());
        let mut tracker = dirty::open(Choice::Auto, &guest.tracked())?;
        guest.resume()?;
        let rounds = PostCopy::After(u32::try_from(number % 2).expect("0 or 1"));
        let channels = [1, 2, 4][usize::try_from(number % 3).expect("an index")];
        let limits = Limits { post_copy: rounds, ..Limits::default() };
        let outgoing =
            Outgoing { guest: &mut *guest, memory: &memory, tracker: &mut *tracker, kind: spec.kind().name().to_owned(), description: spec.keys() };
        match Migration::to(address.parse()?).channels(channels).limits(limits).run(outgoing) {
            Ok(completed) => Ok(completed.report),
            Err(failure) => bail!("{} has the guest: {}", failure.owner, failure.error.in_full()),
        }
    };
    // Nobody listens any more once another one failed.
    let _ = tell.send(migrated());
}

/// How many heaps glibc keeps; read as a process starts.
const ARENAS: &str = "MALLOC_ARENA_MAX";
/// Turns until every combination was there once.
const VARIETY: u64 = 6;
/// Enough to see something grow.
const LEAST_TURNS: u64 = VARIETY + 3;
/// Threads and descriptors are given back at leisure.
const SETTLED: Duration = Duration::from_secs(3);
/// For one turn.
const LIMIT: Duration = Duration::from_secs(60);
