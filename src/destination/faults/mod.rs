//! Memory that a guest runs on before all of its pages are here.
//!
//! Whoever touches a missing page (a vCPU, a thread, a system call) waits in the kernel. The *fault server* learns of it
//! and asks the source on the urgent lane; *installers*, one to a lane, put in place what comes and thereby wake who
//! waits. A page that is not missing and not there reads as zeros: the fault server answers that itself.
//!
//! Pages can be given back to the host meanwhile (a balloon), and what the source has of them must not come back. The
//! kernel tells of that, and the one who takes pages out goes on as soon as it was read; from then on filling them is
//! possible again. Hence the *gate*, a lock: events are read, and the pages marked, with the gate closed; an installer
//! checks the marks and fills in one step with the gate open. So no page slips in between.
//!
//! **While a page is missing the descriptor stays open and all memory registered**, whatever happens: the kernel would
//! hand zeros to those who wait. [`Incomplete::finish`] is the only way out; dropping everything leaves it all as it is,
//! with the guest waiting where it touches missing pages.
//!
//! Other processes' mappings of a shared file are not covered: what they touch of missing pages reads as zeros.

mod gather;
mod incomplete;
mod installer;
mod lane;
mod latency;
mod local;
mod places;
mod request;
mod server;
mod sets;
#[cfg(test)]
mod tests;
mod waiting;

pub(crate) use incomplete::Incomplete;
pub(crate) use installer::Installer;
pub use local::{LocalFaults, local_faults};
pub(crate) use waiting::FaultStats;
