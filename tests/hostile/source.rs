//! A hostile source, driven by hand: each step of an honest session, to leave the path at any of them.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pageferry::memory::{GuestMemory, MemoryLayout};
use pageferry::page::{Codecs, Encoder, EncoderSettings, Method, PageKey, Work};
use pageferry::transport::{ClientSecurity, Endpoint, Route, Stream};
use pageferry::units::{ByteCount, ChunkIndex};
use pageferry::wire::{ChannelTotals, Features, FrameWriter, Lane, Message, Offer, SessionId, Token, channel_of};

use crate::guest::filled;
use crate::honest::PAGES;
use crate::talk::{PATIENCE, Talk};

/// How far a session went by the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Connected,
    Accepted,
    Attached,
    Copied,
    Ready,
    Running,
}

/// What leads to a stage from the one before.
type Step = (Stage, fn(&mut EvilSource));

pub(crate) const CHANNELS: u16 = 2;
/// Not Zstandard, so that it can be sent without having been agreed on.
pub(crate) const CODECS: Codecs = Codecs::LZ4.or(Codecs::DELTA).or(Codecs::COLUMNS);

pub(crate) struct EvilSource {
    pub(crate) endpoint: Endpoint,
    security: ClientSecurity,
    pub(crate) offer: Offer,
    pub(crate) control: Talk,
    pub(crate) bulk: Vec<Stream>,
    pub(crate) frames: Vec<FrameWriter>,
    pub(crate) memory: Arc<GuestMemory>,
}

impl EvilSource {
    pub(crate) fn at(stage: Stage, endpoint: &Endpoint) -> Self {
        Self::over(ClientSecurity::Plain, stage, endpoint)
    }

    /// The same over connections protected like that.
    pub(crate) fn over(security: ClientSecurity, stage: Stage, endpoint: &Endpoint) -> Self {
        let offer = offer();
        let (layout, token) = (offer.layout.clone(), offer.token);
        let memory = filled(layout.clone());
        let settings = EncoderSettings { codecs: CODECS, key: PageKey::derive(&token.0), delta_cache: ByteCount(1 << 20) };
        let writer = || FrameWriter::new(Encoder::new(settings.clone(), layout.chunks()));
        let frames = (0..CHANNELS).map(|_| writer()).collect();
        let control = connect(endpoint, &security);
        let mut source = Self { endpoint: endpoint.clone(), security, offer, control, bulk: Vec::new(), frames, memory };
        let steps: [Step; 5] = [
            (Stage::Accepted, Self::say_hello),
            (Stage::Attached, Self::attach_all),
            (Stage::Copied, Self::send_all),
            (Stage::Ready, Self::finish),
            (Stage::Running, Self::commit),
        ];
        steps.iter().filter(|(reaches, _)| *reaches <= stage).for_each(|(_, step)| step(&mut source));
        source
    }

    fn say_hello(&mut self) {
        self.control.say(&Message::Hello(self.offer.clone()));
        assert_eq!(self.control.hear(), Some(Message::Accept { channels: CHANNELS, codecs: CODECS, features: Features::NONE, granule: 1 }));
    }

    fn attach_all(&mut self) {
        self.bulk = (0..CHANNELS).map(|channel| self.attach(channel).into_stream()).collect();
    }

    /// Opens a bulk connection that is taken in.
    fn attach(&self, channel: u16) -> Talk {
        let mut bulk = connect(&self.endpoint, &self.security);
        bulk.say(&self.attach_message(channel));
        assert_eq!(bulk.hear(), Some(Message::Attached { lane: Lane::Bulk(channel) }));
        bulk
    }

    pub(crate) fn attach_message(&self, channel: u16) -> Message {
        Message::Attach { session: self.offer.session, token: self.offer.token, lane: Lane::Bulk(channel), generation: 0 }
    }

    pub(crate) fn query(&self) -> Message {
        Message::Query { session: self.offer.session, token: self.offer.token }
    }

    /// Sends round 0, whole.
    fn send_all(&mut self) {
        for channel in 0..CHANNELS {
            let mut bytes = Vec::new();
            for chunk in (0..self.offer.layout.chunks()).map(ChunkIndex).filter(|chunk| channel_of(*chunk, CHANNELS) == channel) {
                let work = Work { round: 0, chunk, memory: self.memory.chunk(chunk), mask: self.offer.layout.valid_mask(chunk), method: Method::Lz4 };
                self.frames[usize::from(channel)].push_chunk(&mut bytes, work);
            }
            self.frames[usize::from(channel)].push_round_end(&mut bytes, 0);
            self.send(channel, &bytes);
        }
    }

    /// A good frame of `chunk`, which is counted as sent.
    pub(crate) fn frame(&mut self, chunk: u32) -> Vec<u8> {
        let (mut bytes, chunk) = (Vec::new(), ChunkIndex(chunk));
        let work = Work { round: 0, chunk, memory: self.memory.chunk(chunk), mask: self.offer.layout.valid_mask(chunk), method: Method::Lz4 };
        self.frames[usize::from(channel_of(chunk, CHANNELS))].push_chunk(&mut bytes, work);
        bytes
    }

    /// Puts bytes on a bulk connection; it may be closed already.
    pub(crate) fn send(&mut self, channel: u16, bytes: &[u8]) {
        let _ = self.bulk[usize::from(channel)].write_all(bytes);
    }

    pub(crate) fn totals(&self) -> Vec<ChannelTotals> {
        self.frames.iter().map(FrameWriter::totals).collect()
    }

    pub(crate) fn finish_message(&self) -> Message {
        Message::Finish { totals: self.totals(), state: b"registers".to_vec(), missing: None }
    }

    fn finish(&mut self) {
        self.control.say(&self.finish_message());
        assert_eq!(self.control.hear(), Some(Message::Ready));
    }

    fn commit(&mut self) {
        self.control.say(&COMMIT);
        assert_eq!(self.control.hear(), Some(Message::Running));
    }
}

pub(crate) fn connect(endpoint: &Endpoint, security: &ClientSecurity) -> Talk {
    let route = Route { endpoint: endpoint.clone(), security: security.clone() };
    Talk::over(route.connect(PATIENCE).unwrap())
}

/// A session of its own.
pub(crate) fn offer() -> Offer {
    static SESSIONS: AtomicU64 = AtomicU64::new(0);
    let session = SessionId(u128::from(SESSIONS.fetch_add(1, Ordering::SeqCst)).to_le_bytes());
    let (layout, token, features) = (MemoryLayout::flat(PAGES).unwrap(), Token([9; 16]), Features::NONE);
    Offer { session, token, channels: CHANNELS, codecs: CODECS, features, layout, guest_kind: "stamper".into(), description: String::new() }
}

pub(crate) const COMMIT: Message = Message::Commit { paused_for: Duration::ZERO };
