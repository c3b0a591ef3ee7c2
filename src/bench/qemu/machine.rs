//! A QEMU whose machine is the guest and nothing else.
//!
//! A PC without devices, with our firmware, and with QEMU's own kind of memory (private, anonymous), as a user would
//! start it. The guest is written into that memory from outside before the machine runs for the first time.

use std::path::Path;

use anyhow::{Context, Result};

use super::qmp::Qmp;
use crate::bench::measure::Job;
use crate::bench::network::End;
use crate::bench::process::Process;
use crate::guests::pc_firmware;

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// The name of its vCPU's thread.
pub(super) const VCPU: &str = "CPU 0/KVM";

/// A running QEMU.
pub(super) struct Machine {
    pub(super) process: Process,
    pub(super) qmp: Qmp,
}

impl Machine {
    /// Starts one end: a source that stands still, or a destination that waits to be told where to listen.
    ///
    /// # Errors
    /// With what QEMU said.
    pub(super) fn start(job: &Job<'_>, end: End, directory: &Path) -> Result<Self> {
        let firmware = directory.join("firmware");
        std::fs::write(&firmware, pc_firmware()).with_context(|| firmware.display().to_string())?;
        let socket = directory.join(match end {
            End::Source => "source",
            End::Destination => "destination",
        });
        // One of the last run would be taken for the new one's.
        let _ = std::fs::remove_file(&socket);
        let memory = job.guest.memory().0;
        let mut command = job.network.command(end, PROGRAM);
        command.args(FIXED).args(["-m", &format!("{memory}B"), "-object", &format!("memory-backend-ram,id=memory,size={memory}B")]);
        command.arg("-bios").arg(&firmware).args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        match end {
            End::Source => command.arg("-S"),
            End::Destination => command.args(["-incoming", "defer"]),
        };
        let mut process = Process::start(command, job.leftovers)?;
        match Qmp::connect(&socket) {
            Ok(qmp) => Ok(Self { process, qmp }),
            Err(error) => Err(error).with_context(|| format!("{PROGRAM} said: {}", process.stderr.last_words())),
        }
    }
}

/// The processor is one that software KVMs can give, too.
const FIXED: [&str; 16] = [
    "-name",
    "guest,debug-threads=on",
    "-accel",
    "kvm",
    "-cpu",
    "qemu64,-pni,-svm",
    "-machine",
    "pc,memory-backend=memory",
    "-smp",
    "1",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-vga",
    "none",
];
