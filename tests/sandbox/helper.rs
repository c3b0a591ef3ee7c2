//! What the processes do that the tests start: one attempt, or a receiver on a kernel that lacks something.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use pageferry::cli::sandbox::{Needs, Sandbox, Wanted};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::attempts::{self, Place};

/// `outside` and `inside` of a sandbox, or what the kernel lacks.
pub(crate) const JOB: &str = "PAGEFERRY_TEST_JOB";
/// Of the attempt; or what a receiver is told about the sandbox.
pub(crate) const NAME: &str = "PAGEFERRY_TEST_NAME";
/// A directory of its own.
pub(crate) const DIRECTORY: &str = "PAGEFERRY_TEST_DIRECTORY";

/// What is written before how it went.
const OUTCOME: &str = "outcome: ";

#[test]
#[ignore = "the other tests start it in processes of their own"]
fn helper() -> Result<()> {
    let (Ok(job), Ok(name)) = (std::env::var(JOB), std::env::var(NAME)) else {
        println!("skipped: nobody said what to do");
        return Ok(());
    };
    let place = Place::new(Path::new(&std::env::var_os(DIRECTORY).context("a directory")?))?;
    match job.as_str() {
        "outside" => attempt(&name, &place),
        "inside" => {
            let needs = Needs { image: Some(&place.image), socket: None, kvm: false };
            let _sandbox = Sandbox::enter(Wanted::On, &needs)?;
            attempt(&name, &place)
        }
        "landlock" => receive_without(libc::SYS_landlock_create_ruleset, libc::ENOSYS, &name),
        "seccomp" => receive_without(libc::SYS_seccomp, libc::EINVAL, &name),
        other => bail!("no such job: {other}"),
    }
}

fn attempt(name: &str, place: &Place) -> Result<()> {
    let attempt = attempts::find(name).context("no such attempt")?;
    match (attempt.make)(place) {
        Ok(()) => println!("{OUTCOME}done"),
        Err(error) => println!("{OUTCOME}{:?}", error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)),
    }
    Ok(())
}

/// How an attempt went, as its process tells.
pub(crate) fn outcome(output: &Output) -> Result<String> {
    if let Some(signal) = output.status.signal() {
        return Ok(Signal::try_from(signal)?.as_str().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    // What the harness says about the test stands before it, in the same line.
    let outcome = said.lines().find_map(|line| Some(line.split_once(OUTCOME)?.1));
    match outcome {
        Some(outcome) => Ok(outcome.to_owned()),
        // Became another program, which says nothing.
        None if output.status.success() && !said.contains("FAILED") && !said.contains(" ok") => Ok("done".to_owned()),
        None => bail!("no outcome: {output:?}"),
    }
}

/// Becomes a receiver that ends soon, on a kernel that has no such call.
fn receive_without(call: i64, errno: i32, sandbox: &str) -> Result<()> {
    let rules = [(call, Vec::new())].into_iter().collect();
    let errno = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    apply_filter(&program)?;
    let flags = ["2", env!("CARGO_BIN_EXE_pageferry-receive"), "--listen", "127.0.0.1:0", "--sandbox", sandbox];
    let error = Command::new("timeout").args(flags).exec();
    ensure!(false, "timeout: {error}");
    Ok(())
}
