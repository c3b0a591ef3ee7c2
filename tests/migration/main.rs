//! Whole migrations in one process: source and destination over loopback, with a guest made of a thread.

mod fleet;
mod guest;
#[cfg(feature = "cli")]
#[path = "../processes/huge_pages.rs"]
mod huge_pages;
mod let_go;
mod limits;
mod moves;
#[cfg(feature = "cli")]
mod pool;
mod throttle;
