//! The flags of `pageferry-receive`.

use std::path::PathBuf;
use std::time::Duration;

use super::{BackingFlag, Output, PATIENCE, RECOVER_FOR, SecurityArgs, UsageError, check_outputs, parse_patience};
use crate::cli::sandbox::Wanted;
use crate::cli::units::number_in;
use crate::memory::Backing;
use crate::transport::{Endpoint, ServerSecurity};
use crate::units::ByteCount;
use crate::units::text::{parse_size, parse_time};

/// Take in guests from other hosts
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "pageferry-receive", version)]
pub struct ReceiveArgs {
    /// Where to listen: host:port, tcp:host:port or unix:PATH; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen: Endpoint,
    /// Write a report for each migration as a line of JSON to this file, or to standard output with -
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Write the guest's memory, as it arrived, to this file
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// Leave guests paused once they have arrived
    #[arg(long)]
    hold: bool,
    #[command(flatten)]
    security: SecurityArgs,
    /// Memory for all guests that are coming in at the same time, together [default: what memory is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<ByteCount>,
    /// The kinds of guests to accept [default: all]
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = GUEST_KINDS)]
    allow: Option<Vec<String>>,
    /// Exit after so many migrations [default: serve for ever]
    #[arg(long, value_name = "N", value_parser = number_in(1..=u32::MAX))]
    max_sessions: Option<u32>,
    /// What guests' memory is made of
    #[arg(long, value_enum, value_name = "KIND", default_value = "anonymous")]
    backing: BackingFlag,
    /// How long to wait for the sender to come back when the connection breaks in post-copy
    #[arg(long, value_name = "TIME", default_value = RECOVER_FOR, value_parser = parse_time)]
    recover_for: Duration,
    /// How long the peer may say nothing before it counts as lost
    #[arg(long, value_name = "TIME", default_value = PATIENCE, value_parser = parse_patience)]
    patience: Duration,
    /// Whether to give up, once set up, what a receiver does not need: other files, other programs, connections of its own.
    /// auto gives up what this kernel has layers for (see `pageferry probe`) and names those that are missing; on needs all
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "auto")]
    sandbox: Wanted,
}

/// What the flags of `pageferry-receive` come to.
#[derive(Clone, Debug)]
pub struct ReceiveSettings {
    /// Where to listen.
    pub endpoint: Endpoint,
    /// How connections are protected.
    pub security: ServerSecurity,
    /// Where reports go.
    pub json: Option<Output>,
    /// Where the memory image goes.
    pub dump: Option<PathBuf>,
    /// Whether guests stay paused.
    pub hold: bool,
    /// Memory for all guests that are coming in at the same time.
    pub max_memory: Option<ByteCount>,
    /// The kinds of guests; `None` is all there are.
    pub allow: Option<Vec<String>>,
    /// Migrations to serve; `None` is for ever.
    pub max_sessions: Option<u32>,
    /// What guests' memory is made of.
    pub backing: Backing,
    /// How long a sender whose connection broke in post-copy is waited for.
    pub recover_for: Duration,
    /// How long the peer may say nothing.
    pub patience: Duration,
    /// Whether there is to be a sandbox.
    pub sandbox: Wanted,
}

impl ReceiveArgs {
    /// What the flags come to. Resolves the name to listen on.
    ///
    /// # Errors
    /// When they ask for what is not built in, or for plain text beyond loopback without saying so,
    /// or name keys that cannot be used.
    pub fn settings(self) -> Result<ReceiveSettings, UsageError> {
        let security = self.security.receiver(&self.listen)?;
        if cfg!(not(feature = "sandbox")) && self.sandbox == Wanted::On {
            return Err(UsageError::not_built_in("--sandbox", &"on", "auto does without"));
        }
        let json = self.json.map(Output::from);
        check_outputs(json.as_ref(), self.dump.as_deref())?;
        Ok(ReceiveSettings {
            security,
            endpoint: self.listen,
            json,
            dump: self.dump,
            hold: self.hold,
            max_memory: self.max_memory,
            allow: self.allow,
            max_sessions: self.max_sessions,
            backing: self.backing.into(),
            recover_for: self.recover_for,
            patience: self.patience,
            sandbox: self.sandbox,
        })
    }
}

/// The kinds of guests that this receiver can build.
const GUEST_KINDS: [&str; 2] = ["workload", "kvm"];
