//! Choosing a tracker.
//!
//! Every choice is tried, not looked up: a tracker counts as usable when it did on this memory all that a start does,
//! short of arming.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::kvm_log::KvmLog;
use super::soft_dirty::SoftDirty;
use super::union::Union;
use super::{DirtyError, DirtyTracker, Marks, TrackerKind};
use crate::memory::GuestMemory;

/// What a VMM says about the memory to be tracked, and who writes to it.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// The memory.
    pub memory: Arc<GuestMemory>,
    /// Where the VMM marks what no mechanism sees. They are always part of a harvest.
    pub marks: Marks,
    /// Whether the VMM marks *every* write and discard, so that no mechanism is needed.
    pub marks_complete: bool,
    /// The virtual machine that runs on the memory, if KVM does.
    pub kvm: Option<KvmSlots>,
}

impl Tracked {
    /// Memory that threads of this process write to.
    #[must_use]
    pub fn plain(memory: Arc<GuestMemory>) -> Self {
        let marks = Marks::new(memory.layout());
        Self { memory, marks, marks_complete: false, kvm: None }
    }
}

/// A KVM virtual machine and the slots its memory is in.
#[derive(Clone, Debug)]
pub struct KvmSlots {
    /// A duplicate of the VM's descriptor.
    pub vm: Arc<OwnedFd>,
    /// The slot of each region, in the layout's order. Each region is one slot.
    pub slots: Vec<u32>,
}

/// Which tracker to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best one that is usable.
    #[default]
    Auto,
    /// This one or none.
    Only(TrackerKind),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}

/// Opens a tracker for `tracked`: the one asked for, or the best one that works. It is not started.
///
/// # Errors
/// When the one asked for is not usable here, or none is; each with its reason.
pub fn open(choice: Choice, tracked: &Tracked) -> Result<Box<dyn DirtyTracker>, DirtyError> {
    let candidates = match choice {
        Choice::Only(kind) => return open_one(kind, tracked),
        Choice::Auto if tracked.kvm.is_some() => [TrackerKind::KvmLog, TrackerKind::WriteProtect, TrackerKind::SoftDirty, TrackerKind::Marked],
        Choice::Auto => [TrackerKind::WriteProtect, TrackerKind::SoftDirty, TrackerKind::KvmLog, TrackerKind::Marked],
    };
    let mut tried = Vec::new();
    for kind in candidates {
        match open_one(kind, tracked) {
            Ok(tracker) => {
                tried.iter().for_each(|error| tracing::info!(%error, "fell back"));
                return Ok(tracker);
            }
            Err(error) => tried.push(error),
        }
    }
    Err(DirtyError::NoneUsable { tried })
}

fn open_one(kind: TrackerKind, tracked: &Tracked) -> Result<Box<dyn DirtyTracker>, DirtyError> {
    let mechanism: Option<Box<dyn DirtyTracker>> = match kind {
        TrackerKind::WriteProtect => Some(write_protect(tracked)?),
        TrackerKind::SoftDirty => Some(Box::new(SoftDirty::open(tracked)?)),
        TrackerKind::KvmLog => Some(Box::new(KvmLog::open(tracked)?)),
        TrackerKind::Marked if tracked.marks_complete => None,
        TrackerKind::Marked => return Err(kind.unusable("this guest does not mark every write itself")),
    };
    Ok(Box::new(Union::new(mechanism, tracked)))
}

#[cfg(feature = "userfaultfd")]
fn write_protect(tracked: &Tracked) -> Result<Box<dyn DirtyTracker>, DirtyError> {
    Ok(Box::new(super::write_protect::WriteProtect::open(tracked)?))
}

#[cfg(not(feature = "userfaultfd"))]
fn write_protect(_tracked: &Tracked) -> Result<Box<dyn DirtyTracker>, DirtyError> {
    Err(TrackerKind::WriteProtect.unusable("built without the feature `userfaultfd`"))
}
