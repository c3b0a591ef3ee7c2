//! The workers of a session, one for each bulk channel, as the driver sees them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::driver::Driver;
use super::fleet::Seat;
use super::session::Terms;
use super::worker::{Job, Live, Sent, Worker};
use crate::error::Error;
use crate::page::Encoder;
use crate::transport::{Stream, StreamControl, TransportError};
use crate::units::{ByteCount, PageCount};
use crate::wire::FrameWriter;

/// Threads that send rounds.
pub(super) struct Workers<'s> {
    /// One bounded queue for each; dropping them ends the workers.
    jobs: Vec<Sender<Job>>,
    results: Receiver<Result<Sent, Error>>,
    live: &'s Live,
    connections: Vec<StreamControl>,
    threads: Vec<ScopedJoinHandle<'s, FrameWriter>>,
}

impl<'d> Driver<'d> {
    /// Starts a worker for each of `streams`.
    pub(super) fn start_workers<'s>(
        &self,
        scope: &'s Scope<'s, '_>,
        live: &'s Live,
        streams: Vec<Stream>,
        terms: &Terms,
    ) -> Result<Workers<'s>, Error>
    where
        'd: 's,
    {
        let (memory, allotment) = (self.memory, self.allotment());
        // Room for one result of each worker: none ever waits to report.
        let (done, results) = bounded(streams.len());
        let mut workers =
            Workers { jobs: Vec::new(), results, live, connections: streams.iter().map(Stream::control).collect(), threads: Vec::new() };
        let path = Arc::default();
        for (channel, stream) in (0..terms.channels).zip(streams) {
            let worker = Worker {
                channel,
                channels: terms.channels,
                stream,
                memory,
                allotment: allotment.clone(),
                seat: Seat::default(),
                live,
                frames: FrameWriter::new(Encoder::new(terms.encoder.clone(), memory.layout().chunks())),
                chooser: allotment.chooser(terms.compression, Arc::clone(&path)),
                told: Instant::now(),
                written: 0,
                buffer: Vec::new(),
            };
            let (to, jobs) = bounded(1);
            let done = done.clone();
            let named = Builder::new().name(format!("pf-send-{channel}"));
            let thread = self.hold.for_short_turns(|| named.spawn_scoped(scope, move || worker.run(&jobs, &done)));
            workers.threads.push(thread.map_err(|source| Error::System { action: "start a thread", source })?);
            workers.jobs.push(to);
        }
        Ok(workers)
    }
}

impl Workers<'_> {
    pub(super) fn count(&self) -> usize {
        self.jobs.len()
    }

    /// Gives all of them a round, whose results are to be [read](Self::results) before the next.
    pub(super) fn give(&self, job: &Job) {
        // Relaxed: the job queue orders these stores before the workers' round.
        self.live.halt.store(false, Ordering::Relaxed);
        self.live.pages.store(0, Ordering::Relaxed);
        for queue in &self.jobs {
            // A worker is only gone after a failure, which waits in `results`.
            let _ = queue.send(job.clone());
        }
    }

    /// One for each worker and round.
    pub(super) fn results(&self) -> &Receiver<Result<Sent, Error>> {
        &self.results
    }

    /// Ends the round early: what is not sent yet comes back.
    pub(super) fn halt(&self) {
        // Relaxed: workers look at it between chunks and while they wait for their turn.
        self.live.halt.store(true, Ordering::Relaxed);
    }

    /// Pages of the round that are sent so far.
    pub(super) fn sent(&self) -> PageCount {
        // Relaxed, here and below: counters for display.
        PageCount(self.live.pages.load(Ordering::Relaxed))
    }

    /// Bytes written since the start.
    pub(super) fn written(&self) -> ByteCount {
        ByteCount(self.live.bytes.load(Ordering::Relaxed))
    }

    /// Bytes that were written and have not arrived at the destination's host.
    pub(super) fn under_way(&self) -> ByteCount {
        self.connections.iter().map(StreamControl::under_way).sum()
    }

    /// A connection that broke while nothing was being written to it.
    pub(super) fn check(&self) -> Result<(), Error> {
        let trouble = self.connections.iter().enumerate().find_map(|(channel, connection)| Some((channel, connection.trouble()?)));
        trouble.map_or(Ok(()), |(channel, source)| Err(TransportError::Broken { lane: format!("bulk {channel}"), source }.into()))
    }

    /// Ends them; what they remember of pages.
    pub(super) fn end(self) -> Vec<FrameWriter> {
        // They end with their jobs.
        drop(self.jobs);
        // A panic there was reported by the panic hook.
        self.threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    }
}
