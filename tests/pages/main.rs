//! Pages through encoder, frames and decoder into another memory, and what happens to altered ones.

mod content;
mod frames;
mod pages;
mod post_copy;
