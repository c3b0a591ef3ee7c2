//! Counting cases, and cleaning up when a person or a script interrupts them.

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// How a case went, if it did not fail.
pub(crate) enum Verdict {
    /// With what was seen.
    Passed(String),
    /// With the reason.
    Skipped(String),
}

/// Passed, failed, skipped.
#[derive(Default)]
pub(crate) struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    /// Runs one case and prints how it went.
    pub(crate) fn case(&mut self, name: &str, case: impl FnOnce() -> Result<Verdict>) {
        match case() {
            Ok(Verdict::Passed(seen)) => {
                self.passed += 1;
                println!("passed   {name}  {seen}");
            }
            Ok(Verdict::Skipped(reason)) => {
                self.skipped += 1;
                println!("skipped  {name}: {reason}");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED   {name}: {error:#}");
            }
        }
    }

    /// Prints the last line; the exit code.
    pub(crate) fn finish(self) -> ExitCode {
        let Self { passed, failed, skipped } = self;
        let also = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        println!("{passed} passed, {failed} failed{also}");
        if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// The number after `flag` on this program's command line, if it was given.
pub(crate) fn number(flag: &str) -> Option<u64> {
    let value = std::env::args().skip_while(|argument| argument != flag).nth(1)?;
    Some(value.parse().unwrap_or_else(|_| panic!("{flag} {value}: expected a number")))
}

/// Has SIGINT, SIGTERM and SIGHUP kill the processes under way, run `clean_up` and end this process. Call it first, while
/// there is one thread: those that come later inherit that the signals are not theirs.
pub(crate) fn clean_up_at_interrupt(clean_up: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block()?;
    std::thread::spawn(move || {
        let signal = signals.wait();
        for pid in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may just have ended; it has not been waited for, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        clean_up();
        eprintln!("interrupted: {signal:?}");
        std::process::exit(130);
    });
    Ok(())
}

/// A process was started.
pub(super) fn running(pid: u32) {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).extend(i32::try_from(pid));
}

/// It was waited for.
pub(super) fn gone(pid: u32) {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|running| i32::try_from(pid) != Ok(*running));
}

/// Processes to kill at an interrupt.
static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());
