//! Tracking by KVM's dirty log.
//!
//! KVM logs what its vCPUs (and KVM itself) write, for each slot one bit to a page; a word of its bitmap is a word of
//! ours. Reading and clearing are two calls. A page written between them is cleared and reported, and read only after
//! the harvest, so nothing is lost. Only the bits that are reported are cleared.
//!
//! KVM sees no write of the host: device emulation has to mark its own. It does not see discards either; those are
//! found by comparing the populated pages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::discards::Discards;
use super::{DirtyError, DirtyTracker, Tracked, TrackerKind};
use crate::bitmap::PageBitmap;
use crate::memory::GuestMemory;
use crate::sys::kvm_log::{self, Slot};
use crate::units::{CHUNK_SIZE, ChunkIndex};

/// Words to a clear call: 256 MiB of guest memory. The guest's page faults wait meanwhile.
const CLEAR_WORDS: usize = 1024;

/// The tracker.
pub(super) struct KvmLog {
    memory: Arc<GuestMemory>,
    vm: Arc<OwnedFd>,
    logs: Vec<Log>,
    discards: Discards,
    logging: bool,
}

/// The log of one slot.
struct Log {
    slot: Slot,
    first_chunk: ChunkIndex,
    /// Where the log is read to.
    words: Vec<u64>,
}

impl KvmLog {
    /// Tries what a start does, short of switching the log on.
    pub(super) fn open(tracked: &Tracked) -> Result<Self, DirtyError> {
        let kvm = tracked.kvm.as_ref().ok_or_else(|| TrackerKind::KvmLog.unusable("no KVM guest runs on this memory"))?;
        let regions = tracked.memory.regions();
        if kvm.slots.len() != regions.len() {
            return Err(TrackerKind::KvmLog.unusable(format!("the memory has {} regions and the VM {} slots", regions.len(), kvm.slots.len())));
        }
        let mut logs: Vec<Log> = Vec::with_capacity(regions.len());
        for (region, &id) in regions.iter().zip(&kvm.slots) {
            let start = region.host().as_ptr() as usize;
            let slot = Slot { id, guest_start: region.spec().start.0, host: start..start + region.len() };
            let chunks = region.len().div_ceil(CHUNK_SIZE);
            logs.push(Log { slot, first_chunk: region.first_chunk(), words: vec![0; chunks] });
        }
        match kvm_log::has_manual_protection(kvm.vm.as_fd()) {
            Ok(true) => {}
            Ok(false) => return Err(TrackerKind::KvmLog.unusable("KVM lacks manual protection of the dirty log (needs Linux 5.7)")),
            Err(error) => return Err(TrackerKind::KvmLog.unusable(error.to_string())),
        }
        for log in &mut logs {
            match log.slot.read_log(kvm.vm.as_fd(), &mut log.words) {
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Err(TrackerKind::KvmLog.unusable("the VM uses the dirty ring")),
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(TrackerKind::KvmLog.unusable(format!("slot {}: {error}", log.slot.id)));
                }
                // ENOENT: the slot has no log yet.
                _ => {}
            }
        }
        let (memory, vm) = (Arc::clone(&tracked.memory), Arc::clone(&kvm.vm));
        Ok(Self { memory, vm, logs, discards: Discards::new(tracked, |_| true), logging: false })
    }

    fn arm(&mut self, populated: &mut PageBitmap) -> io::Result<()> {
        let vm = self.vm.as_fd();
        if !self.logging {
            kvm_log::enable_manual_protection(vm)?;
        }
        self.logging = true;
        for log in &mut self.logs {
            log.slot.set_logging(vm, true)?;
            // Every bit is set now, and nothing protected.
            log.slot.read_log(vm, &mut log.words)?;
            log.clear(vm)?;
        }
        self.memory.populated_into(populated)?;
        self.discards.start()
    }

    fn take(&mut self, into: &mut PageBitmap) -> io::Result<()> {
        let vm = self.vm.as_fd();
        for log in &mut self.logs {
            log.slot.read_log(vm, &mut log.words)?;
            log.clear(vm)?;
            log.add_to(into);
        }
        self.discards.harvest(into)
    }

    fn look(&mut self, into: &mut PageBitmap) -> io::Result<()> {
        for log in &mut self.logs {
            // Under manual protection this takes nothing. What is in `words` then is of no use to a harvest, which reads
            // for itself: only bits that it reports may be cleared.
            log.slot.read_log(self.vm.as_fd(), &mut log.words)?;
            log.add_to(into);
        }
        Ok(())
    }
}

impl Log {
    /// Clears what `words` holds.
    fn clear(&self, vm: BorrowedFd<'_>) -> io::Result<()> {
        for (index, words) in self.words.chunks(CLEAR_WORDS).enumerate() {
            if words.iter().any(|&word| word != 0) {
                self.slot.clear_log(vm, index * CLEAR_WORDS, words)?;
            }
        }
        Ok(())
    }

    /// Adds what `words` holds to `into`.
    fn add_to(&self, into: &mut PageBitmap) {
        for (chunk, &word) in (self.first_chunk.0..).zip(&self.words) {
            into.insert_word(ChunkIndex(chunk), word);
        }
    }
}

impl DirtyTracker for KvmLog {
    fn kind(&self) -> TrackerKind {
        TrackerKind::KvmLog
    }

    fn start(&mut self, populated: &mut PageBitmap) -> Result<(), DirtyError> {
        self.arm(populated).map_err(TrackerKind::KvmLog.failed("arm"))
    }

    fn harvest(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError> {
        self.take(into).map_err(TrackerKind::KvmLog.failed("harvest"))
    }

    fn peek(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError> {
        self.look(into).map_err(TrackerKind::KvmLog.failed("peek"))
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        if self.logging {
            self.logging = false;
            let results: Vec<io::Result<()>> = self.logs.iter().map(|log| log.slot.set_logging(self.vm.as_fd(), false)).collect();
            results.into_iter().collect::<io::Result<()>>().map_err(TrackerKind::KvmLog.failed("stop"))?;
        }
        Ok(())
    }
}

impl Drop for KvmLog {
    fn drop(&mut self) {
        // Nothing depends on it any more; a log left on only costs the guest speed.
        drop(self.stop());
    }
}
