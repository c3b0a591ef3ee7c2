//! Receivers in a whole sandbox: whatever a receiver does, it does there too, and nothing that it needs is refused.
//!
//! The other tests run receivers as they start by default, in as much of a sandbox as the host has. Here there must be all
//! of it. What can no longer be done in it is the matter of `tests/sandbox`.

use std::path::Path;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use pageferry::cli::sandbox;
use pageferry::stats::{Outcome, Report};
use tempfile::TempDir;

use crate::processes::huge_pages::HugePages;
use crate::processes::{Ended, Listening, MOMENT, PAGEFERRY, Process, SEND, command, compare, kvm, parse, run, userfaultfd};
use crate::proxy::{Fate, Proxy, Tamper};
use crate::{GUEST, GUEST_BYTES, SLOWLY, has_arrived, runs_on, was_dropped};

const VCPU: &str = "kvm:memory=64MiB,fill=16MiB,working-set=4MiB";
/// Pre-copy, then post-copy, with some pages left for it.
const AHEAD: &str = "--post-copy 0 --compress none --bandwidth 100Mbit/s";

/// Says why not, if a whole sandbox cannot be had here.
fn usable() -> bool {
    let missing: Vec<_> = sandbox::probe().into_iter().filter(|layer| !layer.usable).collect();
    missing.iter().for_each(|layer| println!("skipped: no {}: {}", layer.name, layer.detail));
    missing.is_empty()
}

/// A receiver on loopback, or on what else it is told.
fn confined(listen: &str, flags: &str) -> Result<Listening> {
    Listening::start(listen, &format!("--sandbox on {flags}"))
}

/// Ends a receiver in order; fails if the sandbox refused it anything.
fn ends_in_peace(receiver: Listening) -> Result<Ended> {
    receiver.process.signal(Signal::SIGTERM)?;
    let ended = receiver.process.wait(MOMENT)?.expect(0)?;
    ensure!(!ended.stderr.contains("sandbox"), "{ended}");
    Ok(ended)
}

/// Moves a guest with these flags of the receiver and of the sender, held, and compares the images.
fn moves(guest: &str, receiver: &str, sender: &str) -> Result<Report> {
    let images = TempDir::new()?;
    let [source, destination] = ["source", "destination"].map(|name| images.path().join(name));
    let mut listening = confined("127.0.0.1:0", &format!("{receiver} --hold --dump {}", destination.display()))?;
    listening.send(guest, &format!("{sender} --dump {}", source.display()))?.wait(MOMENT)?.expect(0)?;
    let report = has_arrived(&mut listening)?;
    compare(&source, &destination, GUEST_BYTES)?;
    ends_in_peace(listening)?;
    Ok(report)
}

/// The kinds of guests that this host can run.
fn guests() -> Vec<&'static str> {
    match kvm() {
        Ok(()) => vec![GUEST, VCPU],
        Err(reason) => {
            println!("skipped: {VCPU}: {reason}");
            vec![GUEST]
        }
    }
}

#[test]
fn guests_of_every_kind_arrive_whole() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    for guest in guests() {
        for flags in ["", "--channels 5 --compress zstd", "--max-rounds 0", "--compress none --delta off"] {
            moves(guest, "", flags)?;
        }
    }
    Ok(())
}

#[test]
fn guests_run_ahead_of_their_memory() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    if let Err(reason) = userfaultfd() {
        println!("skipped: {reason}");
        return Ok(());
    }
    for guest in guests() {
        for backing in ["anonymous", "memfd"] {
            let mut receiver = confined("127.0.0.1:0", &format!("--backing {backing}"))?;
            receiver.send(guest, AHEAD)?.wait(MOMENT)?.expect(0)?;
            let arrived = has_arrived(&mut receiver)?;
            ensure!(arrived.post_copy.is_some_and(|post_copy| post_copy.pages.0 > 0), "it did not come to post-copy");
            ends_in_peace(receiver)?;
        }
    }
    Ok(())
}

#[test]
fn guests_are_made_of_any_memory() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    moves(GUEST, "--backing memfd", "--backing memfd")?;
    let _reserve = match HugePages::reserve(GUEST_BYTES >> 21) {
        Ok(reserve) => reserve,
        Err(reason) => {
            println!("skipped: hugetlb: {reason:#}");
            return Ok(());
        }
    };
    for guest in guests() {
        moves(guest, "--backing hugetlb", "")?;
    }
    if userfaultfd().is_ok() {
        moves(GUEST, "--backing hugetlb", AHEAD)?;
    }
    Ok(())
}

#[cfg(feature = "tls")]
#[test]
fn connections_are_encrypted() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    let keys = crate::certificates::good();
    let tls = format!("--tls {}", keys.path().display());
    for guest in guests() {
        moves(guest, &tls, &tls)?;
        if userfaultfd().is_ok() {
            moves(guest, &tls, &format!("{tls} {AHEAD}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_unix_socket_is_removed_in_the_end_and_reports_go_to_a_file() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    let directory = TempDir::new()?;
    let [socket, reports] = ["socket", "reports"].map(|name| directory.path().join(name));
    let mut command = command(crate::processes::RECEIVE, &format!("--sandbox on --listen unix:{} --json {}", socket.display(), reports.display()));
    command.current_dir(directory.path());
    let receiver = Listening::start_as(command)?;
    for _ in 0..2 {
        receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?;
    }
    ends_in_peace(receiver)?;
    ensure!(!socket.exists(), "the socket is still there");
    let reports = std::fs::read_to_string(&reports)?;
    ensure!(
        reports.lines().count() == 2 && reports.lines().all(|line| parse(line).is_ok_and(|report| report.outcome == Outcome::Completed)),
        "{reports}"
    );
    Ok(())
}

#[test]
fn an_image_may_be_taken_away_and_the_next_is_written_all_the_same() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    let directory = TempDir::new()?;
    let [image, taken] = ["image", "taken"].map(|name| directory.path().join(name));
    let mut command = command(crate::processes::RECEIVE, "--sandbox on --listen 127.0.0.1:0 --json - --dump image");
    command.current_dir(directory.path());
    let mut receiver = Listening::start_as(command)?;
    for _ in 0..2 {
        receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?;
        has_arrived(&mut receiver)?;
        ensure!(image.metadata()?.len() == GUEST_BYTES, "no image");
        std::fs::rename(&image, &taken)?;
    }
    ends_in_peace(receiver)?;
    Ok(())
}

/// Ends every connection in the middle of what the bulk lanes carry, once.
struct CutOnce;

impl Tamper for CutOnce {
    fn memory(&self, offset: usize, _bytes: &mut Vec<u8>) -> Fate {
        if offset > 2 << 20 { Fate::Cut } else { Fate::Pass }
    }
}

#[test]
fn a_broken_connection_is_recovered_from() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    if let Err(reason) = userfaultfd() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let mut receiver = confined("127.0.0.1:0", "")?;
    let proxy = Proxy::start(&receiver.address, CutOnce)?;
    let flags = format!("--to {} --guest {GUEST} --json - {AHEAD} --channels 1", proxy.address);
    Process::start(command(SEND, &flags))?.wait(2 * MOMENT)?.expect(0)?;
    let arrived = has_arrived(&mut receiver)?;
    let recoveries = arrived.post_copy.map_or(0, |post_copy| post_copy.recoveries);
    ensure!(recoveries > 0, "no connection broke");
    ends_in_peace(receiver).map(drop)
}

#[test]
fn several_arrive_side_by_side_and_whoever_is_called_off_stays() -> Result<()> {
    if !usable() {
        return Ok(());
    }
    let mut receiver = confined("127.0.0.1:0", "")?;
    let mut senders = Vec::new();
    for seed in 0..6 {
        let mut sender = receiver.send(&format!("{GUEST},seed={seed}"), SLOWLY)?;
        sender.stderr.next_with("copying", MOMENT)?;
        senders.push(sender);
    }
    let last = senders.pop().expect("six");
    last.signal(Signal::SIGINT)?;
    runs_on(last.wait(MOMENT)?, Outcome::Aborted, 1)?;
    was_dropped(&mut receiver)?;
    for sender in senders {
        sender.wait(2 * MOMENT)?.expect(0)?;
        has_arrived(&mut receiver)?;
    }
    ends_in_peace(receiver).map(drop)
}

#[test]
fn the_sandbox_knows_what_it_was_not_told_to_allow() -> Result<()> {
    if !usable() || kvm().is_err() {
        println!("skipped: needs a sandbox and KVM");
        return Ok(());
    }
    let receiver = confined("127.0.0.1:0", "--allow workload")?;
    ensure!(!opens(&receiver, Path::new("/dev/kvm"))?, "a receiver of workloads has /dev/kvm open");
    runs_on(receiver.send(VCPU, "")?.wait(MOMENT)?, Outcome::Refused, 3)?;
    ends_in_peace(receiver).map(drop)
}

/// Whether it has a file open now.
fn opens(receiver: &Listening, file: &Path) -> Result<bool> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", receiver.process.pid()))?;
    Ok(open.filter_map(Result::ok).any(|entry| entry.path().read_link().is_ok_and(|target| target == file)))
}

#[test]
fn a_probe_says_whether_the_layers_are_there() -> Result<()> {
    let ended = run(PAGEFERRY, "probe")?.expect(0)?;
    for layer in sandbox::probe() {
        let line = ended.stdout.lines().find(|line| line.contains(layer.name));
        ensure!(line.is_some_and(|line| line.starts_with(if layer.usable { "yes " } else { "no " })), "{}: {ended}", layer.name);
    }
    Ok(())
}
