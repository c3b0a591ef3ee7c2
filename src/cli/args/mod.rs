//! The flags of the programs, and what they come to.
//!
//! Parsing has two steps. clap reads every flag there is, so that a mistyped value is told from an unknown flag; then
//! `settings` turns the flags into values the engine takes, and says no to those whose part of the engine is not built
//! in. Both kinds of error name the flag, the value and what is accepted, and end a program with
//! [`Exit::Usage`](super::exit::Exit::Usage).

mod limits;
mod receive;
mod security;
mod send;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

pub use limits::LimitArgs;
pub use receive::{ReceiveArgs, ReceiveSettings};
pub use send::{Guests, SendArgs, SendSettings};

use crate::memory::Backing;
use crate::transport::Endpoint;
use crate::units::HumanTime;
use crate::units::text::parse_time;

/// Flags that parse and still cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value}: {problem}")]
pub struct UsageError {
    /// The flag, with its dashes.
    pub flag: &'static str,
    /// What was given.
    pub value: String,
    /// Why it cannot be, and what can.
    pub problem: String,
}

impl UsageError {
    /// A value whose part of the engine is missing; `instead` is what there is.
    fn not_built_in(flag: &'static str, value: &dyn std::fmt::Display, instead: &str) -> Self {
        Self { flag, value: value.to_string(), problem: format!("not built in; {instead}") }
    }

    /// A value that another flag leaves no place for.
    fn contradiction(flag: &'static str, value: &dyn std::fmt::Display, why: &str) -> Self {
        Self { flag, value: value.to_string(), problem: why.to_owned() }
    }
}

/// Where a report goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// `-`.
    Stdout,
    /// This file, in the place of what it held, one line each.
    File(PathBuf),
}

impl From<PathBuf> for Output {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "-" { Self::Stdout } else { Self::File(path) }
    }
}

/// Whether a report and an image leave each other room.
fn check_outputs(json: Option<&Output>, dump: Option<&Path>) -> Result<(), UsageError> {
    let Some(dump) = dump else { return Ok(()) };
    let cannot = |why| Err(UsageError::contradiction("--dump", &dump.display(), why));
    if dump.as_os_str() == "-" {
        return cannot("an image goes to a file; its name is accepted");
    }
    let is_device = dump.exists() && !dump.is_file();
    match json {
        Some(Output::File(report)) if report == dump && !is_device => cannot("--json goes there already; two names are accepted"),
        _ => Ok(()),
    }
}

/// Where something is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// `-`.
    Stdin,
    /// This file.
    File(PathBuf),
}

impl From<PathBuf> for Input {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "-" { Self::Stdin } else { Self::File(path) }
    }
}

/// Makes sure that guest memory crosses a network unencrypted only where that was said aloud.
///
/// `flag` is the one that gave `endpoint`. Whether it leaves this host is decided by the addresses its name stands for.
///
/// # Errors
/// When the endpoint is not on loopback and `insecure` was not given, or when its name stands for no address.
pub fn check_plain_text(flag: &'static str, endpoint: &Endpoint, insecure: bool) -> Result<(), UsageError> {
    if insecure {
        return Ok(());
    }
    let problem = match endpoint.is_local() {
        Ok(true) => return Ok(()),
        Ok(false) => "plain TCP beyond loopback shows the guest's memory to the network; --insecure, on both sides, allows it".to_owned(),
        Err(error) => format!("cannot be resolved: {error}"),
    };
    Err(UsageError { flag, value: endpoint.to_string(), problem })
}

/// [`Backing`] as a flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackingFlag {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memfd, mapped shared.
    Memfd,
    /// Private 2 MiB huge pages.
    Hugetlb,
}

impl From<BackingFlag> for Backing {
    fn from(flag: BackingFlag) -> Self {
        match flag {
            BackingFlag::Anonymous => Self::Anonymous,
            BackingFlag::Memfd => Self::Memfd,
            BackingFlag::Hugetlb => Self::HugeTlb,
        }
    }
}

/// Security of the connections: one of two, or neither.
#[derive(Clone, Debug, clap::Args)]
pub struct SecurityArgs {
    /// TLS with certificates on both sides, from this directory: ca-cert.pem, and server-cert.pem and server-key.pem to
    /// receive, client-cert.pem and client-key.pem to send
    #[arg(long, value_name = "DIR", conflicts_with = "insecure", hide = cfg!(not(feature = "tls")))]
    tls: Option<PathBuf>,
    /// Allow plain TCP beyond loopback: the guest's memory crosses the network readable and unprotected
    #[arg(long)]
    insecure: bool,
}

/// How long a connection that broke in post-copy is waited for, if nothing else is said.
const RECOVER_FOR: &str = "60s";
/// How long a peer may be silent, if nothing else is said.
const PATIENCE: &str = "10s";

/// A time that leaves room for a few heartbeats.
fn parse_patience(text: &str) -> Result<Duration, String> {
    let patience = parse_time(text).map_err(|error| error.to_string())?;
    if patience < LEAST_PATIENCE {
        return Err(format!("expected {} or more", HumanTime(LEAST_PATIENCE)));
    }
    Ok(patience)
}

const LEAST_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
