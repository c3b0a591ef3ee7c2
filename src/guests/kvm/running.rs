//! A vCPU that runs: the thread that has it, and the one that interrupts it while it is throttled.
//!
//! A vCPU cannot look at a clock of the host, so somebody has to kick it when its part of a period is over; its own thread
//! then looks at the clock and waits. The program leaves `KVM_RUN` between any two instructions, so a write to its control
//! page from here may be lost when it was about to do the same: then it makes up for one delay more, once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::scaled;
use crate::dirty::Marks;
use crate::guests::control::{self, Control, Field};
use crate::guests::throttle::{Throttle, monotonic_ns};
use crate::memory::GuestMemory;
use crate::sys::kvm_vm::{RunEnd, Vcpu, allow_kicks, kick};
use crate::units::PageCount;

/// A vCPU with a thread that runs it.
#[derive(Debug)]
pub(super) struct Running {
    order: Arc<AtomicU8>,
    thread: Arc<JoinHandle<Result<Vcpu, String>>>,
    throttle: Arc<Throttle>,
    interrupter: Option<Interrupter>,
}

/// What the vCPU's thread has to know to hold it now and then.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) marks: Marks,
    pub(super) clock_scale: u64,
    pub(super) throttle: Arc<Throttle>,
}

/// The thread that kicks the vCPU when it is to be held.
#[derive(Debug)]
struct Interrupter {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Running {
    pub(super) fn start(vcpu: Vcpu, pace: Pace) -> io::Result<Self> {
        let order = Arc::new(AtomicU8::new(RUN));
        let (theirs, throttle) = (Arc::clone(&order), Arc::clone(&pace.throttle));
        let thread = thread::Builder::new().name("vcpu".into()).spawn(move || run(vcpu, &theirs, &pace))?;
        let mut running = Self { order, thread: Arc::new(thread), throttle, interrupter: None };
        // Without it the guest runs unthrottled, which is no reason not to let it run.
        if let Err(error) = running.interrupt_as_needed() {
            tracing::warn!(%error, "the guest cannot be slowed down");
        }
        Ok(running)
    }

    /// Starts or ends the interruptions, after the throttle has changed.
    pub(super) fn interrupt_as_needed(&mut self) -> io::Result<()> {
        match (self.throttle.is_on(), &self.interrupter) {
            (true, None) => self.interrupter = Some(Interrupter::start(Arc::clone(&self.thread), Arc::clone(&self.throttle))?),
            (false, Some(_)) => self.interrupter = None,
            _ => {}
        }
        Ok(())
    }

    /// Ends the thread and takes the vCPU, or why there is none to take. Gives the running vCPU back when it does not
    /// answer in time: it runs on then.
    pub(super) fn stop(mut self) -> Result<Result<Vcpu, String>, Self> {
        // Relaxed, here and below: the order carries no data; joining the thread orders all that it did.
        let _ = self.order.compare_exchange(RUN, STOP, Ordering::Relaxed, Ordering::Relaxed);
        let deadline = Instant::now() + LONGEST_STOP;
        while !self.thread.is_finished() {
            let unheard = Instant::now() > deadline && self.order.compare_exchange(STOP, RUN, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if unheard {
                return Err(self);
            }
            self.thread.thread().unpark();
            kick(&self.thread);
            thread::sleep(BETWEEN_KICKS);
        }
        // It holds the other handle on the thread.
        self.interrupter = None;
        let thread = Arc::into_inner(self.thread).expect("the interrupter is gone");
        Ok(thread.join().unwrap_or_else(|_| Err("its thread panicked".into())))
    }
}

impl Interrupter {
    fn start(vcpu: Arc<JoinHandle<Result<Vcpu, String>>>, throttle: Arc<Throttle>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let interrupt = move || {
            while !stopped.load(Ordering::Relaxed) {
                match throttle.hold(monotonic_ns()) {
                    // A kick that comes too early is lost, hence several.
                    Some(_) => {
                        kick(&vcpu);
                        thread::park_timeout(BETWEEN_INTERRUPTIONS);
                    }
                    None => thread::park_timeout(throttle.until_hold(monotonic_ns())),
                }
            }
        };
        Ok(Self { stop, thread: thread::Builder::new().name("vcpu-throttle".into()).spawn(interrupt)? })
    }
}

impl Drop for Interrupter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Waits for its end: the vCPU's thread must not be kicked once it is joined.
        while !self.thread.is_finished() {
            self.thread.thread().unpark();
            thread::sleep(BETWEEN_KICKS);
        }
    }
}

impl Pace {
    /// Waits until the vCPU may run; whether it had to. It does not make up for that time.
    fn hold(&self, vcpu: &Vcpu, order: &AtomicU8) {
        let mut was_held = false;
        while order.load(Ordering::Relaxed) == RUN
            && let Some(hold) = self.throttle.hold(monotonic_ns())
        {
            was_held = true;
            thread::park_timeout(hold);
        }
        if was_held && let Ok(ticks) = vcpu.time_stamp_counter() {
            let control = Control::new(&self.memory);
            let now = scaled(ticks, self.clock_scale).wrapping_add(control.load(Field::ClockOffset));
            if control.load(Field::Due) < now {
                control.store(Field::Due, now);
                self.marks.mark_pages(control::PAGE, PageCount(1));
            }
        }
    }
}

/// The vCPU's thread: runs it until ordered to stop.
fn run(mut vcpu: Vcpu, order: &AtomicU8, pace: &Pace) -> Result<Vcpu, String> {
    allow_kicks();
    // The exchange takes the order, so that it cannot be withdrawn afterwards.
    while order.compare_exchange(STOP, TAKEN, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        pace.hold(&vcpu, order);
        if let RunEnd::Exited(why) = vcpu.run() {
            let at = vcpu.regs().map_or(0, |regs| regs.rip);
            return Err(format!("{why} at {at:#x}"));
        }
    }
    Ok(vcpu)
}

/// Orders to the vCPU's thread.
const RUN: u8 = 0;
const STOP: u8 = 1;
const TAKEN: u8 = 2;

const BETWEEN_KICKS: Duration = Duration::from_micros(50);
/// A kick costs little while the vCPU is held.
const BETWEEN_INTERRUPTIONS: Duration = Duration::from_micros(300);
const LONGEST_STOP: Duration = Duration::from_secs(5);
