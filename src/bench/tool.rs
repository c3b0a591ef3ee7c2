//! The tools of the system that the bench calls: found on PATH, run to their end, their complaints passed on.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs a command line, split at spaces.
///
/// # Errors
/// With what the tool said.
pub(super) fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("a command without a program")?;
    let output = Command::new(program).args(words).output().with_context(|| line.to_owned())?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program is, as a shell would find it.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// The first line that `program --version` says.
pub(super) fn version(program: &str) -> Option<String> {
    Some(run(&format!("{program} --version")).ok()?.lines().next()?.trim().to_owned())
}
