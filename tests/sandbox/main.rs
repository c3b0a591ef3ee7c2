//! The receiver's sandbox: what cannot be done in it any more, what still can, and what is said where there is none.
//!
//! Each attempt is made in two processes of its own, outside and inside: it must work, or at least be survived, outside,
//! or that it does not inside would prove nothing. The processes are this program again, as [`helper`].
#![expect(unsafe_code, reason = "system calls that no library makes")]

mod attempts;
mod helper;

use std::collections::BTreeMap;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use attempts::{Attempt, HOSTILE, Inside, POSSIBLE, REFUSED};
use pageferry::cli::sandbox::{self, Wanted};

/// Whether this host has both layers; if not, says which it lacks.
fn has_both_layers() -> bool {
    let missing: Vec<_> = sandbox::probe().into_iter().filter(|layer| !layer.usable).collect();
    missing.iter().for_each(|layer| println!("skipped: no {}: {}", layer.name, layer.detail));
    missing.is_empty()
}

/// This program, to make an attempt of this name.
fn helper(job: &str, name: &str) -> Result<Output> {
    let directory = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["helper::helper", "--exact", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env(helper::JOB, job).env(helper::NAME, name).env(helper::DIRECTORY, directory.path());
    command.output().with_context(|| format!("{job} {name}"))
}

/// Makes the attempt outside and inside, and compares with what must come of it.
fn holds(attempt: &Attempt) -> Result<()> {
    let outside = helper::outcome(&helper("outside", attempt.name)?)?;
    ensure!(attempt.inside == Inside::Ends || outside == "done", "outside of a sandbox: {outside}");
    let output = helper("inside", attempt.name)?;
    let inside = helper::outcome(&output)?;
    let said = String::from_utf8_lossy(&output.stderr).lines().filter(|line| line.starts_with("sandbox: ")).count();
    println!("{:<50} {inside}", attempt.name);
    let (expected, is_said) = match attempt.inside {
        Inside::Works => ("done", 0),
        Inside::NoFile => ("EACCES", 0),
        Inside::NoCall => ("EPERM", 1),
        Inside::Ends => ("SIGSYS", 0),
    };
    ensure!(inside == expected, "expected {expected}, not {inside}");
    ensure!(said >= is_said && (said == 0) == (is_said == 0), "it said: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Checks a table of them, to its end.
fn all_hold(table: &[Attempt]) {
    if !has_both_layers() {
        return;
    }
    let wrong: BTreeMap<_, _> = table.iter().filter_map(|attempt| holds(attempt).err().map(|error| (attempt.name, format!("{error:#}")))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_a_receiver_does_not_need_is_refused() {
    all_hold(REFUSED);
}

#[test]
fn what_only_an_intruder_does_is_the_end() {
    all_hold(HOSTILE);
}

#[test]
fn what_a_receiver_needs_still_works() {
    all_hold(POSSIBLE);
}

#[test]
fn a_refused_call_is_named_once_and_what_follows_goes_on() -> Result<()> {
    if !has_both_layers() {
        return Ok(());
    }
    let output = helper("inside", "an unknown system call, twice")?;
    ensure!(helper::outcome(&output)? == "EPERM", "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.matches("sandbox: system call 1000 is not among those that are allowed, and was refused").count() == 1, "{said}");
    Ok(())
}

#[test]
fn where_a_layer_is_missing_that_is_said_or_the_end() -> Result<()> {
    for (lacking, words) in [("landlock", "no Landlock: the kernel was built without it"), ("seccomp", "no seccomp: the kernel takes no filter")] {
        let auto = helper(lacking, "auto")?;
        let said = String::from_utf8_lossy(&auto.stderr).into_owned();
        let mut lines = said.lines();
        ensure!(lines.next().is_some_and(|line| line.starts_with("listening on ")), "{said}");
        ensure!(lines.next().is_some_and(|line| line.starts_with("sandbox: ") && line.contains(words)), "{said}");
        let on = helper(lacking, "on")?;
        let said = String::from_utf8_lossy(&on.stderr).into_owned();
        ensure!(on.status.code() == Some(1), "{on:?}");
        ensure!(said.contains("--sandbox on: ") && said.contains(words) && !said.contains("listening"), "{said}");
        let off = helper(lacking, "off")?;
        ensure!(!String::from_utf8_lossy(&off.stderr).contains("sandbox"), "{off:?}");
    }
    Ok(())
}

#[test]
fn nothing_is_wanted_nothing_is_entered() -> Result<()> {
    // Otherwise this process could not go on.
    let sandbox = sandbox::Sandbox::enter(Wanted::Off, &sandbox::Needs::default())?;
    ensure!(sandbox.missing().is_empty());
    std::fs::read_to_string("/proc/sys/kernel/ostype")?;
    Ok(())
}
