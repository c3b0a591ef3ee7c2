//! A KVM virtual machine on guest memory, its vCPU, and the kick that stops a vCPU.
//!
//! kvm-ioctls does the system calls. What is here is what makes them safe to offer: whatever can run the machine keeps
//! its memory mapped.
//!
//! # The kick
//! A vCPU leaves `KVM_RUN` when a signal is to be handled by its thread. The signal is `SIGRTMIN`, with a handler that
//! does nothing, installed for the process when the first vCPU is made. A kick that comes just before the thread enters
//! `KVM_RUN` is lost; so a kick is repeated until the thread answers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Once};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::memory::GuestMemory;

/// A virtual machine.
#[derive(Debug)]
pub(crate) struct Vm {
    fd: VmFd,
    memory: Arc<GuestMemory>,
}

/// A vCPU of it.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    /// Keeps the memory mapped at the addresses the machine knows, as long as it can run.
    _memory: Arc<GuestMemory>,
}

/// Why a vCPU is not running any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// A signal came.
    Kicked,
    /// It did what only a host can answer, or the kernel gave up on it.
    Exited(String),
}

impl Vm {
    /// A machine with each region of `memory` in the slot of its number.
    pub(crate) fn new(kvm: &Kvm, memory: Arc<GuestMemory>) -> io::Result<Self> {
        let vm = Self { fd: kvm.create_vm()?, memory };
        for (slot, region) in (0..).zip(vm.memory.regions()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.spec().start.0,
                memory_size: region.len() as u64,
                userspace_addr: region.host().as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as `memory` lives, all that can run the machine holds it, and no
            // reference to it claims anything about its contents (see `memory`).
            unsafe { vm.fd.set_user_memory_region(slot) }?;
        }
        Ok(vm)
    }

    /// A duplicate of the machine's descriptor, for its dirty log.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the descriptor is open, because `self.fd` is.
        unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }.try_clone_to_owned()
    }

    /// The machine's one vCPU, with all features that `kvm` can give it: without, it has not even 64-bit mode.
    pub(crate) fn vcpu(&self, kvm: &Kvm) -> io::Result<Vcpu> {
        install_kick()?;
        let fd = self.fd.create_vcpu(0)?;
        fd.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        Ok(Vcpu { fd, _memory: Arc::clone(&self.memory) })
    }
}

impl Vcpu {
    /// Runs until a kick or an exit.
    pub(crate) fn run(&mut self) -> RunEnd {
        match self.fd.run() {
            Ok(VcpuExit::Intr) => RunEnd::Kicked,
            Ok(exit) => RunEnd::Exited(format!("exit {exit:x?}")),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => RunEnd::Kicked,
            Err(error) => RunEnd::Exited(format!("KVM_RUN failed: {error}")),
        }
    }

    pub(crate) fn regs(&self) -> io::Result<kvm_regs> {
        Ok(self.fd.get_regs()?)
    }

    pub(crate) fn set_regs(&self, regs: &kvm_regs) -> io::Result<()> {
        Ok(self.fd.set_regs(regs)?)
    }

    pub(crate) fn sregs(&self) -> io::Result<kvm_sregs> {
        Ok(self.fd.get_sregs()?)
    }

    pub(crate) fn set_sregs(&self, sregs: &kvm_sregs) -> io::Result<()> {
        Ok(self.fd.set_sregs(sregs)?)
    }

    /// The time stamp counter as `rdtsc` in the guest would read it now.
    pub(crate) fn time_stamp_counter(&self) -> io::Result<u64> {
        let wanted = kvm_msr_entry { index: IA32_TIME_STAMP_COUNTER, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[wanted]).expect("one entry is not too many");
        match self.fd.get_msrs(&mut msrs)? {
            1 => Ok(msrs.as_slice()[0].data),
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "the time stamp counter cannot be read")),
        }
    }

    /// How fast it counts, in kHz.
    pub(crate) fn time_stamp_khz(&self) -> io::Result<u32> {
        Ok(self.fd.get_tsc_khz()?)
    }
}

/// Signals the thread once. Does nothing to one that has ended.
pub(crate) fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle has not been joined, so the thread's id is valid, also when the thread has ended. An error
    // means that it has.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
}

/// Lets kicks through to the calling thread, whatever it inherited.
pub(crate) fn allow_kicks() {
    // SAFETY: an all-zero set is a valid value to initialise.
    let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::sigemptyset(&raw mut signals) };
    // SAFETY: the set is initialised, and the signal is a valid one.
    unsafe { libc::sigaddset(&raw mut signals, kick_signal()) };
    // SAFETY: the set is initialised; no old set is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const signals, std::ptr::null_mut()) };
}

/// Installs the handler that does nothing, once.
fn install_kick() -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero action is a valid one: default handler, empty mask, no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as *const () as usize;
        // SAFETY: the handler has the signature that flags without SA_SIGINFO ask for, and touches nothing.
        if unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) } != 0 {
            result = Err(io::Error::last_os_error());
        }
    });
    result
}

extern "C" fn ignore(_signal: libc::c_int) {}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// The code of the guest's program, to be copied into guest memory; it begins with its entry point.
pub(crate) fn program() -> &'static [u8] {
    let start = &raw const pageferry_guest_program;
    let length = (&raw const pageferry_guest_program_end).addr() - start.addr();
    // SAFETY: the two symbols are the ends of what the assembly below puts into one section of this program, which is
    // mapped for ever and never written to; the compiler knows no object of another size there.
    unsafe { std::slice::from_raw_parts(start, length) }
}

std::arch::global_asm!(include_str!("kvm_program.s"));

// SAFETY: both symbols are defined by the assembly above; the second is the end of the first and is never read.
unsafe extern "C" {
    safe static pageferry_guest_program: u8;
    safe static pageferry_guest_program_end: u8;
}

const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
