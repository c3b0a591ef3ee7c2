//! `pageferry-send`: runs a test guest here and moves it away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use super::args::{Output, SendSettings};
use super::exit::Exit;
use super::output::{ReportSink, create};
use super::progress::Progress;
use super::signals;
use crate::dirty::{self, Choice, DirtyError};
use crate::guests::{self, GuestSpec, TestGuest};
use crate::memory::GuestMemory;
use crate::protocol::Timeouts;
use crate::source::{Completed, Event, Failure, Migration, Outgoing, Phase, Steering};
use crate::stats::GuestOwner;
use crate::units::HumanTime;

/// Runs the sender.
///
/// # Errors
/// What kept it from beginning; how a migration went is the exit code.
pub fn run(settings: &SendSettings) -> anyhow::Result<Exit> {
    let spec: GuestSpec = match settings.guest.parse() {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("--guest {}: {error}", settings.guest);
            return Ok(Exit::Usage);
        }
    };
    let sink = ReportSink::open(settings.json.as_ref())?;
    let dump = settings.dump.as_deref().map(|path| create("--dump", path)).transpose()?;
    let mut migration = Migration::to(settings.endpoint.clone())
        .security(settings.security.clone())
        .channels(settings.channels)
        .compression(settings.compression)
        .delta_cache(settings.delta_cache)
        .limits(settings.limits)
        .bandwidth(settings.bandwidth);
    if let Some(file) = dump {
        migration = migration.at_pause(move |memory| memory.dump(&file).map_err(std::io::Error::other));
    }
    migration = migration.timeouts(Timeouts { recover: settings.recover_for, ..Timeouts::with_patience(settings.patience) });
    let steering = migration.steering();
    let gone = Arc::new(Gone::default());
    let told = Arc::clone(&gone);
    signals::on_interrupt(move || told.interrupt(&steering)).context("cannot watch for signals")?;

    let mut guest = guests::build_source(&spec, settings.backing).context("the guest cannot be built")?;
    let memory = Arc::clone(guest.memory());
    let choice = settings.tracker.map_or(Choice::Auto, Choice::Only);
    let mut tracker = match dirty::open(choice, &guest.tracked()) {
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
        gone.note(event);
        progress.show(event);
    };
    let mut result = migration.observe(&mut show).run(outgoing);
    // The guest needs what is here for as long as it takes.
    while let Err(failure) = &mut result
        && let Some(stranded) = failure.stranded.take()
    {
        eprintln!("{}", failure.error.in_full());
        eprintln!("STRANDED: the guest needs memory that is still here. It is kept, and the receiver tried again, until this process is killed.");
        sink.write(&failure.report);
        result = stranded.recover(&memory, failure.report.clone(), &mut show);
    }
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

/// Whether the guest has gone ahead of its memory: from then on this process must not end.
#[derive(Default)]
struct Gone {
    has_gone: AtomicBool,
    insisted: AtomicBool,
}

impl Gone {
    fn note(&self, event: &Event) {
        if let Event::Phase(Phase::PostCopy) = event {
            // Relaxed: a signal that comes just now is answered as if it had come before.
            self.has_gone.store(true, Ordering::Relaxed);
        }
    }

    fn interrupt(&self, steering: &Steering) {
        if !self.has_gone.load(Ordering::Relaxed) {
            steering.cancel();
        } else if self.insisted.swap(true, Ordering::Relaxed) {
            eprintln!("the memory that the guest lacks at the destination is given up");
            std::process::exit(Exit::Failed as i32);
        } else {
            eprintln!("the guest runs at the destination and needs memory that is still here; interrupt again to give it up");
        }
    }
}

/// Says what went wrong and where the guest is; if it is here, proves that it runs.
fn failed(failure: Failure, guest: &mut dyn TestGuest, memory: &GuestMemory, sink: &ReportSink) -> Exit {
    let Failure { error, owner, mut report, .. } = failure;
    eprintln!("not migrated: {}", error.in_full());
    match owner {
        GuestOwner::InDoubt => eprintln!(
            "IN DOUBT: the guest may be running at the destination. It stays paused here. Make sure that the destination is \
             dead before you resume it."
        ),
        _ => {
            let check = prove(guest);
            eprintln!("the guest runs on here ({check}; {} of memory)", memory.layout().bytes());
            report.guest_check = Some(check);
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
