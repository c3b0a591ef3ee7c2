//! The network between a sender and a receiver, which fails by a script.
//!
//! A relay: one thread for each connection owns both of its sockets, so that closing them resets them at once. Control
//! connections are passed on message by message and lanes byte by byte; what passes moves the script on. A step of it is a
//! moment and what happens then, and a step is looked at only after the one before has happened. Connections are counted,
//! and what happens to "all" of them happens to those that there are: the ones that come afterwards get through, unless
//! the network is said to be down.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pageferry::wire::{Message, decode_message};
use socket2::SockRef;

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// So many bytes have gone to the receiver since Commit or since the last step, whichever was later.
    Bytes(u64),
    /// A message of this name passes, for the so-manyeth time since the last step; from 1.
    Message(&'static str, u32),
    /// So long after the last step.
    Later(Duration),
}

/// What happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    /// All connections are reset; what is under way is lost.
    Reset,
    /// The piece that made it happen is lost, then as in [`Failure::Reset`].
    LoseAndReset,
    /// The piece arrives, and then all connections end in an orderly way.
    PassAndEnd,
    /// Connections stay open and nothing goes in these directions, on those that there are or on later ones as well.
    Silence(Directions, Reach),
    /// Silence ends: what waited goes on.
    Speak,
    /// All connections are reset, and new ones are too until [`Link::repair`].
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Directions {
    Both,
    ToReceiver,
    ToSender,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reach {
    Old,
    All,
}

/// A moment and what happens then.
pub(crate) type Step = (Moment, Failure);

/// Listens until the process ends.
pub(crate) struct Link {
    pub(crate) address: String,
    network: Arc<Network>,
}

struct Network {
    receiver: String,
    script: Mutex<Script>,
    /// Connections so far.
    count: AtomicUsize,
    /// Those below this are to be reset.
    reset_below: AtomicUsize,
    /// Those below this are to end.
    end_below: AtomicUsize,
    silence: Mutex<Option<Silence>>,
    is_down: AtomicBool,
}

#[derive(Clone, Copy)]
struct Silence {
    directions: Directions,
    /// Connections below this are silent.
    below: usize,
}

struct Script {
    steps: VecDeque<Step>,
    is_committed: bool,
    bytes: u64,
    messages: u32,
    since: Instant,
}

impl Link {
    /// Before the receiver at an address.
    pub(crate) fn start(receiver: &str, steps: &[Step]) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let script = Script { steps: steps.iter().copied().collect(), is_committed: false, bytes: 0, messages: 0, since: Instant::now() };
        let network = Arc::new(Network {
            receiver: receiver.to_owned(),
            script: Mutex::new(script),
            count: AtomicUsize::new(0),
            reset_below: AtomicUsize::new(0),
            end_below: AtomicUsize::new(0),
            silence: Mutex::new(None),
            is_down: AtomicBool::new(false),
        });
        let clock = Arc::downgrade(&network);
        thread::spawn(move || {
            while let Some(network) = clock.upgrade()
                && network.script_time()
            {
                drop(network);
                thread::sleep(TICK);
            }
        });
        let listening = Arc::clone(&network);
        thread::spawn(move || {
            for sender in listener.incoming() {
                let Ok(sender) = sender else { break };
                // Every thread that counts connections is this one.
                let index = listening.count.fetch_add(1, Ordering::SeqCst);
                let network = Arc::clone(&listening);
                thread::spawn(move || network.relay(index, &sender));
            }
        });
        Ok(Self { address, network })
    }

    /// Ends [`Failure::Down`].
    pub(crate) fn repair(&self) {
        self.network.is_down.store(false, Ordering::SeqCst);
    }

    /// Steps that have not happened.
    pub(crate) fn left(&self) -> usize {
        self.network.script().steps.len()
    }
}

/// One way through a connection.
struct Way<'s> {
    from: &'s TcpStream,
    to: &'s TcpStream,
    direction: Directions,
    /// Read and not yet passed on: part of a message.
    waiting: Vec<u8>,
    is_open: bool,
}

impl Network {
    fn relay(&self, index: usize, sender: &TcpStream) {
        let gone = || drop(SockRef::from(sender).set_linger(Some(Duration::ZERO)));
        if self.is_down.load(Ordering::SeqCst) {
            return gone();
        }
        let Ok(receiver) = TcpStream::connect(&self.receiver) else { return gone() };
        let _ = (sender.set_nodelay(true), receiver.set_nodelay(true));
        // One side's failure reaches the other as in a network: by a reset.
        if self.pass(index, sender, &receiver).is_err() || self.is_reset(index) {
            // Closing resets now, and throws away what is still in the sockets.
            let _ = SockRef::from(&receiver).set_linger(Some(Duration::ZERO));
            gone();
        }
    }

    fn pass(&self, index: usize, sender: &TcpStream, receiver: &TcpStream) -> Result<()> {
        for stream in [sender, receiver] {
            stream.set_write_timeout(Some(TICK))?;
        }
        let mut ways = [
            Way { from: sender, to: receiver, direction: Directions::ToReceiver, waiting: Vec::new(), is_open: true },
            Way { from: receiver, to: sender, direction: Directions::ToSender, waiting: Vec::new(), is_open: true },
        ];
        // Until the first message says what the connection is for.
        let mut is_control = true;
        while ways.iter().any(|way| way.is_open) {
            if self.is_reset(index) {
                return Ok(());
            }
            if index < self.end_below.load(Ordering::SeqCst) {
                for stream in [sender, receiver] {
                    stream.shutdown(Shutdown::Both)?;
                }
                return Ok(());
            }
            let ready = self.ready(index, &ways)?;
            for (way, is_ready) in ways.iter_mut().zip(ready) {
                if is_ready && !self.is_reset(index) {
                    self.pass_some(index, way, &mut is_control)?;
                }
            }
        }
        Ok(())
    }

    /// Which ways have something to pass and may.
    fn ready(&self, index: usize, ways: &[Way<'_>; 2]) -> Result<[bool; 2]> {
        let silence = *self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = |direction| {
            silence.is_some_and(|silence| index < silence.below && (silence.directions == Directions::Both || silence.directions == direction))
        };
        let may = [0, 1].map(|way: usize| ways[way].is_open && !is_silent(ways[way].direction));
        let mut sockets = ways.each_ref().map(|way| PollFd::new(way.from.as_fd(), PollFlags::POLLIN));
        for (socket, may) in sockets.iter_mut().zip(may) {
            if !may {
                socket.set_events(PollFlags::empty());
            }
        }
        let timeout = PollTimeout::try_from(TICK).expect("a few milliseconds");
        if poll(&mut sockets, timeout)? == 0 {
            return Ok([false; 2]);
        }
        let ready = [0, 1].map(|way: usize| may[way] && sockets[way].any().unwrap_or(false));
        if ready == [false; 2] {
            // A connection that broke while it is silent is ready all the time.
            thread::sleep(TICK);
        }
        Ok(ready)
    }

    fn pass_some(&self, index: usize, way: &mut Way<'_>, is_control: &mut bool) -> Result<()> {
        let mut bytes = [0; 1 << 14];
        let count = match way.from.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if [ErrorKind::Interrupted, ErrorKind::WouldBlock].contains(&error.kind()) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            way.is_open = false;
            // Fails when it is closed both ways.
            let _ = way.to.shutdown(Shutdown::Write);
            return Ok(());
        }
        let is_down = way.direction == Directions::ToReceiver;
        if !*is_control {
            return self.deliver(index, way, &bytes[..count], is_down.then_some(count), None);
        }
        way.waiting.extend_from_slice(&bytes[..count]);
        while let Some((message, length)) = decode_message(&way.waiting)? {
            let piece: Vec<u8> = way.waiting.drain(..length).collect();
            self.deliver(index, way, &piece, is_down.then_some(length), Some(message.name()))?;
            if matches!(message, Message::Attach { .. } | Message::Attached { .. }) {
                // A lane: no messages after the first, except Fetch, which is passed as bytes.
                *is_control = false;
                let rest = std::mem::take(&mut way.waiting);
                self.deliver(index, way, &rest, is_down.then_some(rest.len()), None)?;
                break;
            }
        }
        Ok(())
    }

    /// Passes a piece on, unless it is the moment for it to be lost.
    fn deliver(&self, index: usize, way: &Way<'_>, piece: &[u8], down: Option<usize>, message: Option<&'static str>) -> Result<()> {
        let failure = self.script().piece(down.unwrap_or(0), message);
        if let Some(failure @ (Failure::LoseAndReset | Failure::Down)) = failure {
            self.fail(failure);
            return Ok(());
        }
        self.write(index, way.to, piece)?;
        if let Some(failure) = failure {
            self.fail(failure);
        }
        Ok(())
    }

    fn write(&self, index: usize, mut to: &TcpStream, mut piece: &[u8]) -> Result<()> {
        while !piece.is_empty() {
            match to.write(piece) {
                Ok(0) => bail!("closed"),
                Ok(count) => piece = &piece[count..],
                Err(error) if [ErrorKind::Interrupted, ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                    if self.is_reset(index) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Steps that are due by the clock; whether there may be more.
    fn script_time(&self) -> bool {
        let failure = self.script().time();
        if let Some(failure) = failure {
            self.fail(failure);
        }
        !self.script().steps.is_empty()
    }

    fn fail(&self, failure: Failure) {
        let all = self.count.load(Ordering::SeqCst);
        match failure {
            Failure::Reset | Failure::LoseAndReset => self.reset_below.store(all, Ordering::SeqCst),
            Failure::PassAndEnd => self.end_below.store(all, Ordering::SeqCst),
            Failure::Silence(directions, reach) => {
                let below = if reach == Reach::All { usize::MAX } else { all };
                *self.silence.lock().unwrap_or_else(PoisonError::into_inner) = Some(Silence { directions, below });
            }
            Failure::Speak => *self.silence.lock().unwrap_or_else(PoisonError::into_inner) = None,
            Failure::Down => {
                self.is_down.store(true, Ordering::SeqCst);
                self.reset_below.store(all, Ordering::SeqCst);
            }
        }
    }

    fn is_reset(&self, index: usize) -> bool {
        index < self.reset_below.load(Ordering::SeqCst)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Script {
    /// A piece is about to pass, `down` bytes of it to the receiver.
    fn piece(&mut self, down: usize, message: Option<&'static str>) -> Option<Failure> {
        if self.is_committed {
            self.bytes += down as u64;
        }
        self.is_committed |= message == Some("Commit");
        let &(moment, _) = self.steps.front()?;
        let is_now = match moment {
            Moment::Bytes(bytes) => self.is_committed && self.bytes >= bytes,
            Moment::Message(name, times) => {
                self.messages += u32::from(message == Some(name));
                message == Some(name) && self.messages == times
            }
            Moment::Later(_) => false,
        };
        is_now.then(|| self.next())
    }

    fn time(&mut self) -> Option<Failure> {
        match self.steps.front() {
            Some(&(Moment::Later(after), _)) if self.since.elapsed() >= after => Some(self.next()),
            _ => None,
        }
    }

    fn next(&mut self) -> Failure {
        let (_, failure) = self.steps.pop_front().expect("looked at by the caller");
        (self.bytes, self.messages, self.since) = (0, 0, Instant::now());
        failure
    }
}

/// How long anything may take to notice that something has happened elsewhere.
const TICK: Duration = Duration::from_millis(2);
