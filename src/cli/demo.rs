//! `pageferry demo`: a busy guest moves between two processes on this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, bail};

use super::exit::Exit;
use crate::stats::{Outcome, Report};
use crate::units::HumanTime;

/// What can be asked of the demo.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// The guest to move; default: 1 GiB, half of it filled, 64 MiB of it written at 20000 pages/s, on KVM where there is
    /// one.
    #[arg(long, value_name = "SPEC")]
    guest: Option<String>,
}

/// Moves the guest, checks it and prints the five metrics.
///
/// # Errors
/// When a process could not be started, or said something unexpected.
pub fn run(args: &DemoArgs) -> anyhow::Result<Exit> {
    let guest = args.guest.clone().unwrap_or_else(default_guest);
    eprintln!("moving a guest between two processes on this machine:\n  {guest}\n");
    let (receiver, address) = Receiver::start()?;
    let sender = program()?
        .args(["send", "--to", &address, "--guest", &guest, "--warm-up", "500ms", "--json", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("the sender cannot be started")?;
    let sent = sender.wait_with_output().context("the sender is lost")?;
    if sent.stdout.is_empty() {
        receiver.kill();
        bail!("the sender gave up before it began");
    }
    let sent = report(&sent.stdout).context("the sender's report")?;
    let received = receiver.finish()?;
    let mut out = std::io::stdout();
    writeln!(out, "\n{}", sent.metrics())?;
    let check = received.guest_check.as_deref().unwrap_or("not checked");
    let gap = received.guest_gap.map_or_else(|| "?".to_owned(), |gap| HumanTime(gap).to_string());
    writeln!(out, "{:<20}  {gap:>12}  the longest silence the guest itself saw", "guest's own gap")?;
    writeln!(out, "{:<20}  {check:>12}  every page compared with what the guest must hold", "guest check")?;
    if sent.outcome == Outcome::Completed && check != "ok" {
        return Ok(Exit::Failed);
    }
    Ok(sent.outcome.into())
}

/// The receiving process.
struct Receiver {
    child: Child,
    talk: JoinHandle<()>,
}

impl Receiver {
    /// Starts it and waits until it listens; the address.
    fn start() -> anyhow::Result<(Self, String)> {
        let mut child = program()?
            .args(["receive", "--listen", "127.0.0.1:0", "--max-sessions", "1", "--json", "-"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("the receiver cannot be started")?;
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let Some(address) = first.strip_prefix("listening on ").map(str::to_owned) else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the receiver does not listen: {first}");
        };
        // The sender's progress has the terminal; the receiver's few words would only break into it.
        let talk = std::thread::spawn(move || lines.for_each(drop));
        Ok((Self { child, talk }, address))
    }

    /// Waits for its end; its report.
    fn finish(mut self) -> anyhow::Result<Report> {
        let mut output = Vec::new();
        self.child.stdout.take().expect("piped").read_to_end(&mut output)?;
        self.child.wait()?;
        let _ = self.talk.join();
        report(&output).context("the receiver's report")
    }

    fn kill(mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program, to be run as the other two.
fn program() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::current_exe().context("this program cannot find itself")?))
}

fn report(output: &[u8]) -> anyhow::Result<Report> {
    let line = output.split(|&byte| byte == b'\n').find(|line| !line.is_empty()).context("is missing")?;
    Ok(serde_json::from_slice(line)?)
}

fn default_guest() -> String {
    let kvm = cfg!(feature = "kvm") && std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let kind = if kvm { "kvm" } else { "workload" };
    format!("{kind}:memory=1GiB,fill=512MiB,working-set=64MiB,rate=20000")
}
