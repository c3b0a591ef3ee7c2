//! Pages that will be missing in any case, discarded while the guest still runs at the source.
//!
//! The source says which once, and waits until that is done. From then on the session can only switch to post-copy or
//! end: a page that was discarded is missing, and no frame of pre-copy may refer to it or fill it any more.

use std::time::Instant;

use super::{Destination, DestinationEvent, State};
use crate::bitmap::PageBitmap;
use crate::protocol::ProtocolError;
use crate::wire::{ChannelTotals, Extent, Message};

/// What was said to be stale.
#[derive(Clone, Debug)]
pub(super) struct Ahead {
    totals: Vec<ChannelTotals>,
    pages: PageBitmap,
    is_discarded: bool,
}

impl Destination {
    /// The pages of [`DestinationEvent::Stale`] are discarded.
    ///
    /// # Panics
    /// Unless that came just before.
    pub fn discarded(&mut self, _now: Instant) {
        match (&self.state, &mut self.ahead) {
            (State::Ended(_), _) => {}
            (State::Receiving, Some(ahead)) if !ahead.is_discarded => {
                ahead.is_discarded = true;
                self.outbox.push_back(Message::Discarded);
            }
            _ => panic!("discarded while {}", self.state.name()),
        }
    }

    pub(super) fn handle_stale(&mut self, totals: Vec<ChannelTotals>, announced: Extent) {
        match self.stale(totals, announced) {
            Ok(ahead) => {
                let Ahead { totals, pages, .. } = self.ahead.insert(ahead);
                self.events.push_back(DestinationEvent::Stale { totals: totals.clone(), pages: pages.clone() });
            }
            Err(why) => self.broken(ProtocolError::Senseless { message: "Stale", why }),
        }
    }

    fn stale(&mut self, totals: Vec<ChannelTotals>, announced: Extent) -> Result<Ahead, String> {
        if self.ahead.is_some() {
            return Err("it has come before".into());
        }
        if totals.len() != usize::from(self.channels) {
            return Err(format!("totals of {} channels, there are {}", totals.len(), self.channels));
        }
        match self.missing(Some(announced))? {
            Some(pages) => Ok(Ahead { totals, pages, is_discarded: false }),
            None => unreachable!("an extent makes a set"),
        }
    }

    /// Fails with what is wrong with a Finish after what was said to be stale.
    pub(super) fn check_ahead(&self, totals: &[ChannelTotals], missing: Option<&PageBitmap>) -> Result<(), String> {
        let Some(ahead) = &self.ahead else { return Ok(()) };
        let Some(missing) = missing else { return Err("pages were discarded, and it does not switch to post-copy".into()) };
        if !ahead.is_discarded {
            return Err("it comes before Discarded".into());
        }
        let mut lost = ahead.pages.clone();
        lost.subtract(missing);
        if let Some((chunk, word)) = lost.occupied().next() {
            return Err(format!("page {} was discarded and is not missing", chunk.page(word.trailing_zeros()).0));
        }
        if totals.iter().map(|channel| channel.pages).ne(ahead.totals.iter().map(|channel| channel.pages)) {
            return Err("pages were sent after some were discarded".into());
        }
        Ok(())
    }
}
