//! Listening: a thread for each connection.

use std::sync::Arc;
use std::time::Duration;

use super::admission::GuestFactory;
use super::connection;
use super::control::ReceiverControl;
use super::door::TurnedAway;
use super::hub::{Hub, ReceiverOptions};
use crate::control::MessageWriter;
use crate::error::Error;
use crate::sys::priority;
use crate::transport::{Endpoint, Listener, Stream, TransportError};
use crate::wire::{Message, RefuseReason};

/// Takes guests in at an address.
pub struct Receiver {
    listener: Listener,
    hub: Arc<Hub>,
}

impl Receiver {
    /// Listens at `endpoint`; guests are built by `factory`.
    ///
    /// # Errors
    /// When the address cannot be taken.
    pub fn bind(endpoint: &Endpoint, options: ReceiverOptions, factory: Arc<dyn GuestFactory>) -> Result<Self, TransportError> {
        Ok(Self { listener: Listener::bind(endpoint)?, hub: Arc::new(Hub::new(options, factory)) })
    }

    /// Where it listens, with the port that was taken.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.listener.endpoint()
    }

    /// Ends it, from another thread.
    #[must_use]
    pub fn control(&self) -> ReceiverControl {
        ReceiverControl::new(Arc::clone(&self.hub))
    }

    /// Serves sessions until the last of [`ReceiverOptions::max_sessions`] is over, or it is [stopped](ReceiverControl::stop)
    /// and all are, and no source can come back in doubt.
    ///
    /// # Errors
    /// When the system refuses to take connections.
    pub fn serve(&self) -> Result<(), Error> {
        while !self.hub.is_done() {
            self.hub.registry.forget();
            match self.listener.accept(ACCEPT_STEP) {
                Ok(Some(stream)) => self.spawn(stream),
                Ok(None) => {}
                Err(error) if is_exhausted(&error) => {
                    tracing::warn!(%error, "cannot take a connection now");
                    std::thread::sleep(ACCEPT_STEP);
                }
                Err(source) => return Err(Error::System { action: "take connections", source }),
            }
        }
        Ok(())
    }

    fn spawn(&self, stream: Stream) {
        let mut counted = match self.hub.count(&stream) {
            Ok(counted) => counted,
            Err(refusal) => {
                self.hub.complain(&stream.peer(), &refusal.into());
                // With TLS it would understand nothing else.
                if !self.hub.options.security.is_required() {
                    // A few bytes into a new socket: it takes them at once, or it is gone.
                    let refuse = Message::Refuse { reason: RefuseReason::Busy, detail: refusal.to_string() };
                    let _ = MessageWriter::new(stream).send(&refuse);
                }
                return;
            }
        };
        let spawned = std::thread::Builder::new().name("pf-connection".into()).spawn(move || {
            priority::ShortTurns::take();
            let peer = stream.peer();
            if let Err(error) = connection::handle(&mut counted, stream) {
                let error = if counted.gave_way() { TurnedAway::GaveWay.into() } else { error };
                counted.hub().complain(&peer, &error);
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a connection");
        }
    }
}

/// Out of descriptors or memory: may pass.
fn is_exhausted(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// How often an idle receiver looks whether it is done.
const ACCEPT_STEP: Duration = Duration::from_millis(50);
