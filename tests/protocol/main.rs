//! The session between the two ends, in virtual time.

mod cuts;
mod edges;
mod hostile;
mod interleavings;
mod node;
mod pair;
mod post_copy;
mod steps;
mod torment;
mod world;
