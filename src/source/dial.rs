//! Opening the connections of a session that carry pages.

use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::pump::{Command, Pump};
use super::push::Lanes;
use crate::control::MessageReader;
use crate::error::Error;
use crate::protocol::Timeouts;
use crate::transport::{Route, Stream, StreamControl};
use crate::wire::{Lane, Message, RefuseReason, SessionId, Token};

/// Where a session's connections go, and what they have to say there.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    pub(super) route: Route,
    pub(super) session: SessionId,
    pub(super) token: Token,
    pub(super) timeouts: Timeouts,
}

impl Dial {
    /// Opens connections and attaches them, some side by side: each takes several round trips. Also how long the destination
    /// took to answer, at best. What goes wrong with one is the end of all.
    pub(super) fn attach(&self, pump: &Pump, lanes: &[Lane], generation: u32) -> Result<(Vec<Stream>, Duration), Error> {
        let attempt = Attempt::default();
        let attach = |lane| self.attach_one(pump, lane, generation, &attempt).map_err(|error| attempt.fail(error)).ok();
        let mut attached = Vec::with_capacity(lanes.len());
        for lanes in lanes.chunks(AT_ONCE) {
            std::thread::scope(|scope| {
                let start = |lane| {
                    let thread = Builder::new().name("pf-attach".into()).spawn_scoped(scope, move || attach(lane));
                    thread.map_err(|source| attempt.fail(Error::System { action: "start a thread", source })).ok()
                };
                let (first, others) = lanes.split_first().expect("one at least");
                let others: Vec<_> = others.iter().map(|lane| start(*lane)).collect();
                attached.extend(attach(*first));
                let join = |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
                attached.extend(others.into_iter().flatten().filter_map(join));
            });
        }
        if let Some(error) = attempt.into_error() {
            return Err(error);
        }
        let round_trip = attached.iter().map(|(_, answered_in)| *answered_in).min().unwrap_or(Duration::MAX);
        Ok((attached.into_iter().map(|(stream, _)| stream).collect(), round_trip))
    }

    fn attach_one(&self, pump: &Pump, lane: Lane, generation: u32, attempt: &Attempt) -> Result<(Stream, Duration), Error> {
        let Self { session, token, .. } = *self;
        let timeout = self.timeouts.handshake;
        attempt.check()?;
        let stream = self.route.connect_again(pump.address(), timeout)?.with_patience(self.timeouts.transport())?;
        attempt.add(stream.control())?;
        let broken = |source| Error::System { action: "prepare a connection for pages", source };
        if let Lane::Bulk(_) = lane {
            stream.prepare_bulk().map_err(broken)?;
        }
        pump.adopt(stream.control());
        let asked = Instant::now();
        let mut answers = MessageReader::of_lane(stream.share(), &lane);
        answers.writer().send(&Message::Attach { session, token, lane, generation })?;
        let answer = answers.next_within(timeout)?;
        match answer {
            Message::Attached { lane: granted } if granted == lane => {
                pump.command(Command::Attaching { generation });
                Ok((stream, asked.elapsed()))
            }
            Message::Refuse { reason, detail } => Err(Error::Refused { reason, detail }),
            _ => Err(Error::Refused { reason: RefuseReason::Other, detail: "an answer out of place to a connection for pages".into() }),
        }
    }

    /// All lanes of a generation of post-copy.
    pub(super) fn lanes(&self, pump: &Pump, channels: u16, generation: u32) -> Result<Lanes, Error> {
        let lanes: Vec<_> = (0..channels).map(Lane::Bulk).chain([Lane::Urgent]).collect();
        let (mut bulk, _) = self.attach(pump, &lanes, generation)?;
        let urgent = bulk.pop().expect("as many as were asked for");
        Ok(Lanes { bulk, urgent })
    }
}

/// Connections that are being attached.
#[derive(Default)]
struct Attempt {
    state: Mutex<AttemptState>,
}

#[derive(Default)]
struct AttemptState {
    opened: Vec<StreamControl>,
    /// What went wrong first.
    wrong: Option<Error>,
}

impl Attempt {
    /// An error if the attempt has failed, which is known by another.
    fn check(&self) -> Result<(), Error> {
        if self.state().wrong.is_some() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// One more, which ends with all others; an error if they have.
    fn add(&self, connection: StreamControl) -> Result<(), Error> {
        let mut state = self.state();
        if state.wrong.is_some() {
            return Err(Error::Cancelled);
        }
        state.opened.push(connection);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, AttemptState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        let mut state = self.state();
        state.wrong.get_or_insert(error);
        state.opened.drain(..).for_each(|connection| connection.shut_down());
    }

    fn into_error(self) -> Option<Error> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).wrong
    }
}

/// Connections that are attached at a time: a receiver bounds those that have not said yet what they want.
const AT_ONCE: usize = 8;
