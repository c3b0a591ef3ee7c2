//! Whole migrations in one process: source and destination over loopback, with a guest made of a thread.

mod guest;
mod moves;
mod throttle;
