//! Many guests at once, by one sender to one receiver: do all of them arrive, and does one that fails leave the others alone?
//!
//! ```text
//! tests/run batch            # and 100 guests over a cable, by TLS, and in post-copy; plain `cargo test` leaves it out
//! tests/run batch --quick    # within a minute
//! ```
//! Every guest is accounted for in each case: it has arrived, where it ran and was checked, or it is proven to run at the
//! source; as many have arrived by the receiver's count as have gone by the sender's.
//! - 100 guests of 32 MiB at once over loopback, and, with root and iproute2, between two network namespaces. The longest
//!   gap that any of them felt is printed; whether it is short is for `benches/many` to say, on a machine with nothing else to do.
//! - Guests that fail among guests that do not: one too large for the receiver, one of a kind that it does not take, one
//!   whose connection breaks. The exit code is that of the worst.
//! - Post-copy and TLS, for all of them. Order. A bandwidth, and that it is shared evenly. An interrupt: who has not gone stays.
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod processes;

#[cfg(feature = "tls")]
#[path = "../certificates/mod.rs"]
mod certificates;

#[path = "../links/network.rs"]
#[expect(dead_code, reason = "the tests of links use the rest")]
mod network;

mod relay;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pageferry::stats::{BatchReport, GuestOwner, Outcome, Report};
use processes::tally::{Tally, Verdict, clean_up_at_interrupt};
use processes::{Ended, Listening, Process, RECEIVE, SEND, command, kvm, parse, userfaultfd};

use network::{DESTINATION, End, Network};

fn main() -> ExitCode {
    clean_up_at_interrupt(network::remove).expect("signals can be watched");
    let mut tally = Tally::default();
    if std::env::args().len() == 1 {
        tally.case("all of it", || Ok(Verdict::Skipped("it takes a minute: tests/run batch".into())));
        return tally.finish();
    }
    let full = std::env::args().any(|argument| argument == "--full");
    let many = if full { 100 } else { 20 };
    tally.case("100 guests over loopback", || all_arrive(100, "", &Way::Loopback));
    tally.case("100 guests over a cable", || if full { over_a_cable() } else { Ok(Verdict::Skipped("not with --quick".into())) });
    tally.case("guests that are refused among others", refused);
    tally.case("a guest whose connection breaks among others", broken);
    tally.case(&format!("{many} guests in post-copy"), || match userfaultfd() {
        Err(reason) => Ok(Verdict::Skipped(reason)),
        Ok(()) => all_arrive(many, "--post-copy 0", &Way::Loopback),
    });
    tally.case(&format!("{many} guests by TLS"), || secure(many));
    tally.case("in order of priority, one at a time", in_order);
    tally.case("a bandwidth for all together", bandwidth);
    tally.case("an interrupt", interrupted);
    tally.finish()
}

/// How the two programs come together.
enum Way {
    Loopback,
    Cable(Network),
}

/// Both ends' account of a batch.
struct Both {
    sent: Ended,
    guests: Vec<Report>,
    batch: BatchReport,
    received: Vec<Report>,
}

impl Way {
    fn receiver(&self, flags: &str) -> Result<Listening> {
        match self {
            Self::Loopback => Listening::start("127.0.0.1:0", flags),
            Self::Cable(network) => {
                let flags = format!("--listen {DESTINATION}:0 --insecure --json - {flags}");
                Listening::start_as(network.command(End::Destination, RECEIVE, &flags))
            }
        }
    }

    fn sender(&self, flags: &str) -> Command {
        match self {
            Self::Loopback => command(SEND, flags),
            Self::Cable(network) => network.command(End::Source, SEND, &format!("--insecure {flags}")),
        }
    }
}

/// A guest of 32 MiB that is busy with an eighth of it.
fn guest(seed: usize) -> String {
    format!("workload:memory=32MiB,working-set=4MiB,rate=500,seed={seed}")
}

/// So many of them, all at once.
fn guests(count: usize) -> Vec<String> {
    [format!("concurrency {count}")].into_iter().chain((1..=count).map(guest)).collect()
}

/// Moves a batch to `address` and accounts for every guest.
fn send(
    way: &Way,
    mut receiver: Listening,
    address: &str,
    lines: &[String],
    flags: &str,
    while_it_goes: impl FnOnce(&mut Process) -> Result<()>,
) -> Result<Both> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), lines.join("\n"))?;
    let mut sender = Process::start(way.sender(&format!("--to {address} --batch {} --json - {flags}", file.path().display())))?;
    while_it_goes(&mut sender)?;
    let sent = sender.wait(LIMIT)?;
    let mut objects: Vec<&str> = sent.stdout.lines().collect();
    let batch: BatchReport = serde_json::from_str(objects.pop().with_context(|| format!("no report: {sent}"))?)?;
    let guests = objects.into_iter().map(parse).collect::<Result<Vec<_>>>()?;
    // Those that the receiver has heard of: whoever was not called off before it began, or never came that far.
    let mut received = Vec::new();
    while received.iter().filter(|report: &&Report| report.outcome == Outcome::Completed).count() < batch.completed {
        received.push(receiver.next_report(LIMIT).with_context(|| format!("the receiver has too few guests; {sent}"))?);
    }
    ensure!(receiver.process.is_running()?, "the receiver has ended: {sent}");
    received.extend(receiver.process.kill()?.stdout.lines().skip(received.len()).map(parse).collect::<Result<Vec<_>>>()?);
    let both = Both { sent, guests, batch, received };
    both.account(lines.iter().filter(|line| !line.starts_with("concurrency")).count())?;
    Ok(both)
}

impl Both {
    /// Each guest has one owner, and is sound there.
    fn account(&self, guests: usize) -> Result<()> {
        let Self { sent, batch, received, .. } = self;
        let names: std::collections::BTreeSet<_> = self.guests.iter().filter_map(|report| report.guest.clone()).collect();
        ensure!(self.guests.len() == guests && names.len() == guests && batch.guests == guests, "{} of {guests} reports: {sent}", names.len());
        let ended = batch.completed + batch.aborted + batch.refused + batch.failed;
        ensure!(batch.kind == "batch" && ended == guests && batch.in_doubt == 0, "counts: {sent}");
        for report in &self.guests {
            let moved = report.outcome == Outcome::Completed && report.guest_owner == GuestOwner::Destination;
            let stayed =
                report.outcome != Outcome::Completed && report.guest_owner == GuestOwner::Source && report.guest_check.as_deref() == Some("ok");
            ensure!(moved || stayed, "{}", report.to_json());
        }
        for report in received {
            let arrived = report.outcome == Outcome::Completed && report.guest_check.as_deref() == Some("ok");
            let never_ran = report.outcome != Outcome::Completed && report.guest_owner == GuestOwner::Source && report.guest_gap.is_none();
            ensure!(arrived || never_ran, "{}", report.to_json());
        }
        let arrived = received.iter().filter(|report| report.outcome == Outcome::Completed).count();
        ensure!(arrived == batch.completed, "{arrived} have arrived of {} that have gone", batch.completed);
        Ok(())
    }

    /// What there is to see.
    fn seen(&self) -> String {
        let gap = self.received.iter().filter_map(|report| report.guest_gap).max().unwrap_or_default();
        let downtime = self.batch.longest_downtime.unwrap_or_default();
        format!(
            "{} guests in {:.2} s, {:.0} MB/s of memory, longest downtime {:.0} ms, longest gap {:.0} ms",
            self.batch.completed,
            self.batch.total.as_secs_f64(),
            self.batch.memory_bytes_per_second as f64 / 1e6,
            downtime.as_secs_f64() * 1e3,
            gap.as_secs_f64() * 1e3,
        )
    }

    fn expect(self, code: i32) -> Result<Self> {
        ensure!(self.sent.code == Some(code), "expected exit code {code}: {}", self.sent);
        Ok(self)
    }

    fn reason(&self, guest: &str) -> Result<(Outcome, &str)> {
        let report = self.guests.iter().find(|report| report.guest.as_deref() == Some(guest)).with_context(|| format!("no report of {guest}"))?;
        Ok((report.outcome, &report.reason))
    }
}

fn nothing(_: &mut Process) -> Result<()> {
    Ok(())
}

fn all_arrive(count: usize, flags: &str, way: &Way) -> Result<Verdict> {
    let receiver = way.receiver("")?;
    let address = receiver.address.clone();
    let both = send(way, receiver, &address, &guests(count), flags, nothing)?.expect(0)?;
    ensure!(both.batch.completed == count, "{}", both.sent);
    Ok(Verdict::Passed(both.seen()))
}

fn over_a_cable() -> Result<Verdict> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Verdict::Skipped("needs root, for network namespaces".into()));
    }
    match Network::new(None) {
        Ok(network) => all_arrive(100, "", &Way::Cable(network)),
        Err(error) => Ok(Verdict::Skipped(format!("no network namespaces: {error:#}"))),
    }
}

fn refused() -> Result<Verdict> {
    let receiver = Listening::start("127.0.0.1:0", "--max-memory 900MiB --allow workload")?;
    let mut lines = guests(16);
    lines.insert(3, "workload:memory=1GiB,fill=16MiB name=giant priority=1".into());
    if kvm().is_ok() {
        lines.insert(9, "kvm:memory=32MiB,rate=100 name=stranger".into());
    }
    let address = receiver.address.clone();
    let both = send(&Way::Loopback, receiver, &address, &lines, "", nothing)?.expect(3)?;
    ensure!(both.batch.completed == 16 && both.batch.completed + both.batch.refused == both.guests.len(), "{}", both.sent);
    let (outcome, reason) = both.reason("giant")?;
    ensure!(outcome == Outcome::Refused && reason.contains("the guest needs 1 GiB"), "{reason}");
    if kvm().is_ok() {
        let (outcome, reason) = both.reason("stranger")?;
        ensure!(outcome == Outcome::Refused && reason.contains("not allowed here"), "{reason}");
    }
    Ok(Verdict::Passed(both.seen()))
}

fn broken() -> Result<Verdict> {
    let receiver = Listening::start("127.0.0.1:0", "")?;
    let address = relay::start(&receiver.address)?;
    let both = send(&Way::Loopback, receiver, &address, &guests(16), "", nothing)?.expect(1)?;
    ensure!((both.batch.completed, both.batch.failed) == (15, 1), "{}", both.sent);
    Ok(Verdict::Passed(both.seen()))
}

#[cfg(feature = "tls")]
fn secure(count: usize) -> Result<Verdict> {
    let keys = certificates::good();
    let tls = format!("--tls {}", keys.path().display());
    let receiver = Listening::start("127.0.0.1:0", &tls)?;
    let address = receiver.address.clone();
    let both = send(&Way::Loopback, receiver, &address, &guests(count), &tls, nothing)?.expect(0)?;
    Ok(Verdict::Passed(both.seen()))
}

#[cfg(not(feature = "tls"))]
fn secure(_: usize) -> Result<Verdict> {
    Ok(Verdict::Skipped("built without the feature `tls`".into()))
}

fn in_order() -> Result<Verdict> {
    let receiver = Listening::start("127.0.0.1:0", "")?;
    let lines = ["concurrency 1".to_owned(), guest(1) + " name=third", guest(2) + " name=first priority=2", guest(3) + " name=second priority=1"];
    let address = receiver.address.clone();
    let both = send(&Way::Loopback, receiver, &address, &lines, "", nothing)?.expect(0)?;
    let order: Vec<_> = both.guests.iter().filter_map(|report| report.guest.as_deref()).collect();
    ensure!(order == ["first", "second", "third"], "{order:?}");
    Ok(Verdict::Passed(order.join(", ")))
}

/// Together they keep to it, and it is shared evenly: equal guests send at much the same rate.
fn bandwidth() -> Result<Verdict> {
    let receiver = Listening::start("127.0.0.1:0", "")?;
    let address = receiver.address.clone();
    let both = send(&Way::Loopback, receiver, &address, &guests(16), "--bandwidth 200Mbit/s", nothing)?.expect(0)?;
    let mbits = both.batch.wire_bytes_per_second as f64 * 8e-6;
    ensure!(mbits < 200.0 * 1.02, "{mbits:.0} Mbit/s");
    // In the first round: what comes after it depends on what the guest wrote meanwhile.
    let first = both.guests.iter().filter_map(|report| report.rounds.first());
    let mut rates: Vec<f64> = first.map(|round| round.wire_bytes.0 as f64 * 8e-6 / round.duration.as_secs_f64()).collect();
    rates.sort_by(f64::total_cmp);
    let (slowest, median, fastest) = (rates[0], rates[rates.len() / 2], rates[rates.len() - 1]);
    // The fastest prove nothing: the last ones have the link for themselves.
    ensure!(slowest * UNEVEN > median, "one guest had {slowest:.1} Mbit/s where half of them had {median:.1} or more: {}", both.sent);
    Ok(Verdict::Passed(format!("{mbits:.0} of 200 Mbit/s, each guest had {slowest:.0} to {fastest:.0}, half of them {median:.0}; {}", both.seen())))
}

/// The guests that have not gone stay, those that have are there.
fn interrupted() -> Result<Verdict> {
    let receiver = Listening::start("127.0.0.1:0", "")?;
    let mut lines = guests(16);
    lines[0] = "concurrency 4".into();
    let address = receiver.address.clone();
    let both = send(&Way::Loopback, receiver, &address, &lines, "--bandwidth 200Mbit/s", |sender| {
        sender.stderr.next_with("moved in", LIMIT)?;
        sender.signal(Signal::SIGINT)
    })?;
    let both = both.expect(1)?;
    ensure!(both.batch.completed > 0 && both.batch.aborted > 0, "{}", both.sent);
    Ok(Verdict::Passed(format!("{} had gone, {} stayed", both.batch.completed, both.batch.aborted)))
}

/// How many times less than the others a guest would have to get for that to be unfair. It is paced to more than a second a guest,
/// so that one whose thread is kept from a processor for seconds does not seem to.
const UNEVEN: f64 = 4.0;
/// For one program.
const LIMIT: Duration = Duration::from_secs(120);
