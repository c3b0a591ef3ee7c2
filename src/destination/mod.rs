//! The receiving side: takes guests in.
//!
//! A [`Receiver`] listens; what a guest is made of is the embedder's business, through [`GuestFactory`] and
//! [`Arrival`]. Sessions are served side by side, each with threads of its own:
//! ```text
//! caller's thread   accepts connections
//! pf-connection     one for each connection: reads the first message, then becomes
//!                   - a session's thread (Hello): builds the guest and hands it over, places nothing
//!                   - a bulk worker (Attach): reads frames straight into guest memory
//!                   - an answer to a source in doubt (Query), and ends
//! pf-control        the pump, one for each session: drives its protocol machine, reads and writes its connection
//! pf-beat           one for each bulk worker of a guest that comes alone; awake while others want its processor
//! pf-faults         in post-copy, one for each session: learns which pages the guest waits for, and asks for them
//! ```
//! In post-copy a lane's thread puts what it reads into a buffer first, and from there under the running guest; see
//! `follow`, `following` and `faults`.
//!
//! Strangers stand at the `door` until they have said what they want, and may. After that a peer can have as many
//! connections and sessions as [`ReceiverLimits`] gives one, which is a part of all there may be.
//!
//! Memory is reserved before an offer is accepted; a guest runs only after Commit; what became of a session that
//! reached Ready is remembered until its source has confirmed, or for the time of [`Timeouts::tombstone`].
//!
//! [`Timeouts::tombstone`]: crate::protocol::Timeouts::tombstone
#![forbid(unsafe_code)]

mod admission;
mod budget;
mod bulk;
mod claim;
mod connection;
mod control;
mod door;
#[cfg(feature = "userfaultfd")]
pub(crate) mod faults;
#[cfg(not(feature = "userfaultfd"))]
#[path = "no_faults.rs"]
pub(crate) mod faults;
mod follow;
mod following;
mod hub;
mod lane;
mod ledger;
mod missing_error;
mod open_lanes;
mod peer;
mod pump;
mod receiver;
mod registry;
mod remembered;
mod session;
mod shared;
mod standstill;
mod states;

pub use admission::{Arrival, Ending, GuestFactory, MissingMemory, Placed, Refusal};
pub use control::{ReceiverControl, UnderWay};
pub use door::{ReceiverLimits, TurnedAway};
#[cfg(feature = "userfaultfd")]
pub use faults::{LocalFaults, local_faults};
pub use hub::ReceiverOptions;
pub use missing_error::MissingError;
pub use receiver::Receiver;
