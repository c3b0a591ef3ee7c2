//! Whole migrations in one process: source and destination over loopback, with a guest made of a thread.

mod fleet;
mod guest;
mod moves;
mod throttle;
