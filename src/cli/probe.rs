//! `pageferry probe`: what this host can do.

use std::io::{self, Write};

use super::sandbox;
use crate::dirty::probe;

/// Prints a line for each capability.
///
/// # Errors
/// When `out` cannot be written to.
pub fn run(out: &mut impl Write) -> io::Result<()> {
    let mut capabilities = probe::probe();
    capabilities.list.extend(sandbox::probe());
    write!(out, "{capabilities}")
}
