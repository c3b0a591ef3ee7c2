//! Migrations over real links: are the promises about time kept, and is a cut cable survived?
//!
//! ```text
//! tests/run links            # plain `cargo test` leaves it out
//! ```
//! Two network namespaces with a veth between them stand for two hosts; `tc tbf` makes the link as slow as wanted. Needs
//! root, `ip` and `tc`, and is skipped without them; no KVM: the guest is a workload then. The figures are printed.
//! - Downtime is under the default limit of 300 ms, at both ends' reckoning and as the guest felt it, and these agree
//!   within 20 ms: 1 Gbit/s and unshaped (a guest of 1 GiB, 256 MiB of it filled, 64 MiB of it written at 10000 pages/s),
//!   100 Mbit/s (a smaller one); within 80 ms at 384 kbit/s (a tiny one). In one of three tries: a busy host keeps a guest waiting that nobody has stopped.
//! - `--bandwidth 200Mbit/s` over four channels: no more than that crosses, and no less than 95 % of it.
//! - The cable is pulled in the middle, at either end: within 15 s the sender ends with 1 and its guest is proven to run,
//!   and the receiver drops what had come; once the cable is back the same receiver takes a guest in.
//!
//! Environment: `ONLY` (cases whose name contains it).
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod processes;

mod network;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use network::{DESTINATION, End, Network};
use pageferry::stats::{GuestOwner, Outcome, Report};
use processes::tally::{Tally, Verdict, clean_up_at_interrupt};
use processes::{Listening, Process, RECEIVE, SEND, kvm};

fn main() -> ExitCode {
    clean_up_at_interrupt(network::remove).expect("signals can be watched");
    let mut tally = Tally::default();
    if std::env::args().len() == 1 {
        tally.case("all of it", || Ok(Verdict::Skipped("it takes a minute: tests/run links".into())));
        return tally.finish();
    }
    let only = std::env::var("ONLY").unwrap_or_default();
    for (name, case) in CASES {
        if name.contains(&only) {
            tally.case(name, || match missing() {
                Some(reason) => Ok(Verdict::Skipped(reason)),
                None => case().map(Verdict::Passed),
            });
        }
    }
    tally.finish()
}

type Case = fn() -> Result<String>;

const CASES: [(&str, Case); 7] = [
    ("downtime at 1 Gbit/s", || downtime(Some("1gbit"), LARGE, AGREEMENT)),
    ("downtime at 100 Mbit/s", || downtime(Some("100mbit"), SMALL, AGREEMENT)),
    ("downtime at 384 kbit/s", || downtime(Some("384kbit"), TINY, 4.0 * AGREEMENT)),
    ("downtime, unshaped", || downtime(None, LARGE, AGREEMENT)),
    ("bandwidth of 200 Mbit/s over 4 channels", bandwidth),
    ("cable pulled at the source", || cut(End::Source)),
    ("cable pulled at the destination", || cut(End::Destination)),
];

const LARGE: &str = "memory=1GiB,fill=256MiB,working-set=64MiB,rate=10000";
/// At 100 Mbit/s what is left after round 0 only seems to fit the limit: what the sockets still hold comes first.
const SMALL: &str = "memory=256MiB,fill=64MiB,working-set=8MiB,rate=290";
/// On such a link what sockets hold takes seconds, and acknowledgements are far apart.
const TINY: &str = "memory=32MiB,fill=512KiB,random-every=1,working-set=16KiB,rate=200";

/// The default of `--downtime-limit`, in milliseconds.
const DOWNTIME_LIMIT: f64 = 300.0;
/// Of a downtime.
const TRIES: u32 = 3;
/// By how much the reckonings of downtime may differ, in milliseconds: several times that on a link where each packet takes 50.
const AGREEMENT: f64 = 20.0;

/// What is missing to run here, if anything.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, for network namespaces".into());
    }
    let found = |tool: &&str| ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|directory| Path::new(directory).join(tool).exists());
    let lacking: Vec<_> = ["ip", "tc"].into_iter().filter(|tool| !found(tool)).collect();
    (!lacking.is_empty()).then(|| format!("needs {}: apt-get install -y iproute2", lacking.join(" and ")))
}

/// The best guest that this machine can run.
fn guest(keys: &str) -> String {
    format!("{}:{keys}", if kvm().is_ok() { "kvm" } else { "workload" })
}

fn receiver(network: &Network, flags: &str) -> Result<Listening> {
    Listening::start_as(network.command(End::Destination, RECEIVE, &format!("--listen {DESTINATION}:0 --insecure --json - {flags}")))
}

fn sender(network: &Network, receiver: &Listening, keys: &str, flags: &str) -> Result<Process> {
    let flags = format!("--to {} --insecure --guest {} --json - {flags}", receiver.address, guest(keys));
    Process::start(network.command(End::Source, SEND, &flags))
}

/// One migration that should go well; both reports.
fn migrate(network: &Network, keys: &str, flags: &str) -> Result<(Report, Report)> {
    let receiver = receiver(network, "--max-sessions 1")?;
    let sent = sender(network, &receiver, keys, flags)?.wait(LIMIT)?.expect(0)?.report()?;
    let received = receiver.process.wait(LIMIT)?.expect(0)?.report()?;
    ensure!(received.guest_check.as_deref() == Some("ok"), "the guest that arrived: {:?}", received.guest_check);
    Ok((sent, received))
}

fn downtime(rate: Option<&str>, keys: &str, agreement: f64) -> Result<String> {
    let mut tried = downtime_once(rate, keys, agreement);
    for _ in 1..TRIES {
        let Err(error) = tried else { break };
        println!("again: {error:#}");
        tried = downtime_once(rate, keys, agreement);
    }
    tried
}

fn downtime_once(rate: Option<&str>, keys: &str, agreement: f64) -> Result<String> {
    let network = Network::new(rate)?;
    let (sent, received) = migrate(&network, keys, "")?;
    let gap = ms(received.guest_gap.unwrap_or_default());
    let (there, here) = (ms(received.downtime), ms(sent.downtime));
    let seen = format!(
        "{} guest: downtime {here:.1} ms (destination says {there:.1}, guest felt {gap:.1}, predicted {:.1}), total {:.0} ms, {:.0} MB, {} rounds, {}",
        guest("").trim_end_matches(':'),
        sent.predicted.map_or(0.0, |predicted| ms(predicted.downtime)),
        ms(sent.total),
        sent.wire_bytes.0 as f64 / 1e6,
        sent.rounds.len(),
        sent.reason,
    );
    ensure!(here < DOWNTIME_LIMIT, "over the limit of {DOWNTIME_LIMIT} ms: {seen}\n{}", sent.to_json());
    ensure!((gap - here).abs() < agreement && (gap - there).abs() < agreement, "no agreement within {agreement} ms: {seen}");
    Ok(seen)
}

fn bandwidth() -> Result<String> {
    let network = Network::new(None)?;
    let before = network.bytes_sent()?;
    let (sent, _) = migrate(&network, LARGE, "--bandwidth 200Mbit/s --channels 4")?;
    let mbits = |bytes: u64, time: Duration| bytes as f64 * 8e-6 / time.as_secs_f64();
    let outside = mbits(network.bytes_sent()? - before, sent.total);
    let all = mbits(sent.wire_bytes.0, sent.total);
    let first = mbits(sent.rounds[0].wire_bytes.0, sent.rounds[0].duration);
    let seen =
        format!("{all:.1} Mbit/s in total, {first:.1} in round 0, {outside:.1} on the wire with headers, in {:.1} s", sent.total.as_secs_f64());
    ensure!(sent.channels == 4, "{} channels", sent.channels);
    ensure!([all, first, outside].iter().all(|rate| (190.0..=210.0).contains(rate)), "not 200 Mbit/s: {seen}");
    Ok(seen)
}

fn cut(end: End) -> Result<String> {
    let network = Network::new(None)?;
    let mut receiver = receiver(&network, "")?;
    let mut sender = sender(&network, &receiver, LARGE, "--bandwidth 200Mbit/s")?;
    sender.stderr.next_with("copying", LIMIT)?;
    std::thread::sleep(Duration::from_secs(2));
    network.set_cable(end, "down")?;
    let pulled = Instant::now();
    let sent = sender.wait(LIMIT)?.expect(1)?;
    let noticed = pulled.elapsed();
    let report = sent.report()?;
    ensure!(report.outcome == Outcome::Failed && report.guest_owner == GuestOwner::Source, "{}", report.to_json());
    ensure!(report.guest_check.as_deref() == Some("ok"), "the guest at the source: {:?}", report.guest_check);
    let dropped = receiver.next_report(LIMIT)?;
    let received = pulled.elapsed();
    ensure!(dropped.outcome == Outcome::Failed && dropped.guest_owner == GuestOwner::Source, "{}", dropped.to_json());
    let seen = format!(
        "source ended after {:.1} s ({}); destination after {:.1} s ({})",
        noticed.as_secs_f64(),
        report.reason,
        received.as_secs_f64(),
        dropped.reason
    );
    ensure!(noticed < NOTICED && received < NOTICED, "too late: {seen}");
    network.set_cable(end, "up")?;
    again(&network, &mut receiver)?;
    Ok(seen)
}

/// The receiver still takes guests in.
fn again(network: &Network, receiver: &mut Listening) -> Result<()> {
    sender(network, receiver, SMALL, "")?.wait(LIMIT)?.expect(0)?;
    let report = receiver.next_report(LIMIT)?;
    ensure!(report.outcome == Outcome::Completed && report.guest_check.as_deref() == Some("ok"), "afterwards: {}", report.to_json());
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Fifteen seconds to notice, and what it takes to check the guest and to say so.
const NOTICED: Duration = Duration::from_secs(17);
/// For anything.
const LIMIT: Duration = Duration::from_secs(90);
