//! One mechanism and the VMM's marks, as one tracker.

use std::sync::Arc;

use super::{DirtyError, DirtyTracker, Marks, Tracked, TrackerKind};
use crate::bitmap::PageBitmap;
use crate::memory::GuestMemory;

/// What a mechanism finds, or the VMM marks.
pub(super) struct Union {
    /// Goes before the mechanism, see [`DirtyTracker::guest_left`].
    memory: Arc<GuestMemory>,
    /// None when the marks are all there is.
    mechanism: Option<Box<dyn DirtyTracker>>,
    marks: Marks,
}

impl Union {
    pub(super) fn new(mechanism: Option<Box<dyn DirtyTracker>>, tracked: &Tracked) -> Self {
        Self { mechanism, marks: tracked.marks.clone(), memory: Arc::clone(&tracked.memory) }
    }
}

impl DirtyTracker for Union {
    fn kind(&self) -> TrackerKind {
        self.mechanism.as_ref().map_or(TrackerKind::Marked, |mechanism| mechanism.kind())
    }

    fn needs_pause(&self) -> bool {
        self.mechanism.as_ref().is_some_and(|mechanism| mechanism.needs_pause())
    }

    fn start(&mut self, populated: &mut PageBitmap) -> Result<(), DirtyError> {
        // Marks from before the start are about writes that show in what is populated.
        self.marks.drain_into(&mut PageBitmap::new(self.memory.layout().chunks()));
        match &mut self.mechanism {
            Some(mechanism) => mechanism.start(populated),
            None => self.memory.populated_into(populated).map_err(TrackerKind::Marked.failed("arm")),
        }
    }

    fn harvest(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError> {
        self.marks.drain_into(into);
        self.mechanism.as_mut().map_or(Ok(()), |mechanism| mechanism.harvest(into))
    }

    fn peek(&mut self, into: &mut PageBitmap) -> Result<(), DirtyError> {
        self.marks.peek_into(into);
        self.mechanism.as_mut().map_or(Ok(()), |mechanism| mechanism.peek(into))
    }

    fn stop(&mut self) -> Result<(), DirtyError> {
        self.mechanism.as_mut().map_or(Ok(()), |mechanism| mechanism.stop())
    }

    fn guest_left(&mut self) -> Result<(), DirtyError> {
        self.mechanism.as_mut().map_or(Ok(()), |mechanism| mechanism.guest_left())
    }
}
