//! The thread that answers faults.
//!
//! A fault on a missing page becomes a request on the urgent lane; one on any other page is answered with zeros here.
//! Nothing is allocated, and nothing waited for, but the kernel's events and the gate.

use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::incomplete::Incomplete;
use super::sets::Asked;
use crate::sys::missing_pages::{Event, Events, MissingPages, NotFilled};
use crate::sys::priority;
use crate::units::PageIndex;

pub(super) struct FaultServer {
    incomplete: Arc<Incomplete>,
    kernel: Arc<MissingPages>,
    woken: PipeReader,
    events: Events,
    /// Pages to ask for, of the events read last.
    asking: Vec<PageIndex>,
    /// Pages to fill with zeros once nobody takes pages out any more.
    later: Vec<PageIndex>,
}

/// What the server has been woken for.
enum Wake {
    Look,
    Stop,
}

impl FaultServer {
    pub(super) fn new(incomplete: Arc<Incomplete>, kernel: Arc<MissingPages>, woken: PipeReader) -> Self {
        Self { incomplete, kernel, woken, events: Events::new(), asking: Vec::with_capacity(MAX_ASKING), later: Vec::with_capacity(MAX_LATER) }
    }

    pub(super) fn run(mut self) {
        priority::raise();
        while let Wake::Look = self.wait() {
            self.read_events();
            self.answer(Instant::now());
            self.try_again();
        }
    }

    /// Waits for something to do.
    fn wait(&mut self) -> Wake {
        let unsent = self.incomplete.lane.unsent();
        let timeout = if self.later.is_empty() { PollTimeout::NONE } else { PollTimeout::from(AGAIN_AFTER_MS) };
        let wakes = PollFlags::POLLIN;
        let mut sources = [PollFd::new(self.kernel.as_fd(), wakes), PollFd::new(self.woken.as_fd(), wakes), PollFd::new(self.woken.as_fd(), wakes)];
        let used = if let Some(stream) = &unsent {
            sources[2] = PollFd::new(stream.as_fd(), PollFlags::POLLOUT);
            3
        } else {
            2
        };
        if let Err(errno) = poll(&mut sources[..used], timeout) {
            tracing::trace!(%errno, "waiting for faults was cut short");
            return Wake::Look;
        }
        let signalled = sources[1].any() == Some(true);
        if unsent.is_some() && sources[2].any() == Some(true) {
            self.incomplete.lane.flush();
        }
        // The end of the pipe means stop.
        if signalled && matches!(self.woken.read(&mut [0; 16]), Ok(0)) { Wake::Stop } else { Wake::Look }
    }

    /// Reads what has happened, and marks what was removed before anybody can fill it again.
    fn read_events(&mut self) {
        let Self { incomplete, kernel, events, .. } = self;
        let gate = incomplete.close_gate();
        if let Err(error) = kernel.read(events) {
            tracing::warn!(%error, "the kernel tells of no faults");
            // Not at once again.
            std::thread::sleep(Duration::from_millis(1));
        }
        for event in events.iter() {
            if let Event::Removed(range) = event {
                incomplete.places.for_each_in(&range, |chunk, mask| incomplete.sets.remove(chunk, mask));
            }
        }
        drop(gate);
    }

    /// Answers the events that were read, at the time `now`.
    fn answer(&mut self, now: Instant) {
        let Self { incomplete, kernel, events, asking, later, .. } = self;
        asking.clear();
        for event in events.iter() {
            match event {
                Event::Fault { address, thread } => {
                    let Some((page, _)) = incomplete.places.page_at(address) else { continue };
                    if incomplete.sets.lacking(page.chunk()) >> page.bit() & 1 == 0 {
                        zero(incomplete, kernel, later, page);
                        continue;
                    }
                    incomplete.waiting().begin(page, thread, now);
                    match incomplete.sets.ask(page.chunk(), 1 << page.bit()) {
                        Asked::First => asking.push(page),
                        Asked::OnItsWay => {}
                        Asked::Arrived => zero(incomplete, kernel, later, page),
                    }
                }
                // Whoever waits for one of them looks again, and finds zeros.
                Event::Removed(range) => {
                    incomplete.places.for_each_in(&range, |chunk, mask| {
                        incomplete.wake_waiters(Some(kernel), chunk, mask & incomplete.sets.asked(chunk));
                    });
                }
                Event::Other(kind) => tracing::warn!(kind, "the kernel tells what was not asked"),
            }
        }
        if !asking.is_empty() {
            incomplete.lane.ask(asking);
        }
    }

    /// Fills with zeros what could not be filled before.
    fn try_again(&mut self) {
        for _ in 0..self.later.len() {
            let page = self.later.swap_remove(0);
            zero(&self.incomplete, &self.kernel, &mut self.later, page);
        }
    }
}

/// Fills a page with zeros, now or later.
fn zero(incomplete: &Incomplete, kernel: &MissingPages, later: &mut Vec<PageIndex>, page: PageIndex) {
    let hopeful = match incomplete.fill_with_zeros(kernel, page) {
        Ok(()) => return,
        Err(NotFilled::Changing | NotFilled::Present) => true,
        Err(NotFilled::Failed(error)) => {
            tracing::debug!(%error, page = page.0, "a page was not filled with zeros");
            error.raw_os_error() == Some(libc::ENOMEM)
        }
    };
    if hopeful && later.len() < MAX_LATER {
        later.push(page);
    } else {
        // Whoever waits faults again, and in memory that is not the guest's any more not here.
        incomplete.wake_waiters(Some(kernel), page.chunk(), 1 << page.bit());
    }
}

/// Pages asked for at once: as many as there are events.
const MAX_ASKING: usize = 64;
const MAX_LATER: usize = 1024;
/// How soon to try again what cannot be filled because pages are taken out.
const AGAIN_AFTER_MS: u8 = 1;
