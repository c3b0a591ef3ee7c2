//! The network between a sender and a receiver, which fails by a script.
//!
//! A relay: one thread for each connection owns both of its sockets, so that closing them resets them at once. It
//! understands nothing but where messages begin and end, and that only on plain control connections: those are passed on
//! message by message, everything else byte by byte. What passes, what the programs say and time move the script on
//! (`script.rs`). Connections are counted, and what happens to "all" of them happens to those that there are: the ones that
//! come afterwards get through, unless the network is said to be down.

mod script;
mod way;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pageferry::wire::{Message, decode_message};
use socket2::SockRef;

use script::Script;
pub(crate) use script::{Directions, Failure, Moment, Reach, Step};
use way::Way;

/// Listens until the process ends.
pub(crate) struct Link {
    pub(crate) address: String,
    network: Arc<Network>,
}

struct Network {
    receiver: String,
    elsewhere: Box<dyn Fn() + Send + Sync>,
    script: Mutex<Script>,
    /// Connections so far.
    count: AtomicUsize,
    /// Those below this are to be reset.
    reset_below: AtomicUsize,
    /// This one too.
    reset_one: AtomicUsize,
    /// Those below this are to end.
    end_below: AtomicUsize,
    /// Those below this are to be overtaken.
    late_below: AtomicUsize,
    shape: Mutex<Shape>,
    is_down: AtomicBool,
    /// Messages that were passed on.
    passed: Mutex<Vec<&'static str>>,
    is_over: AtomicBool,
}

/// What is done to connections that are open.
#[derive(Clone, Copy, Default)]
struct Shape {
    /// In these directions, on connections below this.
    silence: Option<(Directions, usize)>,
    delay: Option<(Directions, Duration)>,
    trickle: Option<(Directions, u64)>,
    /// In this direction, after so many bytes.
    flip: Option<(Directions, u64)>,
    late_by: Duration,
}

impl Link {
    /// Before the receiver at an address. `elsewhere` is what [`Failure::Elsewhere`] calls.
    pub(crate) fn start(receiver: &str, steps: &[Step], elsewhere: impl Fn() + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let network = Arc::new(Network {
            receiver: receiver.to_owned(),
            elsewhere: Box::new(elsewhere),
            script: Mutex::new(Script::new(steps)),
            count: AtomicUsize::new(0),
            reset_below: AtomicUsize::new(0),
            reset_one: AtomicUsize::new(usize::MAX),
            end_below: AtomicUsize::new(0),
            late_below: AtomicUsize::new(0),
            shape: Mutex::default(),
            is_down: AtomicBool::new(false),
            passed: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let clock = Arc::clone(&network);
        thread::spawn(move || {
            while clock.script().left() > 0 && !clock.is_over.load(Ordering::SeqCst) {
                let failure = clock.script().time();
                failure.into_iter().for_each(|failure| clock.fail(failure));
                thread::sleep(TICK);
            }
        });
        let listening = Arc::clone(&network);
        thread::spawn(move || {
            for sender in listener.incoming() {
                let Ok(sender) = sender else { break };
                if listening.is_over.load(Ordering::SeqCst) {
                    break;
                }
                // Every thread that counts connections is this one.
                let index = listening.count.fetch_add(1, Ordering::SeqCst);
                let network = Arc::clone(&listening);
                thread::spawn(move || network.relay(index, &sender));
            }
        });
        Ok(Self { address, network })
    }

    /// For whoever listens to the programs: one of them has said something.
    pub(crate) fn listener(&self) -> impl Fn(&str) + Send + 'static {
        let network = Arc::clone(&self.network);
        move |line| {
            let failure = network.script().said(line);
            failure.into_iter().for_each(|failure| network.fail(failure));
        }
    }

    /// Ends [`Failure::Down`].
    pub(crate) fn repair(&self) {
        self.network.fail(Failure::Up);
    }

    /// Steps that have not happened.
    pub(crate) fn left(&self) -> usize {
        self.network.script().left()
    }

    /// Whether nothing has passed yet that [`Failure::Flip`] was to change.
    pub(crate) fn has_a_bit_to_flip(&self) -> bool {
        self.network.shape().flip.is_some()
    }

    /// Whether a message of this name was passed on, where messages can be seen.
    pub(crate) fn has_passed(&self, message: &str) -> bool {
        self.network.passed.lock().unwrap_or_else(PoisonError::into_inner).contains(&message)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.network.is_over.store(true, Ordering::SeqCst);
        self.network.fail(Failure::Reset);
        // Wakes the thread that accepts; if nobody is there it is not there either.
        let _ = TcpStream::connect(&self.address);
    }
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
        let mut ways = [Way::new(sender, receiver, Directions::ToReceiver), Way::new(receiver, sender, Directions::ToSender)];
        // Until the first message says what the connection is for.
        let mut is_control = true;
        while ways.iter().any(Way::is_open) {
            if self.is_reset(index) {
                return Ok(());
            }
            if index < self.end_below.load(Ordering::SeqCst) {
                for stream in [sender, receiver] {
                    stream.shutdown(Shutdown::Both)?;
                }
                return Ok(());
            }
            if index < self.late_below.load(Ordering::SeqCst) {
                let [to_receiver, _] = ways;
                return self.arrive_late(to_receiver);
            }
            let ready = self.ready(index, &ways)?;
            for (way, is_ready) in ways.iter_mut().zip(ready) {
                if is_ready && !self.is_reset(index) {
                    self.take(way, &mut is_control)?;
                }
                if !self.is_silent(index, way.direction) && !self.is_reset(index) && index >= self.late_below.load(Ordering::SeqCst) {
                    way.flush(self.rate(way.direction))?;
                }
            }
        }
        Ok(())
    }

    /// Which ways have something to take and may.
    fn ready(&self, index: usize, ways: &[Way<'_>; 2]) -> Result<[bool; 2]> {
        let may = ways.each_ref().map(|way| way.takes_more() && !self.is_silent(index, way.direction));
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
            // A connection that broke while it is silent, or has ended one way, is ready all the time.
            thread::sleep(TICK);
        }
        Ok(ready)
    }

    /// Reads what has come, and lets it happen.
    fn take(&self, way: &mut Way<'_>, is_control: &mut bool) -> Result<()> {
        let bytes = way.read()?;
        if bytes.is_empty() {
            return Ok(());
        }
        if !*is_control {
            self.deliver(way, bytes, None);
            return Ok(());
        }
        way.unread.extend_from_slice(&bytes);
        loop {
            match decode_message(&way.unread) {
                Ok(Some((message, length))) => {
                    let piece = way.unread.drain(..length).collect();
                    self.deliver(way, piece, Some(message.name()));
                    // A lane: no messages after the first, except Fetch, which is passed as bytes.
                    *is_control = !matches!(message, Message::Attach { .. } | Message::Attached { .. });
                }
                Ok(None) => return Ok(()),
                // TLS, or nonsense; or pages behind the first message of a lane.
                Err(_) => *is_control = false,
            }
            if !*is_control {
                let rest = std::mem::take(&mut way.unread);
                self.deliver(way, rest, None);
                return Ok(());
            }
        }
    }

    /// Lets a piece pass, unless it is the moment for it to be lost.
    fn deliver(&self, way: &mut Way<'_>, mut piece: Vec<u8>, message: Option<&'static str>) {
        let down = if way.direction == Directions::ToReceiver { piece.len() } else { 0 };
        let failure = self.script().piece(down, message);
        let shape = self.flip(way.direction, &mut piece);
        let delay = shape.delay.filter(|(directions, _)| directions.include(way.direction)).map_or(Duration::ZERO, |(_, delay)| delay);
        match failure {
            Some(failure @ (Failure::LoseAndReset | Failure::Down)) => return self.fail(failure),
            // Before it passes.
            Some(failure @ (Failure::Elsewhere | Failure::Overtake(_))) => {
                self.fail(failure);
                way.push(piece, delay);
            }
            failure => {
                way.push(piece, delay);
                if let Some(failure) = failure {
                    // So much of it as goes at once.
                    let _ = way.flush(None);
                    self.fail(failure);
                }
            }
        }
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).extend(message);
    }

    /// The sender's end is closed; the rest arrives when another connection has come, or when none does for a while.
    fn arrive_late(&self, mut way: Way<'_>) -> Result<()> {
        way.from.set_read_timeout(Some(TICK))?;
        let mut late = std::mem::take(&mut way.unread);
        late.extend(std::iter::from_fn(|| way.read().ok().filter(|piece| !piece.is_empty())).flatten());
        way.push(late.clone(), Duration::ZERO);
        way.from.shutdown(Shutdown::Both)?;
        let (before, closed) = (self.late_below.load(Ordering::SeqCst), Instant::now());
        while self.count.load(Ordering::SeqCst) <= before && closed.elapsed() < NO_OTHER {
            thread::sleep(TICK);
        }
        thread::sleep(self.shape().late_by);
        let until = Instant::now() + LATE;
        while !way.is_empty() && Instant::now() < until {
            way.flush(None)?;
        }
        if way.is_empty() {
            self.note(&late);
        }
        thread::sleep(LATE);
        Ok(())
    }

    /// Takes note of messages that have passed. Pages are none.
    fn note(&self, mut bytes: &[u8]) {
        while let Ok(Some((message, length))) = decode_message(bytes) {
            self.passed.lock().unwrap_or_else(PoisonError::into_inner).push(message.name());
            bytes = &bytes[length..];
        }
    }

    fn fail(&self, failure: Failure) {
        let all = self.count.load(Ordering::SeqCst);
        match failure {
            Failure::Nothing => {}
            Failure::Reset | Failure::LoseAndReset => self.reset_below.store(all, Ordering::SeqCst),
            Failure::ResetOne(number) => {
                let one = number.checked_rem(all as u64).map_or(usize::MAX, |one| usize::try_from(one).expect("below a count"));
                self.reset_one.store(one, Ordering::SeqCst);
            }
            Failure::PassAndEnd => self.end_below.store(all, Ordering::SeqCst),
            Failure::Silence(directions, reach) => {
                let below = if reach == Reach::All { usize::MAX } else { all };
                self.shape().silence = Some((directions, below));
            }
            Failure::Speak => self.shape().silence = None,
            Failure::Down => {
                self.is_down.store(true, Ordering::SeqCst);
                self.reset_below.store(all, Ordering::SeqCst);
            }
            Failure::Up => self.is_down.store(false, Ordering::SeqCst),
            Failure::Delay(directions, delay) => self.shape().delay = Some((directions, delay)),
            Failure::Trickle(directions, rate) => self.shape().trickle = Some((directions, rate)),
            Failure::Flow => {
                let mut shape = self.shape();
                (shape.delay, shape.trickle) = (None, None);
            }
            Failure::Flip(direction, after) => self.shape().flip = Some((direction, after)),
            Failure::Overtake(late_by) => {
                self.shape().late_by = late_by;
                self.late_below.store(all, Ordering::SeqCst);
            }
            Failure::Elsewhere | Failure::ElsewhereAfter => (self.elsewhere)(),
        }
    }

    /// Flips the bit that is to be flipped, if it is in this piece; what else is done to it.
    fn flip(&self, direction: Directions, piece: &mut [u8]) -> Shape {
        let mut shape = self.shape();
        if let Some((directions, after)) = shape.flip
            && directions.include(direction)
        {
            let byte = usize::try_from(after / 8).ok().and_then(|index| piece.get_mut(index));
            shape.flip = match byte {
                Some(byte) => {
                    *byte ^= 1 << (after % 8);
                    None
                }
                None => Some((directions, after - piece.len() as u64 * 8)),
            };
        }
        *shape
    }

    fn is_silent(&self, index: usize, direction: Directions) -> bool {
        self.shape().silence.is_some_and(|(directions, below)| index < below && directions.include(direction))
    }

    fn rate(&self, direction: Directions) -> Option<u64> {
        self.shape().trickle.filter(|(directions, _)| directions.include(direction)).map(|(_, rate)| rate)
    }

    fn is_reset(&self, index: usize) -> bool {
        index < self.reset_below.load(Ordering::SeqCst) || index == self.reset_one.load(Ordering::SeqCst) || self.is_over.load(Ordering::SeqCst)
    }

    fn shape(&self) -> MutexGuard<'_, Shape> {
        self.shape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long anything may take to notice that something has happened elsewhere.
const TICK: Duration = Duration::from_millis(2);
/// How long the rest of an old connection waits for a new one.
const NO_OTHER: Duration = Duration::from_secs(3);
/// How long an old connection stays when its rest has arrived.
const LATE: Duration = Duration::from_millis(500);
