//! What the connections of one migration have in common: the way to the destination.
//!
//! Each connection sees only what it gets of the link, which says as much about the others as about the link: one that
//! sends raw pages takes most of it, and would then be told that it is fast enough for raw pages. So what arrives on all
//! of them is counted together, and each takes the link to be as fast as its fair share, which is what it gets once all
//! choose alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The way that some connections share.
#[derive(Debug, Default)]
pub struct Path {
    /// Bytes that have arrived on all of them.
    arrived: AtomicU64,
    /// Connections that have something to send.
    at_work: AtomicU32,
}

/// One connection's part in it.
#[derive(Debug)]
pub(super) struct Share {
    path: Arc<Path>,
    is_at_work: bool,
}

impl Share {
    pub(super) fn new(path: Arc<Path>) -> Self {
        Self { path, is_at_work: false }
    }

    /// The connection has something to send.
    pub(super) fn work(&mut self) {
        if !std::mem::replace(&mut self.is_at_work, true) {
            // Relaxed, as all here: figures for an estimate, which order nothing.
            self.path.at_work.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It has nothing to send for now.
    pub(super) fn rest(&mut self) {
        if std::mem::take(&mut self.is_at_work) {
            self.path.at_work.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// So many bytes more have arrived on it.
    pub(super) fn arrived(&self, bytes: u64) {
        self.path.arrived.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that have arrived on all of them.
    pub(super) fn total(&self) -> u64 {
        self.path.arrived.load(Ordering::Relaxed)
    }

    /// What `bytes` of all of them leave each of those that have something to send.
    pub(super) fn fair(&self, bytes: u64) -> f64 {
        bytes as f64 / f64::from(self.path.at_work.load(Ordering::Relaxed).max(1))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.rest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_that_has_something_to_send_counts_on_the_same() {
        let path = Arc::<Path>::default();
        let [mut one, mut other] = [(); 2].map(|()| Share::new(Arc::clone(&path)));
        one.work();
        one.work();
        one.arrived(300);
        assert_eq!(one.fair(one.total()), 300.0);
        other.work();
        other.arrived(100);
        assert_eq!([&one, &other].map(|share| share.fair(share.total())), [200.0; 2]);
        drop(other);
        assert_eq!(one.fair(one.total()), 400.0);
        one.rest();
        assert_eq!(one.fair(one.total()), 400.0);
    }
}
