//! pageferry moves the memory of a running guest from one Linux host to another, page by page, while the guest runs.
//!
//! See the README for what it is and how to begin.

#[cfg(feature = "cli")]
pub mod bench;
pub mod bitmap;
#[cfg(feature = "cli")]
pub mod cli;
mod control;
pub mod destination;
pub mod dirty;
mod error;
pub mod guest;
pub mod guests;
pub mod memory;
pub mod page;
pub mod policy;
pub mod protocol;
#[cfg(feature = "cli")]
pub mod report;
pub mod source;
pub mod stats;
mod sync;
mod sys;
pub mod transport;
pub mod units;
pub mod wire;

pub use error::Error;
