//! The raw kernel ABI, one facility to a file.
//!
//! Everything here is a thin, safe face on system calls that no crate wraps (or wraps wrongly): sizes and offsets of
//! kernel structs are asserted at compile time, raw descriptors do not leave. No policy lives here.
#![expect(unsafe_code, reason = "system calls")]

#[cfg(feature = "userfaultfd")]
pub(crate) mod advise;
mod beat;
pub(crate) mod cgroup;
mod crowd;
#[cfg(all(feature = "cli", feature = "kvm", target_arch = "x86_64"))]
pub(crate) mod firmware;
#[cfg(feature = "userfaultfd")]
pub(crate) mod gate;
pub(crate) mod huge;
pub(crate) mod inheriting;
pub(crate) mod kvm_log;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub(crate) mod kvm_vm;
pub(crate) mod meminfo;
#[cfg(feature = "userfaultfd")]
pub(crate) mod missing_pages;
pub(crate) mod pagemap;
pub(crate) mod priority;
pub(crate) mod processor_time;
#[cfg(feature = "sandbox")]
pub(crate) mod refused_calls;
pub(crate) mod socket_queue;
#[cfg(feature = "userfaultfd")]
pub(crate) mod write_protection;
