//! Answers what the guest waits for.
//!
//! A page that is asked for is claimed and written as a frame of its own, at once, before anything else is thought about.
//! Where faults run in sequence some more pages follow right behind, in front of all that waits on the bulk lanes, unless
//! somebody else is waiting meanwhile.

use std::io::Write;
use std::sync::Arc;

use super::requests::Requests;
use super::{Granule, Shared, broken};
use crate::error::Error;
use crate::page::Work;
use crate::stats::Encodings;
use crate::sys::priority;
use crate::transport::Stream;
use crate::units::{ByteCount, CHUNK_PAGES, ChunkIndex, PageCount, PageIndex};
use crate::wire::{FrameWriter, Lane};

/// The urgent lane's server.
pub(super) struct Urgent<'d> {
    shared: Arc<Shared<'d>>,
    requests: Requests,
    stream: Stream,
    frames: FrameWriter,
    buffer: Vec<u8>,
    encodings: Encodings,
}

impl<'d> Urgent<'d> {
    pub(super) fn new(shared: Arc<Shared<'d>>, stream: Stream) -> Self {
        let frames = shared.writer();
        Self { shared, requests: Requests::new(stream.share()), stream, frames, buffer: Vec::new(), encodings: Encodings::default() }
    }

    /// Until the lane ends.
    pub(super) fn run(mut self) -> Result<(), Error> {
        priority::raise();
        self.stream.prepare_urgent().map_err(|error| broken(Lane::Urgent, error))?;
        let served = self.serve();
        self.shared.service.counters.encoded(self.encodings);
        served
    }

    fn serve(&mut self) -> Result<(), Error> {
        loop {
            let pages = self.requests.next(self.shared.service.memory.layout())?;
            self.shared.service.counters.asked(pages.len());
            for &page in &pages {
                self.take(page.chunk(), 1 << page.bit());
                // Each is waited for by somebody; together they go where the first has gone already.
                if self.buffer.len() >= TOGETHER || page == pages[0] {
                    self.write()?;
                }
            }
            self.write()?;
            let behind = {
                let mut order = self.shared.order();
                pages.iter().map(|&page| order.fault(page)).last().unwrap_or(0)
            };
            if let Some(&last) = pages.last()
                && behind > 0
                && self.shared.service.granule == Granule::Page
                && !self.requests.are_waiting()
            {
                self.follow(last, behind)?;
            }
        }
    }

    /// Sends what is left of the `count` pages after `page`.
    fn follow(&mut self, page: PageIndex, count: u32) -> Result<(), Error> {
        let (mut next, end) = (page.0 + 1, (page.0 + 1 + u64::from(count)).min(u64::from(self.shared.remaining.chunks()) * CHUNK_PAGES as u64));
        while next < end {
            let at = PageIndex(next);
            let here = (CHUNK_PAGES as u64 - u64::from(at.bit())).min(end - next);
            let sent = self.take(at.chunk(), (u64::MAX >> (CHUNK_PAGES as u64 - here)) << at.bit());
            self.shared.service.counters.followed(sent);
            next += here;
        }
        self.write()
    }

    /// Puts those of these pages that nobody has claimed, and all that is filled together with them, into the buffer.
    fn take(&mut self, chunk: ChunkIndex, mask: u64) -> PageCount {
        let shared = &*self.shared;
        let claim = shared.remaining.claim(chunk, mask);
        for (chunk, mask) in claim.frames() {
            let work = Work { round: 0, chunk, memory: shared.service.memory.chunk(chunk), mask, method: shared.quick() };
            let encoded = self.frames.push_chunk(&mut self.buffer, work);
            self.encodings += encoded.pages.masks.encodings();
            shared.service.counters.urgent.made(&encoded);
        }
        claim.pages()
    }

    fn write(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.stream.write_all(&self.buffer).map_err(|error| broken(Lane::Urgent, error))?;
        self.shared.service.counters.urgent.wrote(self.buffer.len());
        // It does not wait for a turn; that it was taken makes the bulk lanes wait.
        self.shared.service.allotment.count(ByteCount(self.buffer.len() as u64));
        self.buffer.clear();
        Ok(())
    }
}

/// Bytes of answers to one request that are written together, after the first.
const TOGETHER: usize = 16 << 10;
