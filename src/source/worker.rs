//! One channel's sender.
//!
//! A worker walks its own words of the round's bitmap: copy out, classify, encode, checksum, append, write. It owns all
//! that belongs to its pages, so nothing is locked; nothing is allocated once its buffer has grown to two chunks.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use crossbeam::utils::CachePadded;

use super::fleet::{Allotment, Seat, Urgency};
use super::on_processor::on_processor;
use crate::bitmap::{PageBitmap, SharedBitmap};
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::page::{Chooser, Encoded, LinkSample, Work};
use crate::stats::Encodings;
use crate::sys::priority::ShortTurns;
use crate::transport::{SendQueue, Stream, TransportError};
use crate::units::{ByteCount, CHUNK_SIZE, ChunkIndex, PageCount};
use crate::wire::{ChannelTotals, FrameWriter, channel_of};

/// A round to send: every worker gets the same one and picks its own chunks.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) round: u16,
    pub(super) pages: Arc<PageBitmap>,
    /// The chunks of `pages`, in the order to go by.
    pub(super) order: Arc<[ChunkIndex]>,
    /// Pages that turned out to have been written meanwhile, and go again in a later round: to send them now would be in
    /// vain. It grows during the round.
    pub(super) skip: Option<Arc<SharedBitmap>>,
    /// What follows on the channels.
    pub(super) then: Then,
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Perhaps another one follows.
    RoundEnd,
    /// The guest stands still, and changes hands.
    Handover,
    /// Post-copy follows.
    Switch,
}

impl Then {
    fn urgency(self) -> Urgency {
        match self {
            Self::RoundEnd => Urgency::Ordinary,
            Self::Handover | Self::Switch => Urgency::Urgent,
        }
    }
}

/// What a worker did of a round.
pub(super) struct Sent {
    pub(super) pages: PageCount,
    pub(super) bytes: ByteCount,
    pub(super) encodings: Encodings,
    /// Since the beginning, for the final reckoning.
    pub(super) totals: ChannelTotals,
    pub(super) channel: u16,
    /// Pages left when the round was halted.
    pub(super) unsent: Option<PageBitmap>,
    /// Pages left out because they go again in a later round.
    pub(super) skipped: Option<PageBitmap>,
}

/// Counted while a round runs, for progress; and how workers are stopped.
#[derive(Default)]
pub(super) struct Live {
    pub(super) pages: CachePadded<AtomicU64>,
    pub(super) bytes: CachePadded<AtomicU64>,
    /// Ends the round early: what is not sent yet goes back.
    pub(super) halt: AtomicBool,
}

pub(super) struct Worker<'d> {
    pub(super) channel: u16,
    pub(super) channels: u16,
    pub(super) stream: Stream,
    pub(super) memory: &'d GuestMemory,
    pub(super) allotment: Allotment<'d>,
    pub(super) seat: Seat,
    pub(super) live: &'d Live,
    pub(super) frames: FrameWriter,
    pub(super) chooser: Chooser,
    /// When the choice was last told.
    pub(super) told: Instant,
    /// Bytes written to the stream since the beginning.
    pub(super) written: u64,
    pub(super) buffer: Vec<u8>,
}

impl Worker<'_> {
    /// Sends rounds until the driver drops its end of `jobs`, or the connection fails. Gives back what it remembers of pages.
    ///
    /// Both channels are bounded: one job waits at most, and one result for each; the driver always reads results.
    pub(super) fn run(mut self, jobs: &Receiver<Job>, results: &Sender<Result<Sent, Error>>) -> FrameWriter {
        let _last_word = LastWord { results };
        let mut turns = if self.allotment.is_alone() { ShortTurns::take_with_beat() } else { ShortTurns::take() };
        for job in jobs {
            let sent = self.send_round(&job, &mut turns);
            let failed = sent.is_err();
            if results.send(sent).is_err() || failed {
                // What is left of a connection that broke is not what the next one will be like.
                return self.frames;
            }
        }
        self.allotment.pass_on(&self.chooser);
        self.frames
    }

    fn send_round(&mut self, job: &Job, turns: &mut ShortTurns) -> Result<Sent, Error> {
        let before = self.frames.totals();
        let mut encodings = Encodings::default();
        let mut unsent = None;
        let mut skipped = None;
        let mut turn = None;
        let (channel, channels) = (self.channel, self.channels);
        for chunk in job.order.iter().copied().filter(|&chunk| channel_of(chunk, channels) == channel) {
            let all = job.pages.word(chunk);
            let word = all & !job.skip.as_ref().map_or(0, |skip| skip.word(chunk));
            if word != all {
                skipped.get_or_insert_with(|| PageBitmap::new(job.pages.chunks())).insert_word(chunk, all & !word);
            }
            if word == 0 {
                continue;
            }
            // Relaxed: a late look at the flag sends a chunk more, nothing else.
            if unsent.is_none() && self.live.halt.load(Ordering::Relaxed) {
                unsent = Some(PageBitmap::new(job.pages.chunks()));
            }
            if let Some(left) = &mut unsent {
                left.insert_word(chunk, word);
                continue;
            }
            if turn.is_none() {
                turn = self.allotment.work(&self.seat);
            }
            encodings += self.push(job.round, chunk, word);
            // Relaxed: counters for display.
            self.live.pages.fetch_add(u64::from(word.count_ones()), Ordering::Relaxed);
            if self.buffer.len() >= FLUSH_BYTES {
                // Writing may have to wait for the peer: others work meanwhile.
                turn = None;
                self.flush(job.then.urgency())?;
            }
            turn = turn.filter(|turn| !turn.is_long());
            turns.give_way();
        }
        drop(turn);
        match job.then {
            Then::RoundEnd | Then::Handover => self.frames.push_round_end(&mut self.buffer, job.round),
            Then::Switch => self.frames.push_switch(&mut self.buffer, job.round),
        }
        self.flush(job.then.urgency())?;
        self.chooser.rest();
        let totals = self.frames.totals();
        Ok(Sent {
            pages: PageCount(totals.pages.0 - before.pages.0),
            bytes: ByteCount(totals.bytes.0 - before.bytes.0),
            encodings,
            totals,
            channel: self.channel,
            unsent,
            skipped,
        })
    }

    /// Appends these pages of a chunk to the buffer.
    fn push(&mut self, round: u16, chunk: ChunkIndex, mask: u64) -> Encodings {
        let method = self.chooser.method(Instant::now());
        self.frames.keep(self.chooser.keep());
        let work = Work { round, chunk, memory: self.memory.chunk(chunk), mask, method };
        let Encoded { pages, packed } = on_processor(method, || self.frames.push_chunk(&mut self.buffer, work));
        self.chooser.encoded(method, packed);
        pages.masks.encodings()
    }

    fn flush(&mut self, urgency: Urgency) -> Result<(), Error> {
        let is_stopped = || self.live.halt.load(Ordering::Relaxed);
        for slice in self.buffer.chunks(self.allotment.slice(self.buffer.len(), urgency)) {
            let ready = Instant::now();
            self.allotment.await_link(ByteCount(slice.len() as u64), urgency, &self.seat, &is_stopped);
            let began = Instant::now();
            self.stream.write_all(slice).map_err(|source| TransportError::Broken { lane: format!("bulk {}", self.channel), source })?;
            self.live.bytes.fetch_add(slice.len() as u64, Ordering::Relaxed);
            self.written += slice.len() as u64;
            let now = Instant::now();
            let SendQueue { under_way, peer_window } = self.stream.send_queue();
            let peer_window = peer_window.map(|window| window.0);
            let (blocked, waited) = (now - began, began - ready);
            self.chooser.link(now, LinkSample { written: self.written, unacknowledged: under_way.0, blocked, waited, peer_window });
            if now.saturating_duration_since(self.told) >= TELL_EVERY {
                self.told = now;
                tracing::debug!(channel = self.channel, choice = %self.chooser, under_way = under_way.0, peer_window, "compression");
            }
        }
        self.buffer.clear();
        Ok(())
    }
}

/// Tells of a worker that panics, which the driver would wait for.
struct LastWord<'r> {
    results: &'r Sender<Result<Sent, Error>>,
}

impl Drop for LastWord<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // There is room for one of each worker. What happened was reported by the panic hook.
            let _ = self.results.try_send(Err(Error::System { action: "keep the workers", source: ErrorKind::Other.into() }));
        }
    }
}

/// Bytes of frames from which on they are written: a small packed chunk waits for the next, and the link for neither.
const FLUSH_BYTES: usize = CHUNK_SIZE / 4;
/// How often a worker tells what it chooses, in its log.
const TELL_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use crossbeam::channel::bounded;

    use super::*;

    #[test]
    fn a_worker_that_panics_is_heard_of_and_one_that_ends_is_not() {
        let (results, heard) = bounded(1);
        std::thread::scope(|scope| {
            let panics = || {
                let _last_word = LastWord { results: &results };
                panic!("told to");
            };
            assert!(scope.spawn(panics).join().is_err());
        });
        assert!(matches!(heard.try_recv(), Ok(Err(Error::System { action: "keep the workers", .. }))));
        drop(LastWord { results: &results });
        assert!(heard.try_recv().is_err());
    }
}
