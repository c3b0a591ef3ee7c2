//! What crosses in post-copy, by why it does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam::utils::CachePadded;

use crate::page::Encoded;
use crate::stats::Encodings;
use crate::units::{ByteCount, PageCount};

/// Counted while pages cross, over all generations.
#[derive(Debug, Default)]
pub(in crate::source) struct Counters {
    pub(super) urgent: Lanes,
    pub(super) bulk: Lanes,
    requests: AtomicU64,
    behind: AtomicU64,
    encodings: Mutex<Encodings>,
}

/// What lanes of one kind carry.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    pages: CachePadded<AtomicU64>,
    bytes: CachePadded<AtomicU64>,
}

/// What crossed in post-copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// On the urgent lane.
    pub urgent: Traffic,
    /// On the bulk lanes.
    pub bulk: Traffic,
    /// Pages that the destination asked for, those included that were under way already.
    pub requests: u64,
    /// Pages on the urgent lane that nobody had asked for: they followed one of a run.
    pub behind: PageCount,
}

/// Pages, and the bytes they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Pages.
    pub pages: PageCount,
    /// Bytes of their frames.
    pub bytes: ByteCount,
}

// Relaxed throughout: counters for display, and the threads that count are joined before the last look.
impl Counters {
    /// As of now.
    pub(in crate::source) fn pushed(&self) -> Pushed {
        Pushed {
            urgent: self.urgent.traffic(),
            bulk: self.bulk.traffic(),
            requests: self.requests.load(Ordering::Relaxed),
            behind: PageCount(self.behind.load(Ordering::Relaxed)),
        }
    }

    /// How the pages travelled, once the generation is stopped.
    pub(in crate::source) fn encodings(&self) -> Encodings {
        *self.encodings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn asked(&self, pages: usize) {
        self.requests.fetch_add(pages as u64, Ordering::Relaxed);
    }

    pub(super) fn followed(&self, pages: PageCount) {
        self.behind.fetch_add(pages.0, Ordering::Relaxed);
    }

    /// Adds what a thread has gathered.
    pub(super) fn encoded(&self, encodings: Encodings) {
        *self.encodings.lock().unwrap_or_else(PoisonError::into_inner) += encodings;
    }
}

impl Lanes {
    /// A frame was made.
    pub(super) fn made(&self, encoded: &Encoded) {
        self.pages.fetch_add(encoded.pages.masks.pages().0, Ordering::Relaxed);
    }

    /// Bytes were written.
    pub(super) fn wrote(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn traffic(&self) -> Traffic {
        Traffic { pages: PageCount(self.pages.load(Ordering::Relaxed)), bytes: ByteCount(self.bytes.load(Ordering::Relaxed)) }
    }
}
