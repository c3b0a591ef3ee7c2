//! After the switch to post-copy: the rest of memory, pushed and asked for.

mod prepaging;
mod remaining;

pub use prepaging::{Piece, Prepaging, PushOrder};
pub use remaining::{Claim, Granule, Remaining, widen};
