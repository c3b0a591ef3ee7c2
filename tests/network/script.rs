//! What happens to a network, and when.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// So many bytes have gone to the receiver since the last step.
    Bytes(u64),
    /// A message of this name passes, for the so-manyeth time since the last step; from 1. Not seen in TLS.
    Message(&'static str, u32),
    /// One of the programs says something that contains this.
    Said(&'static str),
    /// So long after the last step.
    Later(Duration),
}

/// What happens. Connections are those that there are then, unless it says otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    /// Nothing: a step to count from.
    Nothing,
    /// All connections are reset; what is under way is lost.
    Reset,
    /// One of them is, chosen by a number.
    ResetOne(u64),
    /// The piece that made it happen is lost, then as in [`Failure::Reset`].
    LoseAndReset,
    /// The piece arrives, and then all connections end in an orderly way.
    PassAndEnd,
    /// Connections stay open and nothing goes in these directions, on those that there are or on later ones as well.
    Silence(Directions, Reach),
    /// Silence ends: what waited goes on.
    Speak,
    /// All connections are reset, and new ones are too until [`Failure::Up`] or [`Link::repair`](super::Link::repair).
    Down,
    /// Ends [`Failure::Down`].
    Up,
    /// Everything takes so much longer in these directions, on all connections.
    Delay(Directions, Duration),
    /// No more than so many bytes a second get through a connection in these directions.
    Trickle(Directions, u64),
    /// Ends both of them.
    Flow,
    /// The bit so many bits later in this direction flips; those of all connections count.
    Flip(Directions, u64),
    /// The sender's ends of all connections close, and what it had said arrives so long after its next connection: new
    /// connections overtake old ones.
    Overtake(Duration),
    /// What [`Link::start`](super::Link::start) was given is called, before the piece that made it happen passes.
    Elsewhere,
    /// The same, after it.
    ElsewhereAfter,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Directions {
    Both,
    ToReceiver,
    ToSender,
}

impl Directions {
    /// Whether one of two ways is among them.
    pub(super) fn include(self, way: Self) -> bool {
        self == Self::Both || self == way
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reach {
    Old,
    All,
}

/// A moment and what happens then.
pub(crate) type Step = (Moment, Failure);

/// Steps, looked at one by one: each only after the one before has happened.
pub(super) struct Script {
    steps: VecDeque<Step>,
    bytes: u64,
    messages: u32,
    since: Instant,
}

impl Script {
    pub(super) fn new(steps: &[Step]) -> Self {
        Self { steps: steps.iter().copied().collect(), bytes: 0, messages: 0, since: Instant::now() }
    }

    /// Steps that have not happened.
    pub(super) fn left(&self) -> usize {
        self.steps.len()
    }

    /// A piece is about to pass, `down` bytes of it to the receiver.
    pub(super) fn piece(&mut self, down: usize, message: Option<&'static str>) -> Option<Failure> {
        self.bytes += down as u64;
        let &(moment, _) = self.steps.front()?;
        let is_now = match moment {
            Moment::Bytes(bytes) => self.bytes >= bytes,
            Moment::Message(name, times) => {
                self.messages += u32::from(message == Some(name));
                message == Some(name) && self.messages == times
            }
            Moment::Later(_) | Moment::Said(_) => false,
        };
        is_now.then(|| self.next())
    }

    /// Time has passed.
    pub(super) fn time(&mut self) -> Option<Failure> {
        match self.steps.front() {
            Some(&(Moment::Later(after), _)) if self.since.elapsed() >= after => Some(self.next()),
            _ => None,
        }
    }

    /// A program has said something.
    pub(super) fn said(&mut self, line: &str) -> Option<Failure> {
        match self.steps.front() {
            Some(&(Moment::Said(wanted), _)) if line.contains(wanted) => Some(self.next()),
            _ => None,
        }
    }

    fn next(&mut self) -> Failure {
        let (_, failure) = self.steps.pop_front().expect("looked at by the caller");
        (self.bytes, self.messages, self.since) = (0, 0, Instant::now());
        failure
    }
}
