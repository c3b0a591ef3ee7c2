//! What the driver of a source does.

use std::time::{Duration, Instant};

use super::recovery::PostCopy;
use super::{Source, State};
use crate::bitmap::PageBitmap;
use crate::protocol::ProtocolError;
use crate::protocol::pieces::{extent, pieces};
use crate::protocol::pulse::after;
use crate::wire::{ChannelTotals, Extent, Features, Message};

/// Each call belongs to one state, and in another one is a bug of the driver; but a session may end under the driver's
/// hands, and once it has ended the calls do nothing.
impl Source {
    /// One more lane of `generation` is attached, and the next may take as long as that.
    pub fn attaching(&mut self, now: Instant, generation: u32) {
        let current = self.post_copy.as_ref().map_or(0, PostCopy::generation);
        let until = after(now, self.timeouts.handshake);
        match &mut self.state {
            State::Attaching { until: end, .. } => *end = until,
            State::Recovering(recovery) if generation == current => recovery.attaching(until),
            _ => {}
        }
    }

    /// All lanes are attached: the rounds begin.
    ///
    /// # Panics
    /// Unless [`SourceEvent::Accepted`](super::SourceEvent::Accepted) came just before.
    pub fn attached(&mut self, _now: Instant) {
        match self.state {
            State::Ended { .. } => {}
            State::Attaching { channels, .. } => self.state = State::Copying { channels },
            _ => panic!("channels attached while {}", self.state.name()),
        }
    }

    /// Asks the destination how much it has applied, ahead of the next heartbeat: [`SourceEvent::Progress`] answers.
    ///
    /// [`SourceEvent::Progress`]: super::SourceEvent::Progress
    pub fn ask_progress(&mut self, _now: Instant) {
        if let State::Copying { .. } = self.state {
            self.outbox.push_back(Message::Ping);
        }
    }

    /// The guest is paused and its last frame is sent: what each channel carried, and the state beside memory.
    ///
    /// # Panics
    /// Unless the channels are attached, when `totals` has not one entry for each, and after [`Source::announce`].
    pub fn finish(&mut self, _now: Instant, totals: Vec<ChannelTotals>, state: Vec<u8>) {
        if !matches!(self.state, State::Ended { .. }) {
            self.assert_announced(None);
        }
        self.push_finish(totals, state, None);
    }

    /// The guest is paused and is to go on at the destination without the pages of `missing`, which it lacks or has
    /// stale, and which are served from Commit on. As [`Source::finish`] in everything else.
    ///
    /// # Panics
    /// Unless the channels are attached, when `totals` has not one entry for each, when post-copy was not granted, and when
    /// `missing` is not a set of pages of this guest, or lacks some that were announced.
    pub fn switch(&mut self, _now: Instant, totals: Vec<ChannelTotals>, state: Vec<u8>, missing: &PageBitmap) {
        if matches!(self.state, State::Ended { .. }) {
            return;
        }
        assert!(self.granted.contains(Features::POST_COPY), "post-copy was not granted");
        self.assert_own(missing);
        self.assert_announced(Some(missing));
        self.outbox.extend(pieces(missing).map(|(first, words)| Message::Missing { first, words }));
        self.push_finish(totals, state, Some(extent(missing)));
        self.post_copy = Some(PostCopy::new(missing.clone()));
    }

    /// Panics when `pages` is not a set of pages of this guest.
    pub(super) fn assert_own(&self, pages: &PageBitmap) {
        let layout = &self.offer.layout;
        assert_eq!(pages.chunks(), layout.chunks(), "a bitmap of another memory");
        assert!(pages.occupied().all(|(chunk, word)| word & !layout.valid_mask(chunk) == 0), "pages that do not exist are missing");
    }

    fn push_finish(&mut self, totals: Vec<ChannelTotals>, state: Vec<u8>, missing: Option<Extent>) {
        match self.state {
            State::Ended { .. } => {}
            State::Copying { channels } => {
                assert_eq!(totals.len(), usize::from(channels), "one entry of totals for each channel");
                self.outbox.push_back(Message::Finish { totals, state, missing });
                self.state = State::Finishing;
            }
            _ => panic!("finished while {}", self.state.name()),
        }
    }

    /// Gives the guest away. It is in doubt from when [`Source::poll_message`] hands Commit out.
    ///
    /// # Panics
    /// Unless [`SourceEvent::Ready`](super::SourceEvent::Ready) came just before.
    pub fn commit(&mut self, _now: Instant, paused_for: Duration) {
        match self.state {
            State::Ended { .. } => {}
            State::Ready => {
                self.outbox.push_back(Message::Commit { paused_for });
                self.state = State::Committing;
            }
            _ => panic!("committed while {}", self.state.name()),
        }
    }

    /// Calls the migration off. Whether that was still possible: not once Commit is out, nor after the end.
    pub fn abort(&mut self, _now: Instant, reason: String) -> bool {
        match self.state {
            State::Ended { .. } | State::Committed | State::Doubt { .. } | State::Serving | State::Recovering(_) => false,
            _ => {
                self.call_off(ProtocolError::CalledOff { reason });
                true
            }
        }
    }
}
