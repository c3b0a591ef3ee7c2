//! Pages that will be missing in any case, which the destination discards while the guest still runs here.

use std::time::Instant;

use super::{Source, SourceEvent, State};
use crate::bitmap::PageBitmap;
use crate::protocol::pieces::{extent, pieces};
use crate::wire::{ChannelTotals, Features, Message};

/// What the destination was told to discard.
#[derive(Clone, Debug)]
pub(super) struct Ahead {
    pages: PageBitmap,
    is_discarded: bool,
}

impl Source {
    /// The guest is about to be switched to post-copy, and `stale` will be missing in any case: the destination may discard
    /// these pages while the guest runs on. `totals` is what each channel has carried. [`SourceEvent::Discarded`] answers;
    /// then [`Source::switch`] has to follow, or the end.
    ///
    /// # Panics
    /// Unless the channels are attached, the second time, when post-copy was not granted, and when `stale` is not a set of
    /// pages of this guest or `totals` has not one entry for each channel.
    pub fn announce(&mut self, _now: Instant, totals: Vec<ChannelTotals>, stale: &PageBitmap) {
        match self.state {
            State::Ended { .. } => {}
            State::Copying { channels } => {
                assert_eq!(totals.len(), usize::from(channels), "one entry of totals for each channel");
                assert!(self.granted.contains(Features::POST_COPY), "post-copy was not granted");
                assert!(self.ahead.is_none(), "announced twice");
                self.assert_own(stale);
                self.outbox.extend(pieces(stale).map(|(first, words)| Message::Missing { first, words }));
                self.outbox.push_back(Message::Stale { totals, stale: extent(stale) });
                self.ahead = Some(Ahead { pages: stale.clone(), is_discarded: false });
            }
            _ => panic!("announced while {}", self.state.name()),
        }
    }

    /// Discarded came; whether it was waited for.
    pub(super) fn handle_discarded(&mut self) -> bool {
        let Some(ahead) = self.ahead.as_mut().filter(|ahead| !ahead.is_discarded) else { return false };
        ahead.is_discarded = true;
        self.events.push_back(SourceEvent::Discarded);
        true
    }

    /// Panics when the destination has discarded, or is about to, what is not `missing`.
    pub(super) fn assert_announced(&self, missing: Option<&PageBitmap>) {
        let Some(ahead) = &self.ahead else { return };
        assert!(ahead.is_discarded, "the destination is still discarding");
        let mut lost = ahead.pages.clone();
        missing.into_iter().for_each(|missing| lost.subtract(missing));
        assert!(lost.is_empty(), "pages were announced as missing and are not");
    }
}
