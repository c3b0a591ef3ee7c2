//! The bench: the same guest, on the same link, moved by this engine and by QEMU.
//!
//! Two network namespaces stand for two hosts, with a cable between them that is shaped or not. In each scenario every
//! engine and mode moves the guest in turn, pair after pair, so that whatever else the machine does meets all of them;
//! one run of each engine comes before and does not count, because memory that the machine touches for the first time is
//! slow. The order is another one in each pair, so that none always runs after the same other.
//!
//! # What makes it fair
//! - The guest: the same program at the same pace on the same memory contents, on KVM in both, its vCPU busy between
//!   writes. QEMU's memory is what QEMU takes by itself; the guest is written into it from outside.
//! - The clocks: total time and downtime are each engine's own. The guest's longest gap between two writes is the guest's
//!   own in both. Bytes on the wire are those that came in at the destination's end of the cable, headers and all.
//! - A machine that is a virtual one itself stands still now and then, which the guest feels whatever engine moves it: how
//!   long that was is told beside the gaps. One cause is that its host takes back memory that has been free for a moment, as
//!   that of the last run has been: 25 to 40 ms at a time, in the middle of the next. On a shaped link each run comes after
//!   a rest. On others memory that was taken back, and has to be found again, would be most of what is measured, and
//!   which engine meets it a matter of turns: as much as the destination needs is held until shortly before.
//! - Processor time: all threads of both processes but the vCPU's, from before the migration until its end.
//! - QEMU is configured for speed: no limit of bandwidth, and each mode that makes sense (see [`Mode`]).
//! - Post-copy is compared with post-copy: both from the start, QEMU's with preemption. How well the guest lives with
//!   missing memory is told by what it writes in its first second at the destination.
//! - A mode that has not finished once within the time there is, is not tried again.
#![forbid(unsafe_code)]

#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod ballast;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod compare;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod cpu;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod first_second;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod floor;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod host;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod leftovers;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod measure;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod network;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod ours;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod process;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod qemu;
pub mod results;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod scenario;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod session;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod stopped;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod table;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod tool;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod watch;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod window;

#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub use {
    host::missing,
    leftovers::Leftovers,
    ours::Ours,
    qemu::Mode,
    scenario::Scenario,
    session::{Plan, run},
    table::{block, summary},
};
