//! `pageferry-send`: runs a test guest here and moves it away.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::args::{Guests, Output, SendSettings};
use super::batch;
use super::exit::Exit;
use super::interrupts::{Interrupts, Stay};
use super::output::{ReportSink, create};
use super::progress::Progress;
use crate::dirty::{self, Choice, DirtyError, DirtyTracker};
use crate::guests::{self, GuestSpec, TestGuest};
use crate::memory::GuestMemory;
use crate::protocol::Timeouts;
use crate::source::{Completed, Event, Failure, Migration, Outgoing};
use crate::stats::{GuestOwner, Report};
use crate::units::HumanTime;

/// Runs the sender.
///
/// # Errors
/// What kept it from beginning; how a migration went is the exit code.
pub fn run(settings: &SendSettings) -> anyhow::Result<Exit> {
    match &settings.guests {
        Guests::Batch(input) => batch::run(settings, input),
        Guests::One(spec) => match spec.parse() {
            Ok(spec) => send_one(settings, &spec),
            Err(error) => {
                eprintln!("--guest {spec}: {error}");
                Ok(Exit::Usage)
            }
        },
    }
}

fn send_one(settings: &SendSettings, spec: &GuestSpec) -> anyhow::Result<Exit> {
    let sink = ReportSink::open(settings.json.as_ref())?;
    let dump = settings.dump.as_deref().map(|path| create("--dump", path)).transpose()?;
    let mut migration = migration(settings).bandwidth(settings.bandwidth);
    if let Some(file) = dump {
        migration = migration.at_pause(move |memory| memory.dump(&file).map_err(std::io::Error::other));
    }
    let interrupts = Interrupts::watch([migration.steering()])?;

    let mut guest = guests::build_source(spec, settings.backing).context("the guest cannot be built")?;
    let memory = Arc::clone(guest.memory());
    let mut tracker = match open_tracker(settings, &*guest) {
        Ok(tracker) => tracker,
        Err(error @ DirtyError::Unusable { .. }) => {
            eprintln!("--tracker: {error}");
            return Ok(Exit::Usage);
        }
        Err(error) => return Err(error.into()),
    };
    guest.resume()?;
    std::thread::sleep(settings.warm_up);
    let mut progress = Progress::new();
    let outgoing =
        Outgoing { guest: &mut *guest, memory: &memory, tracker: &mut *tracker, kind: spec.kind().name().to_owned(), description: spec.keys() };
    let mut show = |event: &Event| {
        interrupts.note(0, event);
        progress.show(event);
    };
    let result = migration.observe(&mut show).run(outgoing);
    let stranded = |failure: &mut Failure| {
        let stay = interrupts.keep_or_let_go(0);
        if stay == Stay::Keep {
            eprintln!("{}", failure.error.in_full());
            eprintln!(
                "STRANDED: the guest needs memory that is still here. It is kept, and the receiver tried again, until this is interrupted twice."
            );
            sink.write(&failure.report);
        }
        stay
    };
    let result = settle(result, &mut *guest, stranded, &mut show);
    progress.finish();
    Ok(match result {
        Ok(Completed { report }) => {
            // Whoever reads the report from stdout shows what it likes of it.
            if settings.json != Some(Output::Stdout) {
                eprintln!("{}", report.metrics());
            }
            sink.write(&report);
            Exit::Completed
        }
        Err(failure) => failed(*failure, &mut *guest, &memory, &sink),
    })
}

/// A migration as the flags have it, but for its bandwidth.
pub(super) fn migration<'h>(settings: &SendSettings) -> Migration<'h> {
    Migration::to(settings.endpoint.clone())
        .security(settings.security.clone())
        .channels(settings.channels)
        .compression(settings.compression)
        .delta_cache(settings.delta_cache)
        .limits(settings.limits)
        .timeouts(Timeouts { recover: settings.recover_for, ..Timeouts::with_patience(settings.patience) })
}

/// The tracker that the flags ask for.
pub(super) fn open_tracker(settings: &SendSettings, guest: &dyn TestGuest) -> Result<Box<dyn DirtyTracker>, DirtyError> {
    dirty::open(settings.tracker.map_or(Choice::Auto, Choice::Only), &guest.tracked())
}

/// Keeps the memory of a guest that went ahead of it for as long as the destination may come back: until all of it has
/// arrived, or the guest is found to be here and runs again, or `stranded`, which hears of every vain attempt, lets go.
pub(super) fn settle(
    mut result: Result<Completed, Box<Failure>>,
    guest: &mut dyn TestGuest,
    mut stranded: impl FnMut(&mut Failure) -> Stay,
    note: &mut (dyn FnMut(&Event) + Send),
) -> Result<Completed, Box<Failure>> {
    let memory = Arc::clone(guest.memory());
    while let Err(failure) = &mut result
        && let Some(way_out) = failure.stranded.take()
    {
        if stranded(failure) == Stay::LetGo {
            failure.report.reason = format!("interrupted, and the memory that the guest lacks given up: {}", failure.report.reason);
            break;
        }
        result = way_out.recover(&memory, failure.report.clone(), note);
        if let Err(failure) = &result
            && failure.owner == GuestOwner::Source
            && let Err(error) = guest.resume()
        {
            tracing::error!(%error, "the guest could not be resumed at the source");
        }
    }
    result
}

/// The report of a migration that failed; if the guest is here, with a proof that it runs.
pub(super) fn migration_failed(failure: Failure, guest: &mut dyn TestGuest) -> Report {
    let Failure { owner, mut report, .. } = failure;
    if owner == GuestOwner::Source {
        report.guest_check = Some(prove(guest));
        report.guest_gap = Some(guest.longest_gap());
    }
    report
}

/// Says what went wrong and where the guest is; if it is here, proves that it runs.
fn failed(failure: Failure, guest: &mut dyn TestGuest, memory: &GuestMemory, sink: &ReportSink) -> Exit {
    eprintln!("not migrated: {}", failure.error.in_full());
    let report = migration_failed(failure, guest);
    match report.guest_owner {
        GuestOwner::InDoubt => eprintln!(
            "IN DOUBT: the guest may be running at the destination. It does not run here. Make sure that the destination is dead \
             before you start it again."
        ),
        GuestOwner::Destination => eprintln!("the guest is the destination's, without all of its memory"),
        GuestOwner::Source => {
            let check = report.guest_check.as_deref().unwrap_or("not checked");
            eprintln!("the guest runs on here ({check}; {} of memory)", memory.layout().bytes());
        }
    }
    sink.write(&report);
    report.outcome.into()
}

/// Lets the guest run for a while and checks its memory: `ok`, or what is wrong.
fn prove(guest: &mut dyn TestGuest) -> String {
    let before = guest.writes();
    std::thread::sleep(PROOF);
    if let Err(error) = guest.pause() {
        return format!("it does not answer: {error}");
    }
    let writes = guest.writes() - before;
    let checked = guest.check();
    if let Err(error) = guest.resume() {
        return format!("it could not be resumed after the check: {error}");
    }
    match checked {
        Ok(()) if writes > 0 => "ok".to_owned(),
        Ok(()) => format!("no write in {}", HumanTime(PROOF)),
        Err(error) => error.to_string(),
    }
}

/// How long a guest runs to prove that it does.
const PROOF: Duration = Duration::from_millis(200);
