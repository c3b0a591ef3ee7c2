//! The programs as processes: started, listened to, waited for with a limit, and ended by their pid.
//!
//! Tests that need real processes share this. Every wait is bounded, and a process that is dropped is killed, so a test
//! that fails half-way leaves nothing behind.

pub(crate) mod huge_pages;
pub(crate) mod random;
pub(crate) mod tally;

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pageferry::stats::Report;

/// The sender, the receiver, and the program around them.
pub(crate) const SEND: &str = env!("CARGO_BIN_EXE_pageferry-send");
pub(crate) const RECEIVE: &str = env!("CARGO_BIN_EXE_pageferry-receive");
pub(crate) const PAGEFERRY: &str = env!("CARGO_BIN_EXE_pageferry");

/// How long a program may take for what is a matter of moments; generous, for machines under load.
pub(crate) const MOMENT: Duration = Duration::from_secs(20);

/// A program with `flags`, separated by spaces.
pub(crate) fn command(program: &str, flags: &str) -> Command {
    let mut command = Command::new(program);
    command.args(flags.split_whitespace());
    command
}

/// A running program.
pub(crate) struct Process {
    hand: Hand,
    pid: u32,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

/// How a process ended and all that it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None`: by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    /// Starts it with nothing to read and its output watched.
    pub(crate) fn start(command: Command) -> Result<Self> {
        Self::start_heard(command, |_| {})
    }

    /// The same, and `hear` is called with each line on its standard error the moment it comes.
    pub(crate) fn start_heard(mut command: Command, hear: impl Fn(&str) + Send + 'static) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let pid = child.id();
        tally::running(pid);
        let stdout = Lines::of(child.stdout.take().expect("piped"), |_| {});
        let stderr = Lines::of(child.stderr.take().expect("piped"), hear);
        Ok(Self { hand: Hand(Arc::new(Mutex::new(child))), pid, stdout, stderr })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// For a thread that has to signal it.
    pub(crate) fn hand(&self) -> Hand {
        self.hand.clone()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        ensure!(self.hand.signal(signal)?, "{signal} to a process that has ended");
        Ok(())
    }

    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.hand.child().try_wait()?.is_none())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not within `limit`; it is killed then.
    pub(crate) fn wait(mut self, limit: Duration) -> Result<Ended> {
        let until = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.hand.child().try_wait()? {
                break status;
            }
            if Instant::now() >= until {
                self.hand.child().kill()?;
                bail!("hangs: still there after {limit:?}; it said:\n{}", self.stderr.rest());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ok(Ended { code: status.code(), stdout: self.stdout.rest(), stderr: self.stderr.rest() })
    }

    /// Kills it; what it had said.
    pub(crate) fn kill(self) -> Result<Ended> {
        self.hand.child().kill()?;
        self.wait(MOMENT)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has been waited for.
        let mut child = self.hand.child();
        let _ = child.kill();
        let _ = child.wait();
        tally::gone(self.pid);
    }
}

/// Signals a process, as long as it has not ended.
#[derive(Clone)]
pub(crate) struct Hand(Arc<Mutex<Child>>);

impl Hand {
    /// Sends a signal; false when the process has ended. Its pid is not used after that: it may be another's.
    pub(crate) fn signal(&self, signal: Signal) -> Result<bool> {
        let mut child = self.child();
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        let pid = i32::try_from(child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {pid}"))?;
        Ok(true)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, flags: &str) -> Result<Ended> {
    Process::start(command(program, flags))?.wait(Duration::from_secs(60))
}

impl Ended {
    /// The one report on standard output.
    pub(crate) fn report(&self) -> Result<Report> {
        let mut lines = self.stdout.lines();
        let report = parse(lines.next().with_context(|| format!("no report; {self}"))?)?;
        ensure!(lines.next().is_none(), "more than one report: {self}");
        Ok(report)
    }

    /// Fails unless the process exited with `code`.
    pub(crate) fn expect(self, code: i32) -> Result<Self> {
        ensure!(self.code == Some(code), "expected exit code {code}: {self}");
        Ok(self)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "exit code {code}")?,
            None => f.write_str("ended by a signal")?,
        }
        write!(f, "\n--- standard output\n{}--- standard error\n{}---", self.stdout, self.stderr)
    }
}

/// A report as the programs write it.
pub(crate) fn parse(line: &str) -> Result<Report> {
    serde_json::from_str(line).with_context(|| format!("not a report: {line}"))
}

/// A process's output, line by line as it comes.
pub(crate) struct Lines {
    incoming: Receiver<String>,
    seen: Vec<String>,
    /// Lines that [`Lines::next_with`] has given out.
    given: usize,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static, hear: impl Fn(&str) + Send + 'static) -> Self {
        let (tell, incoming) = channel();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                hear(&text);
                if tell.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Self { incoming, seen: Vec::new(), given: 0 }
    }

    /// The next line that contains `wanted`; lines before it are passed over.
    ///
    /// # Errors
    /// When it does not come within `limit` or the output ends.
    pub(crate) fn next_with(&mut self, wanted: &str, limit: Duration) -> Result<String> {
        let until = Instant::now() + limit;
        loop {
            while self.given < self.seen.len() {
                self.given += 1;
                let line = &self.seen[self.given - 1];
                if line.contains(wanted) {
                    return Ok(line.clone());
                }
            }
            match self.incoming.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => bail!("no line with {wanted:?} within {limit:?}, but:\n{}", self.seen.join("\n")),
                Err(RecvTimeoutError::Disconnected) => bail!("the output ended without {wanted:?}:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Everything that was said until now, or to the end of a process that is gone.
    fn rest(&mut self) -> String {
        while let Ok(line) = self.incoming.recv_timeout(Duration::from_secs(1)) {
            self.seen.push(line);
        }
        self.seen.iter().flat_map(|line| [line, "\n"]).collect()
    }
}

/// A receiver that listens.
pub(crate) struct Listening {
    pub(crate) process: Process,
    /// As a sender's `--to` takes it.
    pub(crate) address: String,
}

impl Listening {
    /// Starts `pageferry-receive` with reports on its standard output.
    pub(crate) fn start(listen: &str, flags: &str) -> Result<Self> {
        Self::start_as(command(RECEIVE, &format!("--listen {listen} --json - {flags}")))
    }

    /// Starts a command that becomes a receiver.
    pub(crate) fn start_as(command: Command) -> Result<Self> {
        Self::start_heard(command, |_| {})
    }

    /// The same, and `hear` is called with each line on its standard error.
    pub(crate) fn start_heard(command: Command, hear: impl Fn(&str) + Send + 'static) -> Result<Self> {
        let mut process = Process::start_heard(command, hear)?;
        let line = process.stderr.next_with("listening on ", MOMENT)?;
        let address = line.strip_prefix("listening on ").with_context(|| format!("unexpected: {line}"))?.to_owned();
        Ok(Self { process, address })
    }

    /// Starts `pageferry-send` towards it, with the report on its standard output.
    pub(crate) fn send(&self, guest: &str, flags: &str) -> Result<Process> {
        Process::start(command(SEND, &format!("--to {} --guest {guest} --json - {flags}", self.address)))
    }

    /// The receiver's next report.
    pub(crate) fn next_report(&mut self, limit: Duration) -> Result<Report> {
        parse(&self.process.stdout.next_with("{", limit)?)
    }
}

/// Fails unless `cmp` finds the two files the same, and of `bytes` bytes.
pub(crate) fn compare(a: &Path, b: &Path, bytes: u64) -> Result<()> {
    let length = a.metadata()?.len();
    ensure!(length == bytes, "the image has {length} bytes, the guest {bytes}");
    let output = Command::new("cmp").args([a, b]).output().context("cmp")?;
    ensure!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout).trim());
    Ok(())
}

/// Whether this machine can run KVM guests; if not, why.
pub(crate) fn kvm() -> Result<(), String> {
    if !cfg!(feature = "kvm") {
        return Err("built without the feature `kvm`".into());
    }
    std::fs::File::options().read(true).write(true).open("/dev/kvm").map(drop).map_err(|error| format!("/dev/kvm: {error}"))
}

/// Whether guests can be run here before all of their memory is; if not, why.
pub(crate) fn userfaultfd() -> Result<(), String> {
    if !cfg!(feature = "userfaultfd") {
        return Err("built without the feature `userfaultfd`".into());
    }
    let allows_all = || std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|value| value.trim() == "1");
    match std::fs::File::options().read(true).write(true).open("/dev/userfaultfd") {
        Err(error) if !nix::unistd::geteuid().is_root() && !allows_all() => Err(format!("/dev/userfaultfd: {error}")),
        _ => Ok(()),
    }
}
