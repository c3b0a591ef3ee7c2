//! Seeds that once failed. Every run begins with them.

/// A seed, and the case that it has to mean for this to be worth anything.
pub(crate) const ONCE_FAILED: [(u64, &str); 0] = [];
