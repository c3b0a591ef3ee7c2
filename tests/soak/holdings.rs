//! What a process holds, as `/proc` tells.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What one process has of things that can be lost track of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    descriptors: usize,
    threads: usize,
    /// Descriptors that are userfaultfds.
    userfaultfds: usize,
    mappings: usize,
    resident_kib: u64,
    locked_kib: u64,
}

impl Holdings {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let entries = |of: &str| -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{pid}/{of}")).with_context(|| of.to_owned())?.count()) };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |field: &str| -> Result<u64> {
            let line = status.lines().find(|line| line.starts_with(field)).with_context(|| field.to_owned())?;
            line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).with_context(|| line.to_owned())
        };
        // One that is closed meanwhile is none.
        let links = std::fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        Ok(Self {
            descriptors: entries("fd")?,
            threads: entries("task")?,
            userfaultfds: links.filter(|link| link.as_os_str() == "anon_inode:[userfaultfd]").count(),
            mappings: std::fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().count(),
            resident_kib: kib("VmRSS:")?,
            locked_kib: kib("VmLck:")?,
        })
    }

    /// Resident memory, to be shown.
    pub(crate) fn resident(&self) -> String {
        format!("{} KiB", self.resident_kib)
    }

    /// All of it, to be shown.
    pub(crate) fn summary(&self) -> String {
        let Self { descriptors, threads, userfaultfds, mappings, resident_kib, locked_kib } = self;
        format!(
            "{descriptors} descriptors ({userfaultfds} userfaultfds), {threads} threads, {mappings} mappings, {resident_kib} KiB resident, {locked_kib} locked"
        )
    }

    /// Waits until the process has no more than this again.
    ///
    /// # Errors
    /// When that is not so within `limit`.
    pub(crate) fn returns(&self, pid: u32, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        loop {
            let now = Self::of(pid)?;
            let is_back = now.descriptors <= self.descriptors
                && now.threads <= self.threads
                && now.userfaultfds <= self.userfaultfds
                && now.mappings <= self.mappings + SLACK_MAPPINGS
                && now.locked_kib <= self.locked_kib
                && now.resident_kib <= self.resident_kib + SLACK_KIB;
            if is_back {
                return Ok(());
            }
            if Instant::now() >= until {
                bail!("it has more than it had: {now:?}, at first {self:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What an allocator keeps and thread stacks leave; a fifth of what would be lost with a guest.
const SLACK_KIB: u64 = 12 << 10;
/// The C library keeps stacks of threads that ended, two mappings each, and splits its heap.
const SLACK_MAPPINGS: usize = 64;
