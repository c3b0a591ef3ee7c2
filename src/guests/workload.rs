//! The guest that is a thread: it writes to the memory as a guest would, without a virtual machine.
//!
//! One thread writes, because the patterns say which write comes after which. It lives from [`Guest::resume`] to
//! [`Guest::pause`]: pausing is telling it to end and joining it, so that between the two there is nothing that could
//! write. It ends only between two writes.
//!
//! A paced thread sleeps until its next write is due, at least 200 µs, and then does all that have become due; so it
//! costs little of the machine. What it could not do in time it makes up for 10 ms at most, and not at all after a
//! pause.
//!
//! A throttled thread sleeps through the held part of each period.
//!
//! Every page is marked after the write to it, so this guest can be tracked by marks alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::body::Body;
use super::check::{CheckError, Program};
use super::control::{self, BACKLOG_NS, Control, Field};
use super::pattern::{Write, Writes, rewrite_word};
use super::spec::GuestSpec;
use super::throttle::{Throttle, monotonic_ns};
use super::{GuestBuildError, PROGRAM_PAGES, TestGuest};
use crate::dirty::{Marks, Tracked};
use crate::guest::{Guest, GuestError, RunShare};
use crate::memory::{Backing, GuestMemory};
use crate::units::{PAGE_WORDS, PageCount, PageIndex};

/// A guest whose one vCPU is a thread of this process.
#[derive(Debug)]
pub struct Workload {
    body: Body,
    throttle: Arc<Throttle>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Workload {
    /// A guest with its memory filled, which has not run yet.
    ///
    /// # Errors
    /// When the host does not give the memory.
    pub fn source(spec: &GuestSpec, backing: Backing) -> Result<Self, GuestBuildError> {
        let mut guest = Self::destination(spec, backing)?;
        guest.body.fill(&Program::new(), 0);
        Ok(guest)
    }

    /// A guest whose memory and state are yet to arrive.
    ///
    /// # Errors
    /// When the host does not give the memory.
    pub fn destination(spec: &GuestSpec, backing: Backing) -> Result<Self, GuestBuildError> {
        Ok(Self { body: Body::empty(spec, backing)?, throttle: Arc::new(Throttle::none()), running: None })
    }
}

impl Guest for Workload {
    fn pause(&mut self) -> Result<(), GuestError> {
        let Some(Running { stop, thread }) = self.running.take() else { return Ok(()) };
        // Relaxed: only the flag is read; joining the thread is what orders its writes before everything after.
        stop.store(true, Ordering::Relaxed);
        thread.thread().unpark();
        thread.join().map_err(|_| GuestError::new("pause", "its thread panicked"))
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        if self.running.is_some() {
            return Ok(());
        }
        self.body.start(0, monotonic_ns())?;
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            memory: Arc::clone(&self.body.memory),
            marks: self.body.marks.clone(),
            writes: Writes::new(&self.body.spec),
            period_ns: self.body.spec.rate().period_ns(),
            clock_offset: self.body.control().load(Field::ClockOffset),
            throttle: Arc::clone(&self.throttle),
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new().name("workload".into()).spawn(move || writer.run());
        self.running = Some(Running { stop, thread: thread.map_err(|error| GuestError::new("resume", error))? });
        Ok(())
    }

    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        if self.running.is_some() {
            return Err(GuestError::new("save its state", "it is running"));
        }
        Ok(self.body.save(monotonic_ns(), Vec::new()))
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        self.body.load(0, state).map(drop)
    }

    fn throttle(&mut self, share: RunShare) -> Result<(), GuestError> {
        self.throttle.set(share);
        Ok(())
    }
}

impl TestGuest for Workload {
    fn spec(&self) -> &GuestSpec {
        &self.body.spec
    }

    fn memory(&self) -> &Arc<GuestMemory> {
        &self.body.memory
    }

    fn tracked(&self) -> Tracked {
        Tracked { memory: Arc::clone(&self.body.memory), marks: self.body.marks.clone(), marks_complete: true, kvm: None }
    }

    fn check(&mut self) -> Result<(), CheckError> {
        if self.running.is_some() {
            return Err(CheckError::Running);
        }
        self.body.check(&Program::new())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if self.pause().is_err() {
            tracing::error!("the workload's thread panicked");
        }
    }
}

/// What the thread has.
struct Writer {
    memory: Arc<GuestMemory>,
    marks: Marks,
    writes: Writes,
    period_ns: u64,
    clock_offset: u64,
    throttle: Arc<Throttle>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn run(&self) {
        let control = Control::new(&self.memory);
        let mut done = control.load(Field::Writes);
        let mut due = self.now();
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(hold) = self.throttle.hold(monotonic_ns()) {
                thread::park_timeout(hold);
                due = due.max(self.now());
                continue;
            }
            let now = self.now();
            if now < due {
                thread::park_timeout(Duration::from_nanos(due - now).max(LEAST_SLEEP));
                continue;
            }
            done += 1;
            self.write(self.writes.nth(done));
            if done > 1 {
                let gap = now.saturating_sub(control.load(Field::LastWrite));
                if gap > control.load(Field::LongestGap) {
                    control.store(Field::LongestGap, gap);
                }
            }
            control.store(Field::Writes, done);
            control.store(Field::LastWrite, now);
            due = (due + self.period_ns).max(now.saturating_sub(BACKLOG_NS));
            control.store(Field::Due, due);
            self.marks.mark_pages(control::PAGE, PageCount(1));
        }
    }

    fn write(&self, write: Write) {
        let page = PageIndex(PROGRAM_PAGES + write.page());
        let chunk = self.memory.chunk(page.chunk());
        match write {
            Write::Word { word, value, .. } => chunk.store_word(page.bit(), word, value),
            Write::Page { key, .. } => (0..PAGE_WORDS).for_each(|index| chunk.store_word(page.bit(), index, rewrite_word(key, index))),
        }
        self.marks.mark_pages(page, PageCount(1));
    }

    /// Guest time.
    fn now(&self) -> u64 {
        monotonic_ns().wrapping_add(self.clock_offset)
    }
}

/// A paced thread does not sleep for less: it would only burn time on timers.
const LEAST_SLEEP: Duration = Duration::from_micros(200);
