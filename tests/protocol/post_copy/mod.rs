//! Sessions that switch to post-copy, and what becomes of them when connections are lost.

mod ahead;
mod cuts;
mod hostile;
mod interleavings;
mod node;
mod plan;
mod recovery;
mod steps;
mod torment;
mod world;
