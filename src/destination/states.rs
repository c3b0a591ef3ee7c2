//! Room for guests' states.
//!
//! A state is the longest thing that a peer may say, it is no part of the memory that was reserved for its guest, and it
//! is held from when it begins to come until it is loaded. So a peer is given room for some at a time, all its sessions
//! together, and all peers for somewhat more. Whoever has none left is told so, and the guest runs on at its source. (While
//! one is decoded it is there twice.)

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::door::ReceiverLimits;
use super::hub::Hub;
use super::peer::Peer;
use super::shared::Shared;
use crate::units::ByteCount;
use crate::wire::Announced;

/// What is held of all states.
#[derive(Debug, Default)]
pub(super) struct States {
    /// In bytes, of peers of which there is any.
    held: Mutex<HashMap<Peer, u64>>,
}

/// Room for one, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    states: Arc<States>,
    peer: Peer,
    length: u64,
}

/// Whether the state of a session's guest may come: in its place only, and if there is room.
pub(super) fn leave(hub: &Hub, shared: &Arc<Shared>) -> impl Fn(Announced) -> Result<(), String> + Send + 'static {
    let (states, limits, shared) = (Arc::clone(&hub.states), hub.options.limits, Arc::clone(shared));
    move |announced| {
        shared.machine().takes_state().map_err(|state| format!("this end is {state}"))?;
        shared.hold_state(states.room(shared.peer(), ByteCount(announced.length.into()), &limits)?);
        Ok(())
    }
}

impl States {
    /// Room for a state of `peer`'s. Fails with what there is not.
    fn room(self: &Arc<Self>, peer: Peer, length: ByteCount, limits: &ReceiverLimits) -> Result<Room, String> {
        let mut held = self.held();
        let of_peer = held.get(&peer).copied().unwrap_or(0);
        let of_all = held.values().sum();
        for (holds, limit, whose) in [(of_peer, limits.states_per_peer, "one peer's guests"), (of_all, limits.states, "all guests")] {
            let rest = ByteCount(limit.0.saturating_sub(holds));
            if length > rest {
                return Err(format!("of the {limit} that the states of {whose} may take up on their way in here, {rest} are left"));
            }
        }
        held.insert(peer, of_peer + length.0);
        Ok(Room { states: Arc::clone(self), peer, length: length.0 })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Peer, u64>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Entry::Occupied(mut held) = self.states.held().entry(self.peer) {
            *held.get_mut() -= self.length;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_room_for_some_and_all_peers_for_somewhat_more() {
        let limits = ReceiverLimits { states: ByteCount(5), states_per_peer: ByteCount(3), ..ReceiverLimits::default() };
        let (states, [one, other]) = (Arc::new(States::default()), [1, 2].map(|last| Peer::V4([192, 0, 2, last])));
        let room = |peer, length| states.room(peer, ByteCount(length), &limits);
        let first = room(one, 2).unwrap();
        let refused = room(one, 2).unwrap_err();
        assert_eq!(refused, "of the 3 B that the states of one peer's guests may take up on their way in here, 1 B are left");
        let second = room(other, 3).unwrap();
        let refused = room(one, 1).unwrap_err();
        assert_eq!(refused, "of the 5 B that the states of all guests may take up on their way in here, 0 B are left");
        drop(second);
        let third = room(one, 1).unwrap();
        drop((first, third));
        assert!(states.held().is_empty(), "all of it has come back");
        room(one, 3).unwrap();
    }
}
