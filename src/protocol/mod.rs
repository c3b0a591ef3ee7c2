//! Who says what when: the session between the two ends, without a socket, a thread or a clock.
//!
//! [`Source`] and [`Destination`] are state machines. Messages that arrived, the passing of time and what the driver has
//! done go in; messages to send, events and the next deadline come out. So every way in which a session can break is
//! tested in virtual time, by enumeration.
//!
//! # A session
//! ```text
//! source                                              destination
//!   | new: Hello ------------------------------------------> | Offered: reserve memory
//!   | Accepted <------------------------------------- Accept | accept
//!   | each bulk connection: Attach ------------------------> | attach
//!   | (all came back Attached) attached <---------- Attached |
//!   |                                                        |
//!   | frames on the bulk channels =========================> | arrived
//!   | now and then: Ping ----------------------------------> |
//!   | Progress <----------------------- Progress, as often   |
//!   |                                                        |
//!   | pause; finish: Finish -------------------------------> | Finish: check totals, load state
//!   | Ready <----------------------------------------- Ready | ready: may not run yet
//!   | commit: Commit --------------------------------------> | Run: resume the guest
//!   | Running: release the guest <------------------ Running | running
//!   | Ended(Completed): Released --------------------------> | Ended(Completed)
//! ```
//! Abort (source, before Commit) and Failed (destination, until the guest runs) end it at any point, Refuse before Accept.
//! A source that has sent Commit and loses the connection, or hears nothing, or nonsense, opens another one:
//! ```text
//!   | Reconnect                                              |
//!   | reconnected: Query ----------------------------------> | query
//!   | <----------- Answer: Running, NeverStarted, or Unknown |
//!   | (after Running) Released ----------------------------> |
//! ```
//!
//! # Post-copy
//! If both ends can, the guest may be handed over while pages of it are still missing at the destination. The handover is
//! the same, but for what is announced, and the session goes on behind it:
//! ```text
//!   | switch: Missing..., Finish --------------------------> | Finish: discard what is missing, check, load
//!   | Ready, commit, as above; from Commit on: serve         | Run: resume the guest; pages are fetched
//!   | Running <------------------------------------- Running | running
//!   | pages on all lanes ==================================> |
//!   | Ended(Completed) <--------------------------- Complete | complete: all pages are there
//!   | Released --------------------------------------------> | Ended(Completed)
//! ```
//! The guest may need a page to be resumed, so pages are served from Commit on. When a connection is lost from then on, the
//! control connection or a lane, neither end gives up: both say Interrupted, the destination keeps the guest and waits
//! without a time limit, the source looks for it for [`Timeouts::recover`]. All connections are made anew:
//! ```text
//!   | Reconnect                                              |
//!   | reconnected: Resume ---------------------------------> | resume; Resume: stop old lanes, install what is in hand
//!   | Recovered <---------------------- Arrived..., Resumed  | resumed, with what has arrived
//!   | <------------------------ Running (if the guest runs)  |
//!   | each lane: Attach of the new generation -------------> | attach
//!   | (all came back Attached) reattached <-------- Attached |
//! ```
//! In place of Arrived and Resumed the destination answers Complete when nothing is missing any more, NeverStarted when it
//! had not handled Commit (and then never will), or Refuse when it knows nothing of the session. A source in doubt that
//! switched says Resume where another says Query: the answer settles the doubt just as well, and if the guest is still
//! being started it is served meanwhile.
//!
//! # Who owns the guest
//! | source is | [`Source::owner`] | leaves by |
//! |---|---|---|
//! | offering, attaching, copying, waiting for Ready, about to commit | source | anything wrong: the end, guest stays |
//! | waiting for Running (Commit was handed out) | in doubt | Running: destination. Failed: source. Else: asks |
//! | in doubt | in doubt | Answer Running: destination. NeverStarted: source. Unknown: asks again, until [`Timeouts::resolve`] |
//! | recovering before Running was heard | in doubt | Running or Complete: destination. Failed or NeverStarted: source. Else: looks again, until [`Timeouts::recover`] |
//! | serving, or recovering after Running | destination | Complete: the end. Else: looks again; it is stranded after [`Timeouts::recover`], and keeps the pages |
//!
//! | destination is | may run | a Query is answered | a Resume is answered | leaves by |
//! |---|---|---|---|---|
//! | before Ready, or waiting for Commit | no | NeverStarted, and the session is over | the same | anything wrong: the end, guest dropped |
//! | starting the guest (Commit was handled) | yes | Unknown | Resumed | the guest runs, or failed to: Failed, guest dropped |
//! | fetching pages | yes | Running | Resumed | the last page: Complete |
//! | waiting for Released | yes | Running | Complete | anything: the end, guest stays |
//! | done | as it ended | Running or NeverStarted | Complete or NeverStarted | |
//!
//! Four rules make this safe:
//! - **Handling Commit is the destination's moment of decision.** A Query or Resume that is handled first wins: the session is over
//!   and a Commit that comes out of an old socket later meets a machine that ignores it. So all inputs of a session go
//!   through one machine, under one lock if there are several threads.
//! - **An Answer is final.** While the guest is being started it could still fail, so the answer is Unknown until then. A
//!   guest that could not be resumed has not run ([`Guest::resume`](crate::guest::Guest::resume) promises it): the
//!   destination says Failed, or NeverStarted when asked, and the source may resume it.
//! - **A destination that has said Failed is done.** So Failed gives the guest back to the source even after Commit: the
//!   two may have crossed, but then that Commit comes too late.
//! - **Only Complete lets the source forget pages.** It says how many have arrived, and the source compares that with the
//!   set it had announced. Until then nothing that goes wrong ends the session at the destination, and at the source only
//!   in a way that can be taken up again ([`Source::recover_again`]).
//!
//! # Driving a machine
//! After each input, and after `new`, take all of `poll_message` and `poll_event` until they give nothing, then wait until
//! `poll_timeout`. Messages that can be read are handled before a timeout is, lest a busy driver mistake its own silence
//! for the peer's; for the same reason neither end does long work on the thread that drives the machine. Bytes of a
//! message that takes long to come in are reported with `heard`. After a reconnection only the newest connection counts.
//! Lanes carry a generation, which each recovery counts up; what concerns lanes of another one has no effect, so news of
//! old lanes may come late. A destination's driver that has a Resume accepted waits for [`DestinationEvent::Resume`] of
//! that generation; until it then calls [`Destination::resumed`] everything that comes is taken for the old connection's.
//!
//! A receiver looks a session up, for Attach, Query and Resume, first among those it drives and then in its [`Tombstones`]; a
//! Released that follows an answer goes to the same place. It keeps the tombstone before it forgets the machine.
#![forbid(unsafe_code)]

mod destination;
mod error;
mod pieces;
mod pulse;
mod sessions;
mod source;

pub use destination::{AttachError, Destination, DestinationEnd, DestinationEvent};
pub use error::ProtocolError;
pub use sessions::{Resumption, Tombstone, Tombstones};
pub use source::{Source, SourceEnd, SourceEvent};

pub use crate::stats::GuestOwner;

use std::time::Duration;

use crate::wire::{MAX_REASON_BYTES, Message, Token};

/// How long each thing may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Between two signs of life on the control connection.
    pub heartbeat: Duration,
    /// Without a byte from the peer until it counts as lost. A few heartbeats.
    pub silence: Duration,
    /// From Hello to Accept, from Accept to the first channel attached and from each to the next, and from a Query to its Answer (at most a third of
    /// `resolve` there).
    pub handshake: Duration,
    /// How long a source in doubt keeps asking. A question on its way then may still be answered.
    pub resolve: Duration,
    /// In post-copy, how long a source that has lost the destination looks for it. As long may one that is there bring
    /// nothing until the destination says so.
    pub recover: Duration,
    /// How long a destination can be asked about a session that is over. Should be more than `silence`, `resolve` and
    /// `handshake` of the source together, or the source may come too late; in post-copy it is at least `silence`,
    /// `recover` and `handshake`.
    pub tombstone: Duration,
}

impl Timeouts {
    /// With `patience` for everything that a living peer does at once: answer, and show that it is there.
    #[must_use]
    pub fn with_patience(patience: Duration) -> Self {
        Self {
            heartbeat: (patience / 10).min(BEAT),
            silence: patience,
            handshake: patience,
            resolve: patience,
            recover: Duration::from_secs(60),
            tombstone: Duration::from_secs(60).max(patience * 4),
        }
    }
}

impl Timeouts {
    /// How long a connection may make no way. Not less than 10 s: a link may have a long queue, and a peer that is gone is
    /// missed by its signs of life.
    pub(crate) fn transport(&self) -> Duration {
        self.silence.max(Duration::from_secs(10))
    }

    /// Between attempts that come to nothing: of the order in which a peer is missed, not of its signs of life.
    pub(super) fn retry(&self) -> Duration {
        (self.silence / 10).max(self.heartbeat)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::with_patience(Duration::from_secs(10))
    }
}

/// The longest between two signs of life, whatever one's own patience: the peer's may be as short as a second.
const BEAT: Duration = Duration::from_millis(250);

/// The name of `message` in errors.
fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "Hello",
        Message::Accept { .. } => "Accept",
        Message::Refuse { .. } => "Refuse",
        Message::Attach { .. } => "Attach",
        Message::Attached { .. } => "Attached",
        Message::Ping => "Ping",
        Message::Progress { .. } => "Progress",
        Message::Finish { .. } => "Finish",
        Message::Ready => "Ready",
        Message::Commit { .. } => "Commit",
        Message::Running => "Running",
        Message::Released => "Released",
        Message::Abort { .. } => "Abort",
        Message::Failed { .. } => "Failed",
        Message::Query { .. } => "Query",
        Message::Answer(_) => "Answer",
        Message::Missing { .. } => "Missing",
        Message::Fetch { .. } => "Fetch",
        Message::Resume { .. } => "Resume",
        Message::Arrived { .. } => "Arrived",
        Message::Resumed { .. } => "Resumed",
        Message::Complete { .. } => "Complete",
        Message::Stale { .. } => "Stale",
        Message::Discarded => "Discarded",
    }
}

/// `reason`, cut to what a message may carry.
fn bounded(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    reason
}

/// Whether two tokens are the same, in a time that does not tell how much of a guess was right.
fn same_token(a: Token, b: Token) -> bool {
    a.0.iter().zip(b.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
