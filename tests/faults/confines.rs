//! What a program runs in, so that its host can fail it: memory that can run out, a disk that is full, a clock that jumps.
//!
//! Nothing of that reaches beyond the program: the memory is a control group's, the disk a tmpfs in a mount namespace of
//! its own, and the clock libfaketime's `CLOCK_REALTIME`. (The engine measures by `CLOCK_MONOTONIC`, which nobody can set;
//! the wall clock serves certificates and the test guests' own gap.)

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::case::{Case, Fault, Side};
use crate::processes::command;

/// What one side of a case runs in.
pub(crate) enum Confines {
    Open,
    Memory(ControlGroup),
    /// Where the disk is mounted, and its size.
    Disk(TempDir, u64),
    NoReport,
    Clock(TempDir),
}

impl Confines {
    pub(crate) fn new(case: &Case, side: Side) -> Result<Self> {
        Ok(match case.fault {
            Fault::OutOfMemory(of) if of == side => Self::Memory(ControlGroup::make()?),
            Fault::DumpFull(of) if of == side => Self::Disk(tempfile::tempdir()?, case.disk_kib()),
            Fault::JsonFull(of) if of == side => Self::NoReport,
            Fault::ClockJump(of) if of == side => {
                let directory = tempfile::tempdir()?;
                std::fs::write(directory.path().join(CLOCK), "+0")?;
                Self::Clock(directory)
            }
            _ => Self::Open,
        })
    }

    /// A program that runs in it.
    pub(crate) fn command(&self, program: &str, flags: &str) -> Command {
        let within = |wrapper: &str, script: &str, place: &Path, flags: &str| {
            let mut command = command(wrapper, "");
            if wrapper == "unshare" {
                command.args(["--mount", "sh"]);
            }
            command.args(["-c", script]).arg(place).arg(program).args(flags.split_whitespace());
            command
        };
        match self {
            Self::Open => command(program, &format!("{flags} --json -")),
            Self::NoReport => command(program, &format!("{flags} --json /dev/full")),
            Self::Memory(group) => within("sh", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#, &group.0, &format!("{flags} --json -")),
            Self::Disk(place, room) => {
                let script = format!(r#"mount -t tmpfs -o size={room}k pageferry "$0" && exec "$@""#);
                within("unshare", &script, place.path(), &format!("{flags} --json - --dump {}/image", place.path().display()))
            }
            Self::Clock(directory) => {
                let mut command = command(program, &format!("{flags} --json -"));
                command.env("LD_PRELOAD", LIBRARY).env("FAKETIME_TIMESTAMP_FILE", directory.path().join(CLOCK));
                command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
                command
            }
        }
    }

    /// Makes the memory run out, with little left, or the clock jump.
    pub(crate) fn fail(&self, case: &Case) -> Result<()> {
        match self {
            Self::Memory(group) => group.limit(case.memory_bytes()),
            Self::Clock(directory) => {
                // Replaced, not written: it is read all the time.
                let next = directory.path().join("next");
                std::fs::write(&next, format!("{:+}", case.jump))?;
                Ok(std::fs::rename(next, directory.path().join(CLOCK))?)
            }
            Self::Open | Self::Disk(..) | Self::NoReport => Ok(()),
        }
    }

    /// Why such a case cannot be run here.
    pub(crate) fn unusable(case: &Case) -> Option<String> {
        match case.fault {
            Fault::OutOfMemory(_) => ControlGroup::make().err().map(|error| format!("no control group of memory: {error:#}")),
            Fault::DumpFull(_) => {
                let mounts = Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|output| output.status.success());
                (!mounts).then(|| "no mount namespaces here".into())
            }
            Fault::ClockJump(_) => (!Path::new(LIBRARY).exists()).then(|| format!("no {LIBRARY}: apt-get install faketime")),
            _ => None,
        }
    }
}

/// A memory control group, of the first version or the second, which goes with this. The program in it must be gone then.
pub(crate) struct ControlGroup(PathBuf);

impl ControlGroup {
    fn make() -> Result<Self> {
        let root = if Path::new(FIRST).exists() { FIRST } else { SECOND };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let group = Self(PathBuf::from(format!("{root}/pageferry-{}-{number}", std::process::id())));
        std::fs::create_dir(&group.0).with_context(|| group.0.display().to_string())?;
        ensure!(group.0.join(group.file()).exists(), "{root}/cgroup.subtree_control lacks memory");
        Ok(group)
    }

    fn is_first(&self) -> bool {
        self.0.starts_with(FIRST)
    }

    fn file(&self) -> &'static str {
        if self.is_first() { "memory.limit_in_bytes" } else { "memory.max" }
    }

    /// Leaves so many bytes beyond what is in use.
    fn limit(&self, room_bytes: u64) -> Result<()> {
        let used = if self.is_first() { "memory.usage_in_bytes" } else { "memory.current" };
        let set = || {
            let used: u64 = std::fs::read_to_string(self.0.join(used))?.trim().parse()?;
            anyhow::Ok(std::fs::write(self.0.join(self.file()), (used + room_bytes).to_string())?)
        };
        // Refused where more than that has come into use meanwhile.
        (1..ATTEMPTS).find_map(|_| set().ok()).map_or_else(set, Ok)
    }

    /// Whether somebody in it was killed for lack of memory.
    pub(crate) fn has_killed(&self) -> bool {
        let file = if self.is_first() { "memory.oom_control" } else { "memory.events" };
        let events = std::fs::read_to_string(self.0.join(file)).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // A process that was waited for may still be counted for a moment.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        eprintln!("{} is left behind", self.0.display());
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);
const FIRST: &str = "/sys/fs/cgroup/memory";
const SECOND: &str = "/sys/fs/cgroup";
const ATTEMPTS: u32 = 50;
const CLOCK: &str = "clock";
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
