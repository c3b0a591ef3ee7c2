//! After the switch to post-copy: the rest of memory, pushed and asked for.
//!
//! [`serve`] starts a *generation*: the lanes of one connection, and what is missing at its beginning. When a lane breaks
//! the generation is stopped, and after the recovery another one begins, with new lanes and with what has not arrived.
//!
//! # Threads
//! ```text
//! pf-push-N   one for each bulk lane: what comes next in the order, in small steps
//! pf-urgent   reads what the guest waits for and answers at once
//! ```
//! They share [`Remaining`] (who sends a page: atomic claims) and the order (a lock held to choose, never to send). Each
//! ends when its lane breaks or the generation is stopped; a lane on which all is pushed is kept open and watched.

mod bulk;
mod counters;
mod prepaging;
mod remaining;
mod requests;
#[cfg(test)]
mod tests;
mod urgent;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use crossbeam::channel::{Receiver, Sender, bounded};

pub(super) use counters::Counters;
pub use counters::{Pushed, Traffic};
pub use prepaging::{Piece, Prepaging, PushOrder};
pub use remaining::{Claim, Granule, Remaining, widen};

use super::fleet::Allotment;
use crate::error::Error;
use crate::memory::GuestMemory;
use crate::page::{Compression, Encoder, EncoderSettings, Method, Path};
use crate::sys::inheriting;
use crate::transport::{Stream, StreamControl, TransportError};
use crate::units::{ChunkIndex, PageCount};
use crate::wire::{FrameWriter, Lane};

/// What is the same in all generations.
#[derive(Clone, Debug)]
pub(super) struct Service<'d> {
    /// The paused guest's.
    pub(super) memory: &'d GuestMemory,
    /// Limits bulk lanes; what is urgent counts and does not wait.
    pub(super) allotment: Allotment<'d>,
    pub(super) compression: Compression,
    pub(super) encoder: EncoderSettings,
    pub(super) granule: Granule,
    pub(super) prepaging: Prepaging,
    /// Of all generations together.
    pub(super) counters: &'d Counters,
}

/// The connections of a generation.
#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) bulk: Vec<Stream>,
    pub(super) urgent: Stream,
}

/// A generation that is being served. Dropped, it is stopped.
pub(super) struct Serving<'scope, 'd> {
    shared: Arc<Shared<'d>>,
    lanes: Vec<StreamControl>,
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
    broken: Receiver<Error>,
}

/// What the threads of a generation share.
struct Shared<'d> {
    service: Service<'d>,
    remaining: Remaining,
    order: inheriting::Shared<PushOrder>,
    /// The way that the bulk lanes share.
    path: Arc<Path>,
    stopped: AtomicBool,
}

/// Starts to push `missing`, hot chunks early in their order, and to answer requests. `missing` is [`widen`]ed.
/// `started` is closed once the guest runs there; until then, if not for long, nothing is pushed.
///
/// # Errors
/// When a thread cannot be started.
pub(super) fn serve<'scope, 'd: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    service: Service<'d>,
    missing: &crate::bitmap::PageBitmap,
    hot: Vec<ChunkIndex>,
    lanes: Lanes,
    started: &Receiver<Infallible>,
) -> Result<Serving<'scope, 'd>, Error> {
    let remaining = Remaining::new(missing, service.memory.layout(), service.granule);
    let order = inheriting::Shared::new(PushOrder::new(service.prepaging, hot));
    let controls = lanes.bulk.iter().chain([&lanes.urgent]).map(Stream::control).collect::<Vec<_>>();
    // Room for what each thread has to say at its end.
    let (failed, broken) = bounded(controls.len());
    let shared = Arc::new(Shared { service, remaining, order, path: Arc::default(), stopped: AtomicBool::new(false) });
    let mut serving = Serving { shared: Arc::clone(&shared), lanes: controls, threads: Vec::new(), broken };
    let urgent = urgent::Urgent::new(Arc::clone(&shared), lanes.urgent);
    serving.start(scope, "pf-urgent".into(), &failed, move || urgent.run())?;
    for (channel, stream) in (0..).zip(lanes.bulk) {
        let pusher = bulk::Pusher::new(Arc::clone(&shared), Lane::Bulk(channel), stream, started.clone());
        serving.start(scope, format!("pf-push-{channel}"), &failed, move || pusher.run())?;
    }
    Ok(serving)
}

impl<'scope, 'd: 'scope> Serving<'scope, 'd> {
    /// Tells why a lane broke, if one does; the generation has to be stopped then.
    pub(super) fn broken(&self) -> &Receiver<Error> {
        &self.broken
    }

    /// Pages that have not been handed to a lane.
    pub(super) fn left(&self) -> PageCount {
        self.shared.remaining.left()
    }

    /// Ends the generation: its lanes are shut down and its threads have ended.
    pub(super) fn stop(self) {
        drop(self);
    }

    fn start(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        name: String,
        failed: &Sender<Error>,
        work: impl FnOnce() -> Result<(), Error> + Send + 'scope,
    ) -> Result<(), Error> {
        let (shared, failed) = (Arc::clone(&self.shared), failed.clone());
        let body = move || {
            if let Err(error) = work()
                && !shared.is_stopped()
            {
                tracing::debug!(error = %error.in_full(), "a lane broke in post-copy");
                // There is room for one of each.
                let _ = failed.try_send(error);
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, body);
        self.threads.push(thread.map_err(|source| Error::System { action: "start a thread", source })?);
        Ok(())
    }
}

impl Drop for Serving<'_, '_> {
    fn drop(&mut self) {
        // Release: a thread that finds its lane shut down also finds that this was meant.
        self.shared.stopped.store(true, Ordering::Release);
        self.lanes.iter().for_each(StreamControl::shut_down);
        for thread in self.threads.drain(..) {
            // A panic there was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl<'d> Shared<'d> {
    fn is_stopped(&self) -> bool {
        // Acquire pairs with the Release of the stop.
        self.stopped.load(Ordering::Acquire)
    }

    fn order(&self) -> inheriting::Held<'_, PushOrder> {
        self.order.lock()
    }

    fn writer(&self) -> FrameWriter {
        let chunks = self.service.memory.layout().chunks();
        FrameWriter::post_copy(Encoder::new(self.service.encoder.clone(), chunks))
    }

    /// A quick method for pages that are waited for.
    fn quick(&self) -> Method {
        if self.service.compression == Compression::None { Method::Raw } else { Method::Lz4 }
    }
}

fn broken(lane: Lane, source: std::io::Error) -> Error {
    TransportError::Broken { lane: lane.to_string(), source }.into()
}

fn closed(lane: Lane) -> Error {
    TransportError::Closed { lane: lane.to_string() }.into()
}
