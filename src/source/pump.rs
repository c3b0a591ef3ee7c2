//! The thread that owns the protocol machine.
//!
//! It keeps the heartbeat going whatever the driver is busy with, writes what the machine wants written (all but the offer,
//! which does not wait for a thread), and when the machine is in doubt it reconnects and asks. When the session ends it shuts
//! the bulk connections down first, so that workers blocked in a write wake at once, and only then tells the driver.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};

use crate::bitmap::PageBitmap;
use crate::control::{Bell, Connection, Heard, MessageReader};
use crate::error::Error;
use crate::protocol::{Source, SourceEnd, SourceEvent, Timeouts};
use crate::stats::GuestOwner;
use crate::sys::priority;
use crate::transport::{Route, Stream, StreamControl, TransportError};
use crate::wire::{ChannelTotals, Offer};

/// What the driver asks of the session.
pub(super) enum Command {
    /// One more lane of this generation is attached.
    Attaching { generation: u32 },
    /// All bulk channels are attached.
    Attached,
    /// Ask how much has been applied.
    AskProgress,
    /// Pages that will be missing in any case, after so much was sent.
    Announce { totals: Vec<ChannelTotals>, stale: PageBitmap },
    /// Everything is sent.
    Finish { totals: Vec<ChannelTotals>, state: Vec<u8> },
    /// Pre-copy is over, and these pages are missing.
    Switch { totals: Vec<ChannelTotals>, state: Vec<u8>, missing: PageBitmap },
    /// All lanes of this generation of post-copy are attached.
    Reattached { generation: u32 },
    /// A lane of this generation broke, or could not be attached.
    Interrupt { generation: u32 },
    /// Try to reconnect once more.
    RecoverAgain,
    /// Serve the rest no more, and look for the destination no more.
    LetGo { reason: String },
    /// The guest is the destination's, from here on.
    Commit { paused_for: Duration },
    /// Call it off.
    Abort { reason: String },
}

/// The driver's end of the pump.
#[derive(Debug)]
pub(super) struct Pump {
    commands: Option<Sender<Command>>,
    bell: Bell,
    events: Receiver<SourceEvent>,
    ended: Receiver<Ended>,
    connections: Arc<Mutex<Connections>>,
    thread: Option<JoinHandle<()>>,
}

/// The last word of a session.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) end: SourceEnd,
    pub(super) owner: GuestOwner,
    /// How the control connection was lost, if it was.
    pub(super) cause: Option<Error>,
}

/// The connections of a session.
#[derive(Debug)]
struct Connections {
    /// The newest.
    control: StreamControl,
    /// Where that leads; none for a Unix socket.
    address: Option<SocketAddr>,
    /// To be shut down when the session ends.
    bulk: Vec<StreamControl>,
    /// Something is being written to the control connection.
    is_writing: bool,
}

impl Connections {
    fn of(control: &Stream) -> Self {
        Self { control: control.control(), address: control.peer_address(), bulk: Vec::new(), is_writing: false }
    }

    /// Others that are being attached stay, to be shut down with the session.
    fn replace_control(&mut self, control: &Stream) {
        (self.control, self.address) = (control.control(), control.peer_address());
    }

    fn shut_down_bulk(&mut self) {
        self.bulk.drain(..).for_each(|connection| connection.shut_down());
    }
}

impl Pump {
    /// Connects and begins the session.
    pub(super) fn start(route: &Route, offer: Offer, timeouts: &Timeouts) -> Result<Self, Error> {
        let stream = route.connect(timeouts.handshake)?.with_patience(timeouts.transport())?;
        // The driver sends at most one command while another waits, and threads that attach lanes one each, which may wait; events beyond the few that matter are progress,
        // dropped when the driver is busy; the end has a channel of its own so that it is never waited for.
        let (commands, to_do) = bounded(4);
        let (tell, events) = bounded(16);
        let (tell_end, ended) = bounded(1);
        let (connections, bell) = (Arc::new(Mutex::new(Connections::of(&stream))), Bell::new()?);
        let mut session = Session {
            machine: Source::new(Instant::now(), offer, *timeouts),
            timeouts: *timeouts,
            route: route.clone(),
            connection: Some(Connection::new(MessageReader::new(stream))),
            commands: Some(to_do),
            bell: bell.clone(),
            events: tell,
            connections: Arc::clone(&connections),
            cause: None,
            has_switched: false,
            stranded: None,
        };
        // The destination builds a guest meanwhile. A thread may be some milliseconds in coming.
        session.speak();
        let thread = std::thread::Builder::new()
            .name("pf-control".into())
            .spawn(move || {
                let _prompt = priority::be_prompt();
                let ended = session.run();
                // The driver may have given up listening; then nobody needs to know.
                let _ = tell_end.send(ended);
            })
            .map_err(|source| Error::System { action: "start a thread", source })?;
        Ok(Self { commands: Some(commands), bell, events, ended, connections, thread: Some(thread) })
    }

    /// A bulk connection of this session: shut down with it.
    pub(super) fn adopt(&self, connection: StreamControl) {
        self.connections().bulk.push(connection);
    }

    /// The address that the control connection leads to, for others beside it; none for a Unix socket.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.connections().address
    }

    /// Kibibytes of the control connection that have not arrived at the destination's host. Signs of life are none.
    pub(super) fn under_way(&self) -> u64 {
        let control = self.connections().control.clone();
        control.under_way().0 >> 10
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        lock(&self.connections)
    }

    /// Asks for something. A session that has ended does nothing any more, and says so through [`Pump::ended`].
    pub(super) fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
            self.bell.ring();
        }
    }

    /// What the session tells, but for its end.
    pub(super) fn events(&self) -> &Receiver<SourceEvent> {
        &self.events
    }

    /// How the session ended: one message, then closed.
    pub(super) fn ended(&self) -> &Receiver<Ended> {
        &self.ended
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.commands = None;
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // What a peer takes its time to read is of no more use.
            let mut writing_since = None;
            while !thread.is_finished() {
                writing_since = if self.connections().is_writing { writing_since.or_else(|| Some(Instant::now())) } else { None };
                if writing_since.is_some_and(|since| since.elapsed() > LAST_WORDS) {
                    self.connections().control.shut_down();
                }
                std::thread::sleep(LOOK_EVERY);
            }
            // A panic there was reported by the panic hook; there is no more to do about it here.
            let _ = thread.join();
        }
    }
}

struct Session {
    machine: Source,
    timeouts: Timeouts,
    route: Route,
    connection: Option<Connection>,
    /// Until the driver has given up.
    commands: Option<Receiver<Command>>,
    bell: Bell,
    events: Sender<SourceEvent>,
    connections: Arc<Mutex<Connections>>,
    cause: Option<Error>,
    /// Post-copy follows.
    has_switched: bool,
    /// The end that the driver was told, unless it wants another.
    stranded: Option<SourceEnd>,
}

impl Session {
    fn run(mut self) -> Ended {
        loop {
            if let Some(end) = self.drain() {
                return self.ended(end);
            }
            match self.commands.as_ref().map(Receiver::try_recv) {
                Some(Ok(command)) => self.obey(command),
                Some(Err(TryRecvError::Disconnected)) => {
                    self.commands = None;
                    // One that is stranded already has nothing more to say.
                    if let Some(end) = self.stranded.take() {
                        return self.ended(end);
                    }
                    let reason = String::from("the sender gave up");
                    if !self.machine.abort(Instant::now(), reason.clone()) {
                        self.machine.let_go(reason);
                    }
                }
                Some(Err(TryRecvError::Empty)) | None => self.listen(),
            }
        }
    }

    fn ended(&mut self, end: SourceEnd) -> Ended {
        self.shut_down_bulk();
        Ended { end, owner: self.machine.owner(), cause: self.cause.take() }
    }

    /// Waits for one input and feeds it to the machine. A command is not fed: it rings.
    fn listen(&mut self) {
        let deadline = self.machine.poll_timeout();
        let patience = deadline.map_or(IDLE, |deadline| deadline.saturating_duration_since(Instant::now()));
        match Connection::listen_on(self.connection.as_mut(), &self.bell, patience) {
            Ok(Heard::Message(message)) => self.machine.handle_message(Instant::now(), message),
            Ok(Heard::Part | Heard::LongPart) => self.machine.heard(Instant::now()),
            Ok(Heard::Bell) => {}
            Ok(Heard::Nothing) => self.machine.handle_timeout(Instant::now()),
            Err(error) => self.lost(error),
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Attaching { generation } => self.machine.attaching(now, generation),
            Command::Attached => self.machine.attached(now),
            Command::AskProgress => self.machine.ask_progress(now),
            Command::Announce { totals, stale } => self.machine.announce(now, totals, &stale),
            Command::Finish { totals, state } => self.machine.finish(now, totals, state),
            Command::Switch { totals, state, missing } => {
                self.has_switched = true;
                self.machine.switch(now, totals, state, &missing);
            }
            Command::Reattached { generation } => {
                self.machine.reattached(now, generation);
            }
            Command::Interrupt { generation } => self.machine.interrupt(now, generation),
            Command::RecoverAgain => {
                self.stranded = None;
                if !self.machine.recover_again(now) {
                    self.machine.ask_again(now);
                }
            }
            Command::LetGo { reason } => {
                if self.machine.let_go(reason) {
                    self.shut_down_bulk();
                    self.connection = None;
                }
            }
            Command::Commit { paused_for } => self.machine.commit(now, paused_for),
            Command::Abort { reason } => {
                self.machine.abort(now, reason);
            }
        }
    }

    /// Writes and tells everything the machine has to say; its end, if it came to one.
    fn drain(&mut self) -> Option<SourceEnd> {
        loop {
            self.speak();
            match self.machine.poll_event()? {
                // The guest still needs what is here; nothing more happens unless the driver wants it.
                SourceEvent::Ended(end @ (SourceEnd::Stranded { .. } | SourceEnd::InDoubt { .. }))
                    if self.has_switched && self.commands.is_some() =>
                {
                    self.stranded = Some(end.clone());
                    self.tell(SourceEvent::Ended(end));
                }
                SourceEvent::Ended(end) => return Some(end),
                interrupted @ SourceEvent::Interrupted { .. } => {
                    self.shut_down_bulk();
                    self.connection = None;
                    self.tell(interrupted);
                }
                SourceEvent::Reconnect => {
                    // The driver shows it; the pump does it.
                    if self.events.len() < PROGRESS_ROOM {
                        let _ = self.events.try_send(SourceEvent::Reconnect);
                    }
                    self.reconnect();
                }
                progress @ SourceEvent::Progress { .. } => {
                    // Full: the driver is busy and will see a later one.
                    if self.events.len() < PROGRESS_ROOM {
                        let _ = self.events.try_send(progress);
                    }
                }
                event => self.tell(event),
            }
        }
    }

    /// Writes what the machine has to say by now.
    fn speak(&mut self) {
        while let Some(message) = self.machine.poll_message() {
            // Without a connection this is only ever Abort, and nobody is there to hear it.
            if let Some(connection) = &mut self.connection {
                lock(&self.connections).is_writing = true;
                connection.send(&message);
                lock(&self.connections).is_writing = false;
            }
        }
    }

    /// Tells the driver something that matters: it listens, or it is gone.
    fn tell(&self, event: SourceEvent) {
        let _ = self.events.send(event);
    }

    fn lost(&mut self, error: Error) {
        tracing::warn!(error = %error.in_full(), "the control connection is lost");
        // A peer that talks nonsense can still be told so, unless it has the guest.
        let is_told = matches!(error, Error::Wire(_)) && self.machine.abort(Instant::now(), error.in_full());
        self.cause = Some(error);
        if !is_told {
            self.connection = None;
            self.machine.handle_closed(Instant::now());
        }
    }

    fn reconnect(&mut self) {
        self.shut_down_bulk();
        self.connection = None;
        match self.connect_again() {
            Ok(stream) => {
                self.connections().replace_control(&stream);
                self.connection = Some(Connection::new(MessageReader::new(stream)));
                self.machine.reconnected(Instant::now());
            }
            Err(error) => {
                tracing::debug!(error = %Error::from(error).in_full(), "cannot ask the destination yet");
                self.machine.reconnect_failed(Instant::now());
            }
        }
    }

    /// Connects to where the session is, or to wherever that has moved.
    fn connect_again(&self) -> Result<Stream, TransportError> {
        let timeout = (self.timeouts.silence / 10).max(Duration::from_secs(1));
        let address = self.connections().address;
        self.route.find_again(address, timeout)?.with_patience(self.timeouts.transport())
    }

    fn shut_down_bulk(&self) {
        self.connections().shut_down_bulk();
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        lock(&self.connections)
    }
}

fn lock(connections: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long the last words of a session may take to write, and how often it is looked whether it is over.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Events that may wait before progress is dropped; the rest of the room is for those that matter.
const PROGRESS_ROOM: usize = 8;
/// How long to wait when the machine waits for nothing.
const IDLE: Duration = Duration::from_secs(1);
