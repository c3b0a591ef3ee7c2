//! Opening the connections of a session that carry pages.

use std::time::{Duration, Instant};

use super::pump::Pump;
use super::push::Lanes;
use crate::control::{MessageReader, MessageWriter};
use crate::error::Error;
use crate::transport::{Route, Stream};
use crate::wire::{Lane, Message, RefuseReason, SessionId, Token};

/// Where a session's connections go, and what they have to say there.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    pub(super) route: Route,
    pub(super) session: SessionId,
    pub(super) token: Token,
    /// For each of them.
    pub(super) timeout: Duration,
}

impl Dial {
    /// Opens one connection and attaches it; also how long the destination took to answer.
    pub(super) fn attach(&self, pump: &Pump, lane: Lane, generation: u32) -> Result<(Stream, Duration), Error> {
        let Self { session, token, .. } = *self;
        let stream = self.route.connect(self.timeout)?;
        let broken = |source| Error::System { action: "prepare a connection for pages", source };
        if let Lane::Bulk(_) = lane {
            stream.prepare_bulk().map_err(broken)?;
        }
        pump.adopt(stream.control());
        let asked = Instant::now();
        MessageWriter::new(stream.share()).send(&Message::Attach { session, token, lane, generation })?;
        let answer = MessageReader::new(stream.share()).next_within(self.timeout)?;
        match answer {
            Message::Attached { lane: granted } if granted == lane => Ok((stream, asked.elapsed())),
            Message::Refuse { reason, detail } => Err(Error::Refused { reason, detail }),
            _ => Err(Error::Refused { reason: RefuseReason::Other, detail: "an answer out of place to a connection for pages".into() }),
        }
    }

    /// All lanes of a generation of post-copy.
    pub(super) fn lanes(&self, pump: &Pump, channels: u16, generation: u32) -> Result<Lanes, Error> {
        let urgent = self.attach(pump, Lane::Urgent, generation)?.0;
        let bulk = (0..channels).map(|channel| Ok(self.attach(pump, Lane::Bulk(channel), generation)?.0));
        Ok(Lanes { bulk: bulk.collect::<Result<_, Error>>()?, urgent })
    }
}
