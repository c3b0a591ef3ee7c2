//! Peers that lie, break off, talk nonsense or do not talk at all.
//!
//! The hostile side is driven by hand, message by message and byte by byte; the other side is the real one. After each
//! attack: no thread of the engine has panicked, the guest runs at exactly one end (or is in doubt and paused), each
//! end knows the reason, and the receiver still serves the next honest source.

#[cfg(feature = "tls")]
#[path = "../certificates/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod certificates;
#[cfg(feature = "tls")]
mod certified;
mod destination;
mod doubt;
mod floods;
mod following;
mod forge;
#[path = "../migration/guest.rs"]
mod guest;
mod honest;
mod in_post_copy;
mod limits;
mod log;
mod on_receiver;
mod on_source;
mod source;
mod table;
mod talk;
