//! Sessions that switch to post-copy, and what becomes of them when connections are lost.

mod recovery;
mod steps;
