//! What `pageferry-receive` takes away from itself once it is set up.
//!
//! A receiver reads what strangers send, for as long as it runs. It opened all that it needs before the first of them
//! came, so whoever might get hold of it should find nothing else to open, to start or to talk to. Two layers, each of
//! which holds without the other:
//! - `files`: Landlock; which files may still be opened, and how.
//! - `calls`: seccomp; which system calls there are at all.
//!
//! Both bind the thread that enters and those that it starts from then on, and can never be taken off. So
//! [`Sandbox::enter`] comes after everything has been opened, and before the first thread.
//!
//! The library itself knows nothing of this. What a VMM needs beside its migrations only its author can say.

#[cfg(feature = "sandbox")]
mod allowed;
#[cfg(feature = "sandbox")]
mod calls;
#[cfg(feature = "sandbox")]
mod files;

use std::fmt;
use std::path::Path;

use crate::dirty::probe::Capability;

/// Whether there is to be a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wanted {
    /// As far as this kernel has what it takes; what is missing is said.
    #[default]
    Auto,
    /// Whole, or the receiver does not start.
    On,
    /// None.
    Off,
}

/// What a receiver does after it has been set up, as far as that is not the same for all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs<'a> {
    /// The file that images are written to, each time anew. It exists.
    pub image: Option<&'a Path>,
    /// The file of its Unix socket, which it removes in the end.
    pub socket: Option<&'a Path>,
    /// Whether it runs guests on KVM.
    pub kvm: bool,
}

/// A layer that there is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    layer: &'static str,
    why: String,
}

/// The sandbox that the calling thread, and whatever threads it starts, are in. It holds whether this is kept or not, but
/// what may still be opened only stays so for sure as long as it is.
#[derive(Debug, Default)]
#[must_use]
pub struct Sandbox {
    missing: Vec<Missing>,
    #[cfg(feature = "sandbox")]
    _files: files::Held,
}

impl Sandbox {
    /// Enters as much of one as is wanted. There is no way out.
    ///
    /// # Errors
    /// When a layer that must be there is missing. The others may hold by then.
    pub fn enter(wanted: Wanted, needs: &Needs<'_>) -> anyhow::Result<Self> {
        if wanted == Wanted::Off {
            return Ok(Self::default());
        }
        let sandbox = Self::enter_layers(needs);
        match sandbox.missing.first() {
            Some(missing) if wanted == Wanted::On => anyhow::bail!("--sandbox on: {missing}; --sandbox auto does without what is missing"),
            _ => Ok(sandbox),
        }
    }

    /// The layers that it lacks.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Files first: the filter of system calls does not let Landlock's own pass.
    #[cfg(feature = "sandbox")]
    fn enter_layers(needs: &Needs<'_>) -> Self {
        let mut sandbox = Self::default();
        match files::confine(needs) {
            Ok(held) => sandbox._files = held,
            Err(why) => sandbox.missing.push(Missing { layer: FILES, why }),
        }
        if let Err(why) = calls::confine() {
            sandbox.missing.push(Missing { layer: CALLS, why });
        }
        sandbox
    }

    #[cfg(not(feature = "sandbox"))]
    fn enter_layers(_needs: &Needs<'_>) -> Self {
        let missing = [FILES, CALLS].map(|layer| Missing { layer, why: "built without the feature `sandbox`".to_owned() });
        Self { missing: missing.into() }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {}: {}", self.layer, self.why)
    }
}

/// Whether this host has the layers, found out by a thread that enters them and ends.
#[must_use]
pub fn probe() -> [Capability; 2] {
    let missing = std::thread::spawn(|| Sandbox::enter_layers(&Needs::default()).missing).join().expect("it has no reason to panic");
    [(FILES, "the receiver's files"), (CALLS, "the receiver's system calls")].map(|(layer, use_)| {
        let why = missing.iter().find(|missing| missing.layer == layer).map(|missing| missing.why.clone());
        Capability { name: layer, usable: why.is_none(), detail: why.unwrap_or_else(|| format!("--sandbox confines {use_}")) }
    })
}

const FILES: &str = "Landlock";
const CALLS: &str = "seccomp";
