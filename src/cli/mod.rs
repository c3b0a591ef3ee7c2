//! What the three programs share: flags, units, and the commands of `pageferry`.
#![forbid(unsafe_code)]

pub mod args;
pub mod batch;
pub mod bench;
pub mod demo;
pub mod exit;
mod interrupts;
#[cfg(feature = "keys")]
pub mod keys;
pub mod output;
pub mod plan;
pub mod probe;
pub mod progress;
pub mod receive;
pub mod report;
mod road;
pub mod sandbox;
pub mod send;
pub mod signals;
pub mod start;
pub mod units;
