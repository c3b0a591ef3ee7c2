//! `pageferry probe`: what this host can do.

use std::io::{self, Write};

use crate::dirty::probe;

/// Prints a line for each capability.
///
/// # Errors
/// When `out` cannot be written to.
pub fn run(out: &mut impl Write) -> io::Result<()> {
    write!(out, "{}", probe::probe())
}
