//! What this host can do, found out by doing it on throw-away memory.
//!
//! Kernel versions and config options say little: features are back-ported, compiled out, forbidden to this user, or
//! there and broken. Nothing that is found here is relied on later; a tracker tries for itself when it is opened.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::AsFd;

use serde::Serialize;

use super::soft_dirty;
use crate::memory::{Backing, GuestMemory, MemoryLayout};
use crate::sys::kvm_log;
use crate::units::{ByteCount, PageCount};

/// One thing a migration can make use of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// What it is.
    pub name: &'static str,
    /// Whether it works here.
    pub usable: bool,
    /// More about it; when it is not usable: why, and what to do about it.
    pub detail: String,
}

/// Everything that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Capabilities {
    /// In the order of the report.
    pub list: Vec<Capability>,
}

impl fmt::Display for Capabilities {
    /// A line to each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Capability { name, usable, detail } in &self.list {
            writeln!(f, "{:<4} {name:<26} {detail}", if *usable { "yes" } else { "no" })?;
        }
        Ok(())
    }
}

/// Looks for everything. Takes some milliseconds and a few MiB of memory.
#[must_use]
pub fn probe() -> Capabilities {
    let [write_protect, dropped] = write_protection();
    let list = vec![
        found("write-protect tracker", write_protect),
        found("dropped pages are seen", dropped),
        found("soft-dirty tracker", soft_dirty_bits()),
        found("kvm", kvm()),
        found("kvm-log tracker", kvm_dirty_log()),
        found("memfd", backing(Backing::Memfd)),
        found("hugetlb", hugetlb()),
        found("memory available", available()),
    ];
    Capabilities { list }
}

/// Good to use with a remark, or not because of a reason.
type Finding = Result<String, String>;

fn found(name: &'static str, finding: Finding) -> Capability {
    let usable = finding.is_ok();
    Capability { name, usable, detail: finding.unwrap_or_else(|why| why) }
}

#[cfg(feature = "userfaultfd")]
fn write_protection() -> [Finding; 2] {
    use super::{DirtyError, write_protect};
    match write_protect::sees_dropped_pages() {
        Ok(seen) => [
            Ok("userfaultfd, asynchronous, with PAGEMAP_SCAN".to_owned()),
            seen.then(|| "MADV_DONTNEED of small and huge pages".to_owned())
                .ok_or_else(|| "this kernel's scan misses some: populated pages are compared instead, and holes count as written once".to_owned()),
        ],
        Err(error) => {
            let why = match write_protect::unusable(&error) {
                DirtyError::Unusable { why, .. } => why,
                other => other.to_string(),
            };
            [Err(why), Err("needs the write-protect tracker".to_owned())]
        }
    }
}

#[cfg(not(feature = "userfaultfd"))]
fn write_protection() -> [Finding; 2] {
    let why = "built without the feature `userfaultfd`".to_owned();
    [Err(why.clone()), Err(why)]
}

fn soft_dirty_bits() -> Finding {
    match soft_dirty::kernel_has_it() {
        Ok(true) => Ok("the guest is paused for each harvest".to_owned()),
        Ok(false) => Err("the kernel was built without CONFIG_MEM_SOFT_DIRTY".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn open_kvm() -> Result<File, String> {
    File::options().read(true).write(true).open("/dev/kvm").map_err(|error| format!("/dev/kvm: {error}"))
}

fn kvm() -> Finding {
    open_kvm().map(|_| "/dev/kvm".to_owned())
}

fn kvm_dirty_log() -> Finding {
    match kvm_log::has_manual_protection(open_kvm()?.as_fd()) {
        Ok(true) => Ok("manual protection, bits initially set".to_owned()),
        Ok(false) => Err("KVM lacks manual protection of the dirty log (needs Linux 5.7)".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Maps a little of it.
fn backing(backing: Backing) -> Finding {
    let pages = if backing == Backing::HugeTlb { 512 } else { 1 };
    let layout = MemoryLayout::flat(PageCount(pages)).expect("a small layout");
    GuestMemory::allocate(layout, backing).map(|_| String::new()).map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

fn hugetlb() -> Finding {
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap_or_default();
    match backing(Backing::HugeTlb) {
        Ok(_) => Ok(format!("{} free pages of 2 MiB", free.trim())),
        Err(_) => Err("no free huge pages of 2 MiB: reserve some in /proc/sys/vm/nr_hugepages".to_owned()),
    }
}

fn available() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").map_err(|error| format!("/proc/meminfo: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).ok_or("/proc/meminfo does not say")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().map_err(|error| format!("/proc/meminfo: {error}"))?;
    Ok(ByteCount(kib << 10).to_string())
}
