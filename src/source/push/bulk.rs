//! Pushes on one bulk lane.
//!
//! Pages are claimed only when the lane has room for them, a few at a time: until it is claimed a page can be had at once
//! on the urgent lane, and after that it must be waited for. A step is about what the link carries in half a millisecond,
//! so that the urgent lane's thread does not wait for a processor, nor its bytes behind many of these.

use std::convert::Infallible;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::super::fleet::{Seat, WorkTurn};
use super::super::on_processor::on_processor;
use super::{Claim, Shared, broken, closed};
use crate::error::Error;
use crate::page::{Chooser, LinkSample, Work};
use crate::protocol::ProtocolError;
use crate::stats::Encodings;
use crate::sys::priority;
use crate::transport::{BulkQueue, SendQueue, Stream};
use crate::units::{ByteCount, CHUNK_PAGES, PAGE_SIZE};
use crate::wire::{FrameWriter, Lane};

/// One bulk lane's sender.
pub(super) struct Pusher<'d> {
    shared: Arc<Shared<'d>>,
    lane: Lane,
    stream: Stream,
    queue: BulkQueue,
    started: Receiver<Infallible>,
    frames: FrameWriter,
    chooser: Chooser,
    buffer: Vec<u8>,
    /// Bytes written in this generation.
    written: u64,
    /// When the pacer lets this lane write again.
    turn: Instant,
    /// Bytes of the last write, for which the fleet has not given a turn yet.
    owed: ByteCount,
    seat: Seat,
    /// A turn at a processor, until pages are written.
    work: Option<WorkTurn>,
    /// Waited for turns at the link since the last write.
    waited: Duration,
    encodings: Encodings,
}

impl<'d> Pusher<'d> {
    pub(super) fn new(shared: Arc<Shared<'d>>, lane: Lane, stream: Stream, started: Receiver<Infallible>) -> Self {
        Self {
            lane,
            queue: BulkQueue::new(&stream),
            frames: shared.writer(),
            chooser: shared.service.allotment.chooser(shared.service.compression, Arc::clone(&shared.path)),
            stream,
            started,
            buffer: Vec::new(),
            written: 0,
            turn: Instant::now(),
            owed: ByteCount(0),
            seat: Seat::default(),
            work: None,
            waited: Duration::ZERO,
            encodings: Encodings::default(),
            shared,
        }
    }

    /// Until everything is sent and the generation stopped, or the lane broke.
    pub(super) fn run(mut self) -> Result<(), Error> {
        priority::lower();
        // Nothing ever comes: it is closed, or that takes too long.
        let _ = self.started.recv_timeout(HEAD_START);
        let pushed = self.push();
        self.shared.service.counters.encoded(self.encodings);
        pushed?;
        self.shared.service.allotment.pass_on(&self.chooser);
        self.watch()
    }

    fn push(&mut self) -> Result<(), Error> {
        while !self.shared.is_stopped() {
            if !self.has_turn() || !self.queue.has_room(PATIENCE).map_err(|error| broken(self.lane, error))? {
                continue;
            }
            if !self.step()? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends some pages; none when nobody has any left to send.
    fn step(&mut self) -> Result<bool, Error> {
        let step_bytes = usize::try_from(self.queue.step().0).expect("64-bit host");
        let most = u32::try_from((step_bytes / PAGE_SIZE).clamp(FEWEST, CHUNK_PAGES)).expect("64 at most");
        self.work = self.shared.service.allotment.work(&self.seat);
        for _ in 0..PIECES {
            let Some(claim) = self.claim(most) else {
                let any = !self.buffer.is_empty();
                self.write()?;
                return Ok(any);
            };
            self.encode(&claim)?;
            if self.buffer.len() >= step_bytes / 2 {
                break;
            }
        }
        self.write()?;
        Ok(true)
    }

    /// Claims what comes next in the order.
    fn claim(&self, most: u32) -> Option<Claim> {
        loop {
            let piece = self.shared.order().next(&self.shared.remaining, most)?;
            let claim = self.shared.remaining.claim(piece.chunk, piece.mask);
            // Otherwise it became urgent just now.
            if !claim.is_empty() {
                return Some(claim);
            }
        }
    }

    fn encode(&mut self, claim: &Claim) -> Result<(), Error> {
        for (chunk, mask) in claim.frames() {
            if !self.buffer.is_empty() && self.buffer.len() >= CHUNK_PAGES * PAGE_SIZE {
                self.write()?;
            }
            let shared = &*self.shared;
            let method = self.chooser.method(Instant::now());
            let work = Work { round: 0, chunk, memory: shared.service.memory.chunk(chunk), mask, method };
            let encoded = on_processor(method, || self.frames.push_chunk(&mut self.buffer, work));
            self.chooser.encoded(method, encoded.packed);
            self.encodings += encoded.pages.masks.encodings();
            shared.service.counters.bulk.made(&encoded);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Error> {
        // That may have to wait for the peer.
        self.work = None;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        self.queue.write_all(&self.buffer).map_err(|error| broken(self.lane, error))?;
        let (now, bytes) = (Instant::now(), self.buffer.len() as u64);
        self.shared.service.counters.bulk.wrote(self.buffer.len());
        self.buffer.clear();
        self.written += bytes;
        self.owed = ByteCount(bytes);
        self.turn = now + self.shared.service.allotment.reserve_own(now, self.owed);
        let SendQueue { under_way, peer_window } = self.queue.look(now);
        let waited = std::mem::take(&mut self.waited);
        let peer_window = peer_window.map(|window| window.0);
        self.chooser.link(now, LinkSample { written: self.written, unacknowledged: under_way.0, blocked: now - began, waited, peer_window });
        Ok(())
    }

    /// Waits for a turn at the link, but not for long at a time where only this migration's own rate counts.
    fn has_turn(&mut self) -> bool {
        let left = self.turn.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Paid for afterwards: what goes next is not claimed yet, so how much it is cannot be known.
            let (asked, owed) = (Instant::now(), std::mem::replace(&mut self.owed, ByteCount(0)));
            self.shared.service.allotment.await_fleet(owed, &self.seat, &|| self.shared.is_stopped());
            self.waited += asked.elapsed();
            return true;
        }
        std::thread::sleep(left.min(PATIENCE));
        self.waited += left.min(PATIENCE);
        false
    }

    /// Notices when the lane breaks although nothing more is to be written: it carries nothing the other way.
    fn watch(mut self) -> Result<(), Error> {
        loop {
            match self.stream.read(&mut [0]) {
                Ok(0) => return Err(closed(self.lane)),
                Ok(_) => return Err(ProtocolError::Unexpected { message: "data on a bulk lane", state: "pushing pages" }.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(self.lane, error)),
            }
        }
    }
}

/// How long pushing waits for the guest to be started: what that takes, on a link that is not long.
const HEAD_START: Duration = Duration::from_millis(5);
/// Waits are no longer than this before a look at whether to stop.
const PATIENCE: Duration = Duration::from_millis(20);
/// Pages in a piece at least.
const FEWEST: usize = 4;
/// Pieces in one step at most: pages that take next to nothing go together.
const PIECES: usize = 8;
