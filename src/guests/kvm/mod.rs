//! The guest that is a KVM virtual machine: one vCPU that runs a small program at native speed.
//!
//! The vCPU is entered directly in 64-bit mode at CPL 3, where also a KVM that emulates supervisor mode runs code
//! natively; the program needs no kernel, no devices and no interrupts. Between two writes it spins on the time stamp
//! counter, as a loaded guest would. See `sys/kvm_program.s`.
//!
//! A thread owns the vCPU while the guest runs and gives it back when it ends, so a paused vCPU is one that only the
//! VMM holds. Pausing is telling the thread to end and kicking it (see `sys/kvm_vm.rs`; the signal is `SIGRTMIN`) until
//! it answers.
//!
//! A throttled vCPU is kicked at the end of its part of each period, and its thread then waits for the next one.

#[cfg(feature = "cli")]
mod image;
mod program;
mod registers;
mod running;

use std::io;
use std::sync::Arc;

#[cfg(feature = "cli")]
pub(crate) use image::{ControlWord, GuestImage, pc_firmware};

use super::body::Body;
use super::check::{CheckError, Program};
use super::spec::GuestSpec;
use super::throttle::Throttle;
use super::{GuestBuildError, TestGuest};
use crate::dirty::{KvmSlots, Tracked};
use crate::guest::{Guest, GuestError, RunShare};
use crate::memory::{Backing, GuestMemory};
use crate::sys::kvm_vm::{Vcpu, Vm};
use running::{Pace, Running};

/// A guest of one vCPU under KVM.
#[derive(Debug)]
pub struct KvmGuest {
    body: Body,
    program: Program,
    slots: KvmSlots,
    /// Nanoseconds for 2^32 ticks of the time stamp counter here.
    clock_scale: u64,
    throttle: Arc<Throttle>,
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
        Ok(Self {
            program: program::pages(spec),
            body,
            slots,
            clock_scale: clock_scale(khz),
            throttle: Arc::new(Throttle::none()),
            cpu: Cpu::Paused(vcpu),
            _vm: vm,
        })
    }

    /// The local clock in nanoseconds, as the program computes it.
    fn local_ns(&self, vcpu: &Vcpu) -> io::Result<u64> {
        Ok(scaled(vcpu.time_stamp_counter()?, self.clock_scale))
    }

    /// What the vCPU's thread has to know to hold it now and then.
    fn pace(&self) -> Pace {
        Pace {
            memory: Arc::clone(&self.body.memory),
            marks: self.body.marks.clone(),
            clock_scale: self.clock_scale,
            throttle: Arc::clone(&self.throttle),
        }
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
        self.cpu = Cpu::Running(Running::start(vcpu, self.pace()).map_err(failed)?);
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

    fn throttle(&mut self, share: RunShare) -> Result<(), GuestError> {
        self.throttle.set(share);
        match &mut self.cpu {
            Cpu::Running(running) => running.interrupt_as_needed().map_err(|error| GuestError::new("be slowed down", error)),
            Cpu::Paused(_) | Cpu::Stopped(_) => Ok(()),
        }
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

/// What a time stamp counter of `ticks` is in nanoseconds, as the program computes it.
fn scaled(ticks: u64, clock_scale: u64) -> u64 {
    let scaled = (u128::from(ticks) * u128::from(clock_scale)) >> 32;
    #[expect(clippy::cast_possible_truncation, reason = "as the program does: it keeps 64 bits")]
    let kept = scaled as u64;
    kept
}

fn stopped(why: &str) -> String {
    format!("it has stopped by itself: {why}")
}
