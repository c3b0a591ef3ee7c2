//! The sending side: moves a guest away.
//!
//! A [`Migration`] is configured, then [`run`](Migration::run) with the guest, its memory and a tracker. It blocks until
//! the guest is gone, or until it is certain that it stays; either way the answer says who holds the guest.
//!
//! # Threads
//! ```text
//! caller's thread   the driver: rounds, policy, pause, handover
//! pf-control        the pump: owns the protocol machine and its connection, heartbeats, reconnects when in doubt
//! pf-send-N         one for each channel: walks its own words of the round, encodes, writes
//! pf-beat           one for each of those of a guest that moves by itself; awake while others want its processor
//! pf-push-N         in post-copy, one for each bulk lane: what the guest is likely to need next, a little at a time
//! pf-urgent         in post-copy: answers what the guest waits for
//! ```
//! The guest is resumed as soon as anything fails before Commit is handed to the network, before any thread is joined.
//! In post-copy its memory is kept, paused, until the destination has all of it, however often the connection breaks.
#![forbid(unsafe_code)]

mod ahead;
mod connect;
mod dial;
mod downtime;
mod driver;
mod event;
mod fleet;
mod follow;
mod handover;
mod hold;
mod meter;
mod on_processor;
mod order;
mod outcome;
mod overlap;
mod post_copy;
mod pre_copy;
mod pump;
mod push;
mod resent;
mod round;
mod session;
mod settle;
mod standing;
mod steering;
mod survey;
mod tracking;
mod watch;
mod worker;
mod workers;

use std::time::Duration;

pub use event::{Event, Phase};
pub use fleet::{Fleet, Place};
pub use outcome::{Completed, Failure, InDoubt, Stranded};
pub use push::{Claim, Granule, Piece, Prepaging, PushOrder, Pushed, Remaining, Traffic, widen};
pub use steering::Steering;
pub use survey::survey;

use crate::dirty::DirtyTracker;
use crate::guest::Guest;
use crate::memory::GuestMemory;
use crate::page::{Compression, DeltaCache};
use crate::policy::Limits;
use crate::protocol::Timeouts;
use crate::transport::{ClientSecurity, Endpoint, Route};
use crate::units::BytesPerSec;

/// A guest to move: what the embedding VMM brings.
pub struct Outgoing<'g> {
    /// Pauses, resumes, gives its state.
    pub guest: &'g mut dyn Guest,
    /// Its memory, all of it.
    pub memory: &'g GuestMemory,
    /// Finds its writes.
    pub tracker: &'g mut dyn DirtyTracker,
    /// What kind of guest it is, for the destination to choose who builds it.
    pub kind: String,
    /// How to build it, in the kind's own words.
    pub description: String,
}

/// Runs at the last pause with the memory as it will arrive.
type AtPause<'h> = Box<dyn FnOnce(&GuestMemory) -> std::io::Result<()> + Send + 'h>;
/// Told what happens.
type Observer<'h> = Box<dyn FnMut(&Event) + Send + 'h>;

/// A migration to be run. Methods set what differs from the defaults.
pub struct Migration<'h> {
    route: Route,
    channels: u16,
    compression: Compression,
    delta_cache: DeltaCache,
    timeouts: Timeouts,
    steering: Steering,
    fleet: Option<Fleet>,
    observer: Observer<'h>,
    at_pause: Option<AtPause<'h>>,
}

impl<'h> Migration<'h> {
    /// To the receiver at `endpoint`: two channels, compression and deltas as they pay off, default limits, unpaced.
    #[must_use]
    pub fn to(endpoint: Endpoint) -> Self {
        Self {
            route: Route { endpoint, security: ClientSecurity::Plain },
            channels: 2,
            compression: Compression::Auto,
            delta_cache: DeltaCache::Auto,
            timeouts: Timeouts::default(),
            steering: Steering::default(),
            fleet: None,
            observer: Box::new(|_| {}),
            at_pause: None,
        }
    }

    /// How all connections are protected; plain if not said.
    #[must_use]
    pub fn security(mut self, security: ClientSecurity) -> Self {
        self.route.security = security;
        self
    }

    /// Bulk channels to use, 1 to [`MAX_CHANNELS`](crate::wire::MAX_CHANNELS). The destination may grant fewer,
    /// and a [`Fleet`] uses no more than one for each 64 MiB of a guest.
    #[must_use]
    pub fn channels(mut self, channels: u16) -> Self {
        self.channels = channels.clamp(1, crate::wire::MAX_CHANNELS);
        self
    }

    /// How pages are compressed.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Memory for making differences to what was sent before.
    #[must_use]
    pub fn delta_cache(mut self, delta_cache: DeltaCache) -> Self {
        self.delta_cache = delta_cache;
        self
    }

    /// When to stop copying rounds. Can be changed later through [`Migration::steering`].
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        self.steering.set_limits(limits);
        self
    }

    /// The rate of all channels together; `None` is unpaced. Can be changed later through [`Migration::steering`].
    #[must_use]
    pub fn bandwidth(self, rate: Option<BytesPerSec>) -> Self {
        self.steering.set_bandwidth(rate);
        self
    }

    /// Takes turns with the other migrations of `fleet`.
    #[must_use]
    pub fn in_fleet(mut self, fleet: &Fleet) -> Self {
        self.fleet = Some(fleet.clone());
        self
    }

    /// How long to wait for a silent peer.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Is told what happens, on the driver's thread: keep it short.
    #[must_use]
    pub fn observe(mut self, observer: impl FnMut(&Event) + Send + 'h) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Runs once at the last pause, with the memory exactly as it will arrive. Its time is downtime; its error ends the
    /// migration and the guest runs on.
    #[must_use]
    pub fn at_pause(mut self, step: impl FnOnce(&GuestMemory) -> std::io::Result<()> + Send + 'h) -> Self {
        self.at_pause = Some(Box::new(step));
        self
    }

    /// A handle to cancel or change limits while the migration runs.
    #[must_use]
    pub fn steering(&self) -> Steering {
        self.steering.clone()
    }

    /// Moves the guest. It must be running (or never started) and is running again, here or there, when this returns;
    /// only in doubt it stays paused.
    ///
    /// Until then the calling thread, where the system allows it and it has an ordinary nice value, comes before others, as
    /// do threads that an observer starts; those that the guest starts when it is resumed or throttled do not.
    ///
    /// # Errors
    /// When the guest was not moved. [`Failure::owner`] says where it is.
    pub fn run(self, outgoing: Outgoing<'_>) -> Result<Completed, Box<Failure>> {
        driver::run(self, outgoing)
    }
}

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
