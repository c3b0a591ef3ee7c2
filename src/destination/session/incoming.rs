//! A guest on its way in: what was built for it, and the memory that pages come to.

use std::sync::Arc;

use crate::destination::admission::{Arrival, Refusal};
use crate::destination::budget::Reservation;
use crate::destination::hub::Hub;
use crate::error::Error;
use crate::memory::{GuestMemory, HostSupply};
use crate::wire::{Offer, RefuseReason};

/// A guest on its way in.
pub(super) struct Incoming {
    pub(super) arrival: Box<dyn Arrival>,
    reservation: Reservation,
}

impl Incoming {
    /// Reserves what the guest on `offer` needs and has it built.
    pub(super) fn admit(hub: &Hub, offer: &Offer) -> Result<Self, Refusal> {
        let backing = hub.factory.backing(offer);
        let _alone = hub.budget.mapping(backing);
        let reservation = hub.budget.reserve(&offer.layout, backing)?;
        let arrival = hub.factory.admit(offer)?;
        if arrival.memory().layout() != &offer.layout {
            return Err(Refusal::new(RefuseReason::Layout, "the guest that was described has another memory layout here than the one announced"));
        }
        reservation.is_for(&arrival.memory());
        Ok(Self { arrival, reservation })
    }

    /// Gives memory back to the host by `take_out`, which is to be had again as its pages come.
    pub(super) fn shrink<T>(&self, take_out: impl FnOnce(Arc<GuestMemory>) -> Result<T, Error>) -> Result<T, Error> {
        let memory = self.arrival.memory();
        self.reservation.shrinks();
        let taken = take_out(Arc::clone(&memory))?;
        self.reservation.has_shrunk(&memory);
        Ok(taken)
    }
}

/// Memory that pages come to for the first time. Once this goes, all of it can be touched again, by whoever: before the guest
/// runs or the embedder sees it, and also when the session fails or panics.
pub(super) struct Supplied {
    pub(super) supply: Arc<HostSupply>,
    pub(super) memory: Arc<GuestMemory>,
}

impl Drop for Supplied {
    fn drop(&mut self) {
        self.supply.end(&self.memory);
    }
}
