//! Many migrations one after the other, each with its own settings, from this process to receivers that serve them all.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use pageferry::cli::args::{Guests, SendArgs, SendSettings};
use pageferry::dirty::{self, Choice};
use pageferry::guests::{self, GuestSpec};
use pageferry::memory::Backing;
use pageferry::source::{Migration, Outgoing};
use pageferry::stats::{GuestOwner, Outcome, Report};

use crate::holdings::Holdings;
use crate::processes::Listening;
use crate::processes::random::Random;
use crate::settings::{Able, Settings};

/// Moves so many guests; what was seen.
pub(crate) fn soak(migrations: u64, seed: u64) -> Result<String> {
    let able = Able::probe();
    let mut receivers = Receivers::default();
    let mut sums = Sums::default();
    let mut first: Option<Vec<Holdings>> = None;
    let since = Instant::now();
    for number in 0..migrations {
        // Each on its own, so that one can be repeated without those before it.
        let settings = Settings::draw(&mut Random(seed.wrapping_add(number << 32)), &able);
        let context = || format!("migration {number} of seed {seed}: {} (receiver: memfd {}, TLS {})", settings.flags, settings.memfd, settings.tls);
        move_one(&settings, &mut receivers, &mut sums).with_context(context)?;
        match &first {
            None if number + 1 < VARIETY.min(migrations) => {}
            None => {
                thread::sleep(SETTLED);
                first = Some(receivers.pids().map(Holdings::of).collect::<Result<_>>()?);
            }
            Some(first) if (number + 1) % EVERY == 0 || number + 1 == migrations => {
                for (pid, first) in receivers.pids().zip(first) {
                    let whose = if pid == std::process::id() { "the sender" } else { "a receiver" };
                    first.returns(pid, SETTLED).with_context(|| format!("{whose} after migration {number} of seed {seed}"))?;
                }
            }
            Some(_) => {}
        }
    }
    for receiver in receivers.by_kind.values_mut() {
        ensure!(receiver.process.is_running()?, "a receiver has ended");
    }
    let Sums { completed, aborted, post_copy, kvm, tls, wire_mib } = sums;
    let before: Vec<_> = first.iter().flatten().map(Holdings::summary).collect();
    let after: Vec<_> = receivers.pids().map(|pid| Ok(Holdings::of(pid)?.summary())).collect::<Result<_>>()?;
    Ok(format!(
        "{completed} moved and {aborted} called off by a limit in {} s, {post_copy} in post-copy, {kvm} of KVM, {tls} over TLS, {wire_mib:.0} MiB in all; \
         the sender and the receivers at first: {}; at last: {}",
        since.elapsed().as_secs(),
        before.join(", "),
        after.join(", ")
    ))
}

/// Receivers by what they make memory of and whether they use TLS; all are there before the first look at what they hold.
#[derive(Default)]
struct Receivers {
    by_kind: BTreeMap<(bool, bool), Listening>,
    #[cfg(feature = "tls")]
    certificates: Option<tempfile::TempDir>,
}

impl Receivers {
    /// The one for these settings, and the flags that lead there.
    fn of(&mut self, settings: &Settings) -> Result<(&mut Listening, String)> {
        let tls = self.tls_flag(settings.tls);
        let receiver = match self.by_kind.entry((settings.memfd, settings.tls)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let backing = if settings.memfd { "memfd" } else { "anonymous" };
                entry.insert(Listening::start("127.0.0.1:0", &format!("--backing {backing} {tls}"))?)
            }
        };
        let flags = format!("{} --to {} {tls}", settings.flags, receiver.address);
        Ok((receiver, flags))
    }

    #[cfg(feature = "tls")]
    fn tls_flag(&mut self, tls: bool) -> String {
        let directory = self.certificates.get_or_insert_with(crate::certificates::good);
        if tls { format!("--tls {}", directory.path().display()) } else { String::new() }
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_self, reason = "as where it is built in")]
    fn tls_flag(&mut self, _tls: bool) -> String {
        String::new()
    }

    /// This process, and them.
    fn pids(&self) -> impl Iterator<Item = u32> {
        std::iter::once(std::process::id()).chain(self.by_kind.values().map(|receiver| receiver.process.pid()))
    }
}

/// What happened until now.
#[derive(Default)]
struct Sums {
    completed: u64,
    aborted: u64,
    post_copy: u64,
    kvm: u64,
    tls: u64,
    wire_mib: f64,
}

fn move_one(settings: &Settings, receivers: &mut Receivers, sums: &mut Sums) -> Result<()> {
    let (receiver, flags) = receivers.of(settings)?;
    let (tell, told) = channel();
    // Not scoped: one that hangs must not keep this process from saying so. Nobody listens then any more.
    thread::Builder::new().name("migration".into()).spawn(move || drop(tell.send(migrate(&flags))))?;
    let sent = match told.recv_timeout(LIMIT) {
        Ok(sent) => sent?,
        Err(RecvTimeoutError::Timeout) => bail!("hangs: it takes more than {LIMIT:?}"),
        Err(RecvTimeoutError::Disconnected) => bail!("it panicked"),
    };
    let received = receiver.next_report(LIMIT)?;
    sums.kvm += u64::from(settings.flags.contains("--guest kvm:"));
    sums.tls += u64::from(settings.tls);
    sums.wire_mib += sent.wire_bytes.0 as f64 / 1024.0 / 1024.0;
    if sent.outcome == Outcome::Aborted {
        ensure!(received.guest_owner == GuestOwner::Source, "called off, but not at the other end: {}", received.to_json());
        sums.aborted += 1;
        return Ok(());
    }
    let has_moved = |report: &Report| report.outcome == Outcome::Completed && report.guest_owner == GuestOwner::Destination;
    ensure!(has_moved(&sent) && has_moved(&received), "{}\n{}", sent.to_json(), received.to_json());
    ensure!(received.guest_check.as_deref() == Some("ok"), "the guest that arrived: {}", received.to_json());
    match (&sent.post_copy, &received.post_copy) {
        (None, None) => {
            let crossed = |report: &Report| (report.pages_transferred, report.wire_bytes);
            ensure!(crossed(&sent) == crossed(&received), "the ends disagree: {}\n{}", sent.to_json(), received.to_json());
        }
        (Some(ours), Some(theirs)) => {
            let is_whole = ours.pages == theirs.pages && ours.urgent_pages + ours.bulk_pages == ours.pages && ours.recoveries == 0;
            ensure!(is_whole, "pages are not counted once: {}\n{}", sent.to_json(), received.to_json());
            sums.post_copy += 1;
        }
        _ => bail!("one end alone was in post-copy: {}\n{}", sent.to_json(), received.to_json()),
    }
    sums.completed += 1;
    Ok(())
}

/// One guest, from within this process. If it stays because of a limit, it is checked here.
fn migrate(flags: &str) -> Result<Report> {
    let settings = SendArgs::try_parse_from(["pageferry-send"].into_iter().chain(flags.split_whitespace()))?.settings()?;
    let spec = only(&settings)?;
    let mut guest = guests::build_source(&spec, settings.backing)?;
    let memory = Arc::clone(guest.memory());
    let mut tracker = dirty::open(settings.tracker.map_or(Choice::Auto, Choice::Only), &guest.tracked())?;
    guest.resume()?;
    let migration = Migration::to(settings.endpoint)
        .security(settings.security)
        .channels(settings.channels)
        .compression(settings.compression)
        .delta_cache(settings.delta_cache)
        .limits(settings.limits)
        .bandwidth(settings.bandwidth);
    let outgoing =
        Outgoing { guest: &mut *guest, memory: &memory, tracker: &mut *tracker, kind: spec.kind().name().to_owned(), description: spec.keys() };
    match migration.run(outgoing) {
        Ok(completed) => Ok(completed.report),
        Err(failure) if failure.report.outcome == Outcome::Aborted && failure.owner == GuestOwner::Source => {
            guest.pause()?;
            guest.check().context("the guest that stayed")?;
            Ok(failure.report)
        }
        Err(failure) => bail!("{} has the guest: {}", failure.owner, failure.error.in_full()),
    }
}

/// The guest that the flags name.
fn only(settings: &SendSettings) -> Result<GuestSpec> {
    let Guests::One(spec) = &settings.guests else { bail!("the flags name no guest") };
    Ok(spec.parse()?)
}

/// Whether this tracker works for such a guest here.
pub(crate) fn usable(guest: &str, tracker: &str) -> Result<()> {
    let flags = format!("--to 127.0.0.1:1 --guest {guest}:memory=20MiB,working-set=4KiB --tracker {tracker}");
    let settings = SendArgs::try_parse_from(["pageferry-send"].into_iter().chain(flags.split_whitespace()))?.settings()?;
    let guest = guests::build_source(&only(&settings)?, Backing::Anonymous)?;
    dirty::open(settings.tracker.map_or(Choice::Auto, Choice::Only), &guest.tracked())?;
    Ok(())
}

/// Migrations until every setting was there, and with it everything that is allocated once.
const VARIETY: u64 = 60;
/// Looks at what is held are this far apart.
const EVERY: u64 = 20;
/// Threads and descriptors are given back at leisure.
const SETTLED: Duration = Duration::from_secs(5);
/// For one migration.
const LIMIT: Duration = Duration::from_secs(60);
