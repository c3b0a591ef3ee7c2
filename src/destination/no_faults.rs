//! In place of the fault server in builds without userfaultfd: there is never a memory with missing pages.

use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use super::MissingError;
use crate::bitmap::PageBitmap;
use crate::memory::{GuestMemory, Staging};
use crate::transport::Stream;
use crate::units::{PageCount, PageIndex};
use crate::wire::Lane;

/// There is none.
#[derive(Debug)]
pub(crate) struct Incomplete(());

/// There is none.
#[derive(Debug)]
pub(crate) struct Installer(());

/// What has been waited for pages to arrive.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultStats {
    pub(crate) faults: u64,
    pub(crate) p50: Duration,
    pub(crate) p90: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
    pub(crate) threads: Vec<ThreadWaits>,
    pub(crate) urgent: PageCount,
    pub(crate) bulk: PageCount,
}

/// What a thread has waited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadWaits {
    pub(crate) thread: u32,
    pub(crate) faults: u64,
    pub(crate) waited: Duration,
}

fn never() -> ! {
    unreachable!("it never begins")
}

fn absent() -> MissingError {
    MissingError::Unusable(Error::new(ErrorKind::Unsupported, "this build has no userfaultfd"))
}

impl Incomplete {
    pub(crate) fn probe(_memory: &GuestMemory) -> Result<PageCount, MissingError> {
        Err(absent())
    }

    pub(crate) fn empty_ahead(_memory: &GuestMemory, _pages: &PageBitmap) -> Result<(), MissingError> {
        Err(absent())
    }

    pub(crate) fn begin(_memory: Arc<GuestMemory>, _missing: &PageBitmap, _empty: Option<&PageBitmap>) -> Result<Arc<Self>, MissingError> {
        Err(absent())
    }

    pub(crate) fn installer(self: &Arc<Self>, _lane: Lane) -> Installer {
        never()
    }

    pub(crate) fn connect(&self, _stream: Stream) {
        never()
    }

    pub(crate) fn disconnect(&self) {
        never()
    }

    pub(crate) fn missing(&self) -> PageCount {
        never()
    }

    pub(crate) fn outstanding(&self) -> PageCount {
        never()
    }

    pub(crate) fn arrived(&self) -> PageBitmap {
        never()
    }

    pub(crate) fn discarded(&self, _first: PageIndex, _count: PageCount) -> Result<(), MissingError> {
        never()
    }

    pub(crate) fn finish(&self) -> FaultStats {
        never()
    }

    pub(crate) fn abandon(&self) {
        never()
    }

    pub(crate) fn stats(&self) -> FaultStats {
        never()
    }
}

impl Installer {
    pub(crate) fn install(&mut self, _staging: &Staging) -> Result<PageCount, MissingError> {
        never()
    }
}
