//! The thread that drives a session's protocol machine at the destination.
//!
//! It does nothing that takes long but to write what a slow peer takes its time to read, so that the heartbeat goes on
//! whatever the session is busy with.

use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;

use super::shared::Shared;
use crate::control::{Connection, Heard};
use crate::error::Error;
use crate::protocol::{Destination, DestinationEvent};
use crate::sys::priority;

/// What that thread works with.
pub(super) struct Pump {
    shared: Arc<Shared>,
    /// To the source, while there is one.
    connection: Option<Connection>,
    events: Sender<DestinationEvent>,
}

impl Pump {
    /// Starts the thread. It ends with the machine, and `events` tells what the machine has to say until then.
    pub(super) fn start(shared: Arc<Shared>, connection: Connection, events: Sender<DestinationEvent>) -> Result<JoinHandle<()>, Error> {
        let pump = Self { shared, connection: Some(connection), events };
        let started = std::thread::Builder::new().name("pf-control".into()).spawn(move || {
            let _prompt = priority::be_prompt();
            pump.run();
        });
        started.map_err(|source| Error::System { action: "start a thread", source })
    }

    fn run(mut self) {
        while !self.drain() {
            let deadline = self.shared.machine().poll_timeout();
            let patience = deadline.map_or(IDLE, |deadline| deadline.saturating_duration_since(Instant::now()));
            match Connection::listen_on(self.connection.as_mut(), &self.shared.bell, patience) {
                Ok(Heard::Message(message)) => self.machine_of_now().handle_message(Instant::now(), message),
                Ok(Heard::Part) => self.shared.machine().heard(Instant::now()),
                Ok(Heard::LongPart) => {
                    self.shared.arrived.note_part();
                    self.shared.machine().heard(Instant::now());
                }
                Ok(Heard::Bell) => {}
                Ok(Heard::Nothing) => self.machine_of_now().handle_timeout(Instant::now()),
                Err(error) => self.lost(error),
            }
        }
        self.shared.close_lanes();
    }

    /// The machine, which knows how much has arrived by now.
    fn machine_of_now(&self) -> MutexGuard<'_, Destination> {
        let mut machine = self.shared.machine();
        let (frames, bytes) = self.shared.arrived.now();
        machine.arrived(frames, bytes);
        machine
    }

    /// Writes and tells everything the machine has to say; whether it has ended.
    fn drain(&mut self) -> bool {
        loop {
            let message = {
                let mut machine = self.shared.machine();
                // What the machine says from now on is for the newest connection.
                while let Ok(connection) = self.shared.newer.try_recv() {
                    self.connection = Some(connection);
                }
                machine.poll_message()
            };
            if let Some(message) = message {
                if let Some(connection) = &mut self.connection {
                    connection.send(&message);
                }
                continue;
            }
            let event = self.shared.machine().poll_event();
            let Some(event) = event else { return false };
            if let DestinationEvent::Interrupted { .. } = event {
                self.connection = None;
            }
            let ended = matches!(event, DestinationEvent::Ended(_));
            // A session that gave up does not need to know.
            let _ = self.events.send(event);
            if ended {
                return true;
            }
        }
    }

    fn lost(&mut self, error: Error) {
        tracing::debug!(error = %error.in_full(), "the control connection is lost");
        let (now, reason) = (Instant::now(), error.in_full());
        let is_nonsense = matches!(error, Error::Wire(_));
        self.shared.set_cause(error);
        // A peer that talks nonsense can still be told so, unless the guest is this end's already.
        let tell = |machine: &mut Destination| !machine.may_run() && machine.fail(now, reason);
        if !is_nonsense || !tell(&mut self.shared.machine()) {
            self.connection = None;
            self.shared.machine().handle_closed(now);
        }
    }
}

/// How long to wait when the machine waits for nothing.
const IDLE: Duration = Duration::from_secs(1);
