//! The bench: the same guest, on the same link, moved by this engine and by QEMU.
#![forbid(unsafe_code)]

pub mod results;
