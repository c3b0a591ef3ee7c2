//! The guest that is a KVM virtual machine: one vCPU that runs a small program at native speed.
//!
//! The vCPU is entered directly in 64-bit mode at CPL 3, where also a KVM that emulates supervisor mode runs code
//! natively; the program needs no kernel, no devices and no interrupts. Between two writes it spins on the time stamp
//! counter, as a loaded guest would. See `sys/kvm_program.s`.
//!
//! A thread owns the vCPU while the guest runs and gives it back when it ends, so a paused vCPU is one that only the
//! VMM holds. Pausing is telling the thread to end and kicking it (see `sys/kvm_vm.rs`; the signal is `SIGRTMIN`) until
//! it answers.

#[cfg(feature = "cli")]
mod image;
mod program;
mod registers;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[cfg(feature = "cli")]
pub(crate) use image::{ControlWord, GuestImage, pc_firmware};

use super::body::Body;
use super::check::{CheckError, Program};
use super::spec::GuestSpec;
use super::{GuestBuildError, TestGuest};
use crate::dirty::{KvmSlots, Tracked};
use crate::guest::{Guest, GuestError};
use crate::memory::{Backing, GuestMemory};
use crate::sys::kvm_vm::{RunEnd, Vcpu, Vm, allow_kicks, kick};

/// A guest of one vCPU under KVM.
#[derive(Debug)]
pub struct KvmGuest {
    body: Body,
    program: Program,
    slots: KvmSlots,
    /// Nanoseconds for 2^32 ticks of the time stamp counter here.
    clock_scale: u64,
    cpu: Cpu,
    _vm: Vm,
}

/// Where the vCPU is.
#[derive(Debug)]
enum Cpu {
    /// Here.
    Paused(Vcpu),
    /// With a thread that runs it.
    Running(Running),
    /// It made an exit that the program does not make, or its thread panicked: the guest will not run again.
    Stopped(String),
}

#[derive(Debug)]
struct Running {
    order: Arc<AtomicU8>,
    thread: JoinHandle<Result<Vcpu, String>>,
}

impl KvmGuest {
    /// A guest with its memory filled and its vCPU at the program's entry, which has not run yet.
    ///
    /// # Errors
    /// When the host does not give the memory or the virtual machine.
    pub fn source(spec: &GuestSpec, backing: Backing) -> Result<Self, GuestBuildError> {
        let mut guest = Self::destination(spec, backing)?;
        guest.body.fill(&guest.program, guest.clock_scale);
        Ok(guest)
    }

    /// A guest whose memory and state are yet to arrive.
    ///
    /// # Errors
    /// When the host does not give the memory or the virtual machine.
    pub fn destination(spec: &GuestSpec, backing: Backing) -> Result<Self, GuestBuildError> {
        let failed = |action| move |source| GuestBuildError::Kvm { action, source };
        let kvm = open_kvm()?;
        let body = Body::empty(spec, backing)?;
        let vm = Vm::new(&kvm, Arc::clone(&body.memory)).map_err(failed("create a virtual machine"))?;
        let vcpu = vm.vcpu(&kvm).map_err(failed("create a vCPU"))?;
        let mut sregs = vcpu.sregs().map_err(failed("give the vCPU's registers"))?;
        registers::set_mode(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(failed("put the vCPU into 64-bit mode"))?;
        vcpu.set_regs(&registers::entry()).map_err(failed("set the vCPU's registers"))?;
        let khz = vcpu.time_stamp_khz().map_err(failed("give the frequency of the time stamp counter"))?;
        let slots = KvmSlots {
            vm: Arc::new(vm.descriptor().map_err(failed("duplicate its descriptor"))?),
            slots: (0..).take(body.memory.regions().len()).collect(),
        };
        Ok(Self { program: program::pages(spec), body, slots, clock_scale: clock_scale(khz), cpu: Cpu::Paused(vcpu), _vm: vm })
    }

    /// The local clock in nanoseconds, as the program computes it.
    fn local_ns(&self, vcpu: &Vcpu) -> io::Result<u64> {
        let scaled = (u128::from(vcpu.time_stamp_counter()?) * u128::from(self.clock_scale)) >> 32;
        #[expect(clippy::cast_possible_truncation, reason = "as the program does: it keeps 64 bits")]
        Ok(scaled as u64)
    }

    /// The vCPU of a paused guest.
    fn paused(&self, action: &'static str) -> Result<&Vcpu, GuestError> {
        match &self.cpu {
            Cpu::Paused(vcpu) => Ok(vcpu),
            Cpu::Running(_) => Err(GuestError::new(action, "it is running")),
            Cpu::Stopped(why) => Err(GuestError::new(action, stopped(why))),
        }
    }
}

impl Guest for KvmGuest {
    fn pause(&mut self) -> Result<(), GuestError> {
        match std::mem::replace(&mut self.cpu, Cpu::Stopped("lost".into())) {
            Cpu::Running(running) => match running.stop() {
                Ok(Ok(vcpu)) => self.cpu = Cpu::Paused(vcpu),
                Ok(Err(why)) => self.cpu = Cpu::Stopped(why),
                Err(running) => {
                    self.cpu = Cpu::Running(running);
                    return Err(GuestError::new("pause", "its vCPU does not leave KVM_RUN"));
                }
            },
            other => self.cpu = other,
        }
        self.paused("pause").map(drop)
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        const ACTION: &str = "resume";
        let failed = |error: io::Error| GuestError::new(ACTION, error);
        if matches!(self.cpu, Cpu::Running(_)) {
            return Ok(());
        }
        let local_ns = self.local_ns(self.paused(ACTION)?).map_err(failed)?;
        self.body.start(self.clock_scale, local_ns)?;
        let cpu = std::mem::replace(&mut self.cpu, Cpu::Stopped("its thread could not be started".into()));
        let Cpu::Paused(vcpu) = cpu else { unreachable!("seen to be paused above") };
        self.cpu = Cpu::Running(Running::start(vcpu).map_err(failed)?);
        Ok(())
    }

    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        const ACTION: &str = "save its state";
        let failed = |error: io::Error| GuestError::new(ACTION, error);
        let vcpu = self.paused(ACTION)?;
        let registers = registers::encode(&vcpu.regs().map_err(failed)?, &vcpu.sregs().map_err(failed)?);
        Ok(self.body.save(self.local_ns(vcpu).map_err(failed)?, registers))
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        const ACTION: &str = "load its state";
        let failed = |error: io::Error| GuestError::new(ACTION, error);
        let sregs = self.paused(ACTION)?.sregs().map_err(failed)?;
        let machine = self.body.load(registers::REGISTER_BYTES, state)?;
        let regs = registers::decode(&machine, &sregs).map_err(|error| GuestError::new(ACTION, error))?;
        self.paused(ACTION)?.set_regs(&regs).map_err(failed)
    }
}

impl TestGuest for KvmGuest {
    fn spec(&self) -> &GuestSpec {
        &self.body.spec
    }

    fn memory(&self) -> &Arc<GuestMemory> {
        &self.body.memory
    }

    fn tracked(&self) -> Tracked {
        Tracked { memory: Arc::clone(&self.body.memory), marks: self.body.marks.clone(), marks_complete: false, kvm: Some(self.slots.clone()) }
    }

    fn check(&mut self) -> Result<(), CheckError> {
        match &self.cpu {
            Cpu::Running(_) => Err(CheckError::Running),
            Cpu::Stopped(why) => Err(CheckError::Stopped { why: why.clone() }),
            Cpu::Paused(_) => self.body.check(&self.program),
        }
    }
}

impl Drop for KvmGuest {
    fn drop(&mut self) {
        if let Err(error) = self.pause() {
            tracing::error!(error = &error as &dyn std::error::Error, "the vCPU of a dropped guest");
        }
    }
}

impl Running {
    fn start(vcpu: Vcpu) -> io::Result<Self> {
        let order = Arc::new(AtomicU8::new(RUN));
        let theirs = Arc::clone(&order);
        let thread = thread::Builder::new().name("vcpu".into()).spawn(move || run(vcpu, &theirs))?;
        Ok(Self { order, thread })
    }

    /// Ends the thread and takes the vCPU, or why there is none to take. Gives the running vCPU back when it does not
    /// answer in time: it runs on then.
    fn stop(self) -> Result<Result<Vcpu, String>, Self> {
        // Relaxed, here and below: the order carries no data; joining the thread orders all that it did.
        let _ = self.order.compare_exchange(RUN, STOP, Ordering::Relaxed, Ordering::Relaxed);
        let deadline = Instant::now() + LONGEST_STOP;
        while !self.thread.is_finished() {
            let unheard = Instant::now() > deadline && self.order.compare_exchange(STOP, RUN, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if unheard {
                return Err(self);
            }
            kick(&self.thread);
            thread::sleep(BETWEEN_KICKS);
        }
        Ok(self.thread.join().unwrap_or_else(|_| Err("its thread panicked".into())))
    }
}

/// The vCPU's thread: runs it until ordered to stop.
fn run(mut vcpu: Vcpu, order: &AtomicU8) -> Result<Vcpu, String> {
    allow_kicks();
    // The exchange takes the order, so that it cannot be withdrawn afterwards.
    while order.compare_exchange(STOP, TAKEN, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        if let RunEnd::Exited(why) = vcpu.run() {
            let at = vcpu.regs().map_or(0, |regs| regs.rip);
            return Err(format!("{why} at {at:#x}"));
        }
    }
    Ok(vcpu)
}

fn open_kvm() -> Result<kvm_ioctls::Kvm, GuestBuildError> {
    kvm_ioctls::Kvm::new().map_err(|error| {
        let advice = match error.errno() {
            libc::ENOENT => "; load the module kvm_amd or kvm_intel, or let the outer hypervisor nest",
            libc::EACCES | libc::EPERM => "; become root or join the group kvm",
            _ => "",
        };
        GuestBuildError::NoKvm { why: format!("{}{advice}", io::Error::from(error)) }
    })
}

/// Nanoseconds for 2^32 ticks of a counter of `khz`.
fn clock_scale(khz: u32) -> u64 {
    (1_000_000 << 32) / u64::from(khz.max(1))
}

fn stopped(why: &str) -> String {
    format!("it has stopped by itself: {why}")
}

/// Orders to the vCPU's thread.
const RUN: u8 = 0;
const STOP: u8 = 1;
const TAKEN: u8 = 2;

const BETWEEN_KICKS: Duration = Duration::from_micros(50);
const LONGEST_STOP: Duration = Duration::from_secs(5);
