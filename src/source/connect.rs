//! Connecting: the offer, the destination's yes, and the connections that pages go on.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use crossbeam::channel::select;

use super::dial::Dial;
use super::driver::Driver;
use super::event::Phase;
use super::pump::{Command, Pump};
use super::push::{Granule, Lanes};
use super::session::{Terms, part, session_error};
use super::tracking::Tracking;
use crate::error::Error;
use crate::page::{Codecs, Compression, DeltaCache, EncoderSettings, PageKey};
use crate::policy::PostCopy;
use crate::protocol::SourceEvent;
use crate::transport::{Route, Stream};
use crate::units::ByteCount;
use crate::wire::{Features, Lane, Offer, SessionId, Token};

/// What is asked of which destination.
pub(super) struct Request {
    pub(super) route: Route,
    pub(super) channels: u16,
    /// What the guest is, and how to build it in the words of its kind.
    pub(super) kind: String,
    pub(super) description: String,
    pub(super) compression: Compression,
    pub(super) delta_cache: DeltaCache,
}

/// A session with all of its connections for pages.
pub(super) struct Attached {
    pub(super) terms: Terms,
    pub(super) bulk: Vec<Stream>,
    /// Where post-copy is possible.
    urgent: Option<Stream>,
    /// The quickest answer that the destination gave.
    pub(super) round_trip: Duration,
    /// If it has begun meanwhile.
    pub(super) tracking: Option<Tracking>,
}

/// What the destination says yes to.
struct Granted {
    channels: u16,
    codecs: Codecs,
    features: Features,
    granule: u16,
}

impl Driver<'_> {
    /// Opens a session and all of its connections, and waits until the guest may begin to send.
    pub(super) fn connect(&mut self, request: Request) -> Result<(Pump, Attached), Error> {
        if self.steering.cancelled().try_recv().is_ok() {
            return Err(Error::Cancelled);
        }
        self.phase(Phase::Connecting);
        let Request { route, channels, kind, description, compression, delta_cache } = request;
        let (session, token) = (SessionId(random()?), Token(random()?));
        let dial = Dial { route, session, token, timeouts: self.timeouts };
        self.dial = Some(dial.clone());
        let layout = self.memory.layout().clone();
        let limits = self.steering.limits();
        let offer = Offer {
            session,
            token,
            channels: self.standing.member().map_or(channels, |member| member.channels(channels, layout.bytes())),
            codecs: Codecs::offered(compression),
            features: if limits.allow_post_copy() { Features::POST_COPY } else { Features::NONE },
            layout,
            guest_kind: kind,
            description,
        };
        let pump = Pump::start(&dial.route, offer, &self.timeouts)?;
        match self.attach(&pump, dial, compression, delta_cache, limits.post_copy) {
            Ok(attached) => Ok((pump, attached)),
            Err(error) => Err(part(&pump, error)),
        }
    }

    /// Waits for the destination's yes, and attaches what it has granted.
    fn attach(&mut self, pump: &Pump, dial: Dial, compression: Compression, delta_cache: DeltaCache, post_copy: PostCopy) -> Result<Attached, Error> {
        // Both take some milliseconds: what the guest's tracking does here, and building a guest there.
        let tracking = self.track_early()?;
        let Granted { channels, codecs, features, granule } = self.accepted(pump)?;
        self.report.channels = channels;
        let can_post_copy = features.contains(Features::POST_COPY);
        if !can_post_copy && let PostCopy::After(_) = post_copy {
            return Err(Error::NoPostCopy);
        }
        let lanes: Vec<_> = (0..channels).map(Lane::Bulk).chain(can_post_copy.then_some(Lane::Urgent)).collect();
        let (mut bulk, round_trip) = dial.attach(pump, &lanes, 0)?;
        let urgent = if can_post_copy { bulk.pop() } else { None };
        pump.command(Command::Attached);
        self.await_departure(pump)?;
        let delta_cache = ByteCount(delta_cache.for_guest(self.memory.layout().bytes()).0 / u64::from(channels));
        let encoder = EncoderSettings { codecs, key: PageKey::derive(&dial.token.0), delta_cache };
        let granule = Granule::from_pages(granule).expect("the machine has checked it");
        let terms = Terms { dial, channels, can_post_copy, granule, compression, encoder };
        Ok(Attached { terms, bulk, urgent, round_trip, tracking })
    }

    /// Waits for the destination's yes.
    fn accepted(&self, pump: &Pump) -> Result<Granted, Error> {
        loop {
            select! {
                recv(pump.events()) -> event => if let Ok(SourceEvent::Accepted { channels, codecs, features, granule }) = event {
                    return Ok(Granted { channels, codecs, features, granule });
                },
                recv(pump.ended()) -> ended => return Err(session_error(ended.ok())),
                recv(self.steering.cancelled()) -> _ => return Err(Error::Cancelled),
            }
        }
    }
}

impl Attached {
    /// The connections once more, for post-copy, where that is possible.
    pub(super) fn lanes(&self) -> Option<Lanes> {
        let urgent = self.urgent.as_ref()?.share();
        Some(Lanes { bulk: self.bulk.iter().map(Stream::share).collect(), urgent })
    }
}

/// Sixteen bytes nobody can guess.
fn random() -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes));
    read.map_err(|source| Error::System { action: "give random bytes", source })?;
    Ok(bytes)
}
