//! What has to be gone when the bench ends, however it ends: processes, namespaces, a directory.
//!
//! Whoever makes something says so here and takes it back when it is gone. An interrupt, which comes on another thread,
//! removes whatever is there at that moment and keeps anything from being made afterwards.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tool;

/// The list; its clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Leftovers(Arc<Mutex<Things>>);

#[derive(Debug, Default)]
struct Things {
    processes: Vec<Pid>,
    namespaces: Vec<String>,
    directories: Vec<PathBuf>,
    over: bool,
}

impl Leftovers {
    /// Starts a process.
    ///
    /// # Errors
    /// When it cannot be started, or everything is over.
    pub(super) fn start(&self, command: &mut Command) -> Result<Child> {
        let mut things = self.lock();
        ensure!(!things.over, "interrupted");
        let child = command.spawn().with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        things.processes.push(pid(&child)?);
        Ok(child)
    }

    /// Kills a process and waits for it.
    pub(super) fn end(&self, child: &mut Child) {
        // Both fail only for a process that has been waited for.
        let _ = child.kill();
        let _ = child.wait();
        let pid = pid(child).ok();
        self.lock().processes.retain(|known| Some(*known) != pid);
    }

    /// Makes a network namespace.
    ///
    /// # Errors
    /// With what the tool said.
    pub(super) fn make_namespace(&self, name: &str) -> Result<()> {
        let mut things = self.lock();
        ensure!(!things.over, "interrupted");
        tool::run(&format!("ip netns add {name}"))?;
        things.namespaces.push(name.to_owned());
        Ok(())
    }

    /// Deletes a network namespace.
    pub(super) fn delete_namespace(&self, name: &str) {
        let mut things = self.lock();
        things.namespaces.retain(|known| known != name);
        delete_namespace(name);
    }

    /// Makes a directory for sockets and images.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn make_directory(&self) -> Result<PathBuf> {
        let mut things = self.lock();
        ensure!(!things.over, "interrupted");
        let path = std::env::temp_dir().join(format!("pageferry-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        things.directories.push(path.clone());
        Ok(path)
    }

    /// Removes everything there is. Nothing can be made afterwards.
    pub fn remove(&self) {
        let mut things = self.lock();
        things.over = true;
        for pid in things.processes.drain(..) {
            // It may just have ended; it has not been waited for, so the pid is still its own.
            let _ = kill(pid, Signal::SIGKILL);
        }
        things.namespaces.drain(..).for_each(|name| delete_namespace(&name));
        things.directories.drain(..).for_each(|path| delete_directory(&path));
    }

    fn lock(&self) -> MutexGuard<'_, Things> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pid(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id()).context("a pid")?))
}

fn delete_namespace(name: &str) {
    if Path::new("/run/netns").join(name).exists()
        && let Err(error) = tool::run(&format!("ip netns delete {name}"))
    {
        eprintln!("left behind: {error:#}");
    }
}

fn delete_directory(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("left behind: {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_started_is_killed_and_nothing_starts_afterwards() {
        let leftovers = Leftovers::default();
        let mut child = leftovers.start(Command::new("sleep").arg("60")).unwrap();
        let directory = leftovers.make_directory().unwrap();
        leftovers.remove();
        assert!(!child.wait().unwrap().success());
        assert!(!directory.exists());
        assert!(leftovers.start(Command::new("sleep").arg("60")).is_err());
    }
}
