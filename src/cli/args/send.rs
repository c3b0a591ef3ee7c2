//! The flags of `pageferry-send`. Those whose part is not built in are hidden from the help.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::{BackingFlag, Input, LimitArgs, Output, PATIENCE, RECOVER_FOR, SecurityArgs, UsageError, check_outputs, parse_patience};
use crate::cli::units::number_in;
use crate::dirty::TrackerKind;
use crate::memory::Backing;
use crate::page::{Codecs, Compression, DeltaCache};
use crate::policy::Limits;
use crate::transport::{ClientSecurity, Endpoint};
use crate::units::text::{Exact, parse_rate, parse_size, parse_time};
use crate::units::{ByteCount, BytesPerSec};
use crate::wire::MAX_CHANNELS;

/// Move a running guest to another host
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "pageferry-send", version, override_usage = USAGE, after_help = EXIT_CODES)]
pub struct SendArgs {
    /// Where pageferry-receive listens: host:port, tcp:host:port or unix:PATH
    #[arg(long, value_name = "ADDR")]
    to: Endpoint,
    /// The guest to run and move: KIND:key=value,... such as kvm:memory=1GiB,rate=10000
    #[arg(long, value_name = "SPEC", required_unless_present = "batch", conflicts_with = "batch")]
    guest: Option<String>,
    /// What finds the pages that the guest writes
    #[arg(long, value_enum, value_name = "TRACKER", default_value = "auto")]
    tracker: TrackerFlag,
    /// Connections that carry memory, each with a thread at both ends; in a batch one at most for each 64 MiB of a guest
    #[arg(long, value_name = "N", default_value = "2", value_parser = number_in(1..=MAX_CHANNELS))]
    channels: u16,
    /// How pages are compressed
    #[arg(long, value_enum, value_name = "METHOD", default_value = "auto")]
    compress: CompressFlag,
    /// Whether pages that were sent before go as differences
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    delta: DeltaFlag,
    /// Bytes a second over all channels together [default: all there is]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: Option<BytesPerSec>,
    /// What the guest's memory is made of
    #[arg(long, value_enum, value_name = "KIND", default_value = "anonymous")]
    backing: BackingFlag,
    /// Memory for making differences from [default: a tenth of the guest, at most 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    delta_cache: Option<ByteCount>,
    /// How long to keep trying to reach the receiver when the connection breaks in post-copy
    #[arg(long, value_name = "TIME", default_value = RECOVER_FOR, value_parser = parse_time)]
    recover_for: Duration,
    /// How long the peer may say nothing before it counts as lost
    #[arg(long, value_name = "TIME", default_value = PATIENCE, value_parser = parse_patience)]
    patience: Duration,
    /// Run and move many guests: a file, or - for standard input, with a line for each such as
    /// workload:memory=32MiB name=web priority=1, and perhaps one such as concurrency 8
    #[arg(long, value_name = "FILE|-")]
    batch: Option<PathBuf>,
    /// How long the guest runs before it is moved
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time)]
    warm_up: Duration,
    /// Write the report as a line of JSON to this file, or to standard output with -
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Write the guest's memory, as it was at the last pause, to this file
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    #[command(flatten)]
    security: SecurityArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// One guest or many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guests {
    /// In its own words.
    One(String),
    /// Those that a file describes.
    Batch(Input),
}

/// What the flags of `pageferry-send` come to.
#[derive(Clone, Debug)]
pub struct SendSettings {
    /// Where the receiver is.
    pub endpoint: Endpoint,
    /// How connections are protected.
    pub security: ClientSecurity,
    /// What to move.
    pub guests: Guests,
    /// What finds dirty pages; `None` lets the host decide.
    pub tracker: Option<TrackerKind>,
    /// Bulk channels.
    pub channels: u16,
    /// How to compress.
    pub compression: Compression,
    /// Memory for making differences from.
    pub delta_cache: DeltaCache,
    /// When to stop.
    pub limits: Limits,
    /// Over all channels; `None` is unpaced.
    pub bandwidth: Option<BytesPerSec>,
    /// What the guest's memory is made of.
    pub backing: Backing,
    /// How long a connection that broke in post-copy is tried to be made again.
    pub recover_for: Duration,
    /// How long the peer may say nothing.
    pub patience: Duration,
    /// How long the guest runs first.
    pub warm_up: Duration,
    /// Where the report goes.
    pub json: Option<Output>,
    /// Where the memory image goes.
    pub dump: Option<PathBuf>,
}

impl SendArgs {
    /// What the flags come to. Resolves the name of the receiver.
    ///
    /// # Errors
    /// When they ask for what is not built in, or for plain text beyond loopback without saying so,
    /// or name keys that cannot be used.
    pub fn settings(self) -> Result<SendSettings, UsageError> {
        let limits = self.limits.limits()?;
        self.check()?;
        let (compression, delta_cache) = (self.compress.into(), self.delta_cache()?);
        let guests = match (self.guest, self.batch) {
            (Some(guest), None) => Guests::One(guest),
            (None, Some(file)) => Guests::Batch(file.into()),
            _ => unreachable!("clap requires one of --guest and --batch, and no more"),
        };
        let security = self.security.sender(&self.to)?;
        let json = self.json.map(Output::from);
        check_outputs(json.as_ref(), self.dump.as_deref())?;
        Ok(SendSettings {
            endpoint: self.to,
            security,
            guests,
            tracker: self.tracker.kind(),
            channels: self.channels,
            compression,
            delta_cache,
            limits,
            bandwidth: self.bandwidth,
            backing: self.backing.into(),
            recover_for: self.recover_for,
            patience: self.patience,
            warm_up: self.warm_up,
            json,
            dump: self.dump,
        })
    }

    fn check(&self) -> Result<(), UsageError> {
        if let (Some(file), Some(_)) = (&self.dump, &self.batch) {
            let why = "that is one image, and --batch moves many guests; leave one of them out";
            return Err(UsageError::contradiction("--dump", &file.display(), why));
        }
        if self.compress == CompressFlag::Zstd && !Codecs::built_in().contains(Codecs::ZSTD) {
            return Err(UsageError::not_built_in("--compress", &"zstd", "use auto, none or lz4"));
        }
        Ok(())
    }

    fn delta_cache(&self) -> Result<DeltaCache, UsageError> {
        match (self.delta, self.delta_cache) {
            (DeltaFlag::Auto, None) => Ok(DeltaCache::Auto),
            (DeltaFlag::Auto, Some(size)) => Ok(DeltaCache::Bytes(size)),
            (DeltaFlag::Off, None) => Ok(DeltaCache::Off),
            (DeltaFlag::Off, Some(size)) => Err(UsageError::contradiction("--delta-cache", &Exact(size), "--delta off makes no differences")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TrackerFlag {
    /// The best that this host has for this guest
    Auto,
    /// userfaultfd write protection, harvested with PAGEMAP_SCAN
    WriteProtect,
    /// Soft-dirty bits; pauses the guest for every harvest
    SoftDirty,
    /// KVM's dirty log
    KvmLog,
    /// What the guest's own devices and threads mark
    Marked,
}

impl TrackerFlag {
    fn kind(self) -> Option<TrackerKind> {
        match self {
            Self::Auto => None,
            Self::WriteProtect => Some(TrackerKind::WriteProtect),
            Self::SoftDirty => Some(TrackerKind::SoftDirty),
            Self::KvmLog => Some(TrackerKind::KvmLog),
            Self::Marked => Some(TrackerKind::Marked),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompressFlag {
    /// Whatever the link and the pages make pay off, as it goes
    Auto,
    /// Not at all; zero and uniform pages are still recognised
    None,
    /// LZ4 where it helps
    Lz4,
    /// Zstandard where it helps
    Zstd,
}

impl From<CompressFlag> for Compression {
    fn from(flag: CompressFlag) -> Self {
        match flag {
            CompressFlag::Auto => Self::Auto,
            CompressFlag::None => Self::None,
            CompressFlag::Lz4 => Self::Lz4,
            CompressFlag::Zstd => Self::Zstd,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DeltaFlag {
    /// Where it helps
    Auto,
    /// Pages always go whole
    Off,
}

const USAGE: &str = "pageferry-send --to <ADDR> <--guest <SPEC>|--batch <FILE>> [OPTIONS]";
const EXIT_CODES: &str = "Exit codes: 0 completed; 1 failed or aborted, the guest ran on here, or (in post-copy) at \
    the destination without all of its memory; 2 usage; 3 refused by the receiver; 4 in doubt. \
    Of a batch: 0 if all completed, otherwise the highest of its guests.";
