//! `pageferry-receive`: takes test guests in, lets them run for a moment, and checks them.
//!
//! The guests live in this process only to be looked at: once one has run and was checked it is let go of. A VMM that
//! embeds the receiver keeps its guests.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use crossbeam::channel::bounded;

use super::args::ReceiveSettings;
use super::exit::Exit;
use super::output::{ReportSink, create};
use super::road::{OnItsWay, Road};
use super::sandbox::{Needs, Sandbox};
use super::signals;
use crate::destination::{Arrival, Ending, GuestFactory, Placed, Receiver, ReceiverControl, ReceiverLimits, ReceiverOptions, Refusal, UnderWay};
use crate::error::Error;
use crate::guest::{Guest, GuestError};
use crate::guests::{self, GuestSpec, TestGuest};
use crate::memory::{Backing, GuestMemory};
use crate::protocol::Timeouts;
use crate::stats::{GuestOwner, Outcome, Report};
use crate::transport::Endpoint;
use crate::units::{HumanTime, PageCount};
use crate::wire::{Offer, RefuseReason};

/// Runs the receiver.
///
/// # Errors
/// What kept it from listening.
pub fn run(settings: &ReceiveSettings) -> anyhow::Result<Exit> {
    let sink = Arc::new(ReportSink::open(settings.json.as_ref())?);
    if let Some(path) = &settings.dump {
        create("--dump", path)?;
    }
    let options = ReceiverOptions {
        max_memory: settings.max_memory,
        max_sessions: settings.max_sessions,
        limits: ReceiverLimits::default(),
        security: settings.security.clone(),
        timeouts: Timeouts { recover: settings.recover_for, ..Timeouts::with_patience(settings.patience) },
    };
    let factory = Factory {
        sink: Arc::clone(&sink),
        allow: settings.allow.clone(),
        backing: settings.backing,
        hold: settings.hold,
        dump: settings.dump.clone(),
        road: Arc::default(),
    };
    let receiver = Receiver::bind(&settings.endpoint, options, Arc::new(factory))?;
    // All is open by now, and there is no other thread yet.
    let sandbox = Sandbox::enter(settings.sandbox, &needs(settings))?;
    let mut leaving = Leaving { control: receiver.control(), sink, is_told: false };
    signals::on_interrupt(move || leaving.interrupt()).context("cannot watch for signals")?;
    eprintln!("listening on {}", receiver.endpoint());
    sandbox.missing().iter().for_each(|layer| eprintln!("sandbox: {layer}"));
    receiver.serve()?;
    Ok(Exit::Completed)
}

/// What is left for it to do once it listens.
fn needs(settings: &ReceiveSettings) -> Needs<'_> {
    let socket = match &settings.endpoint {
        Endpoint::Unix(path) => Some(path.as_path()),
        Endpoint::Tcp(_) => None,
    };
    let kvm = settings.allow.as_ref().is_none_or(|kinds| kinds.iter().any(|kind| kind == "kvm"));
    Needs { image: settings.dump.as_deref(), socket, kvm }
}

/// What becomes of the receiver when it is told to end.
struct Leaving {
    control: ReceiverControl,
    sink: Arc<ReportSink>,
    is_told: bool,
}

impl Leaving {
    /// The first time it ends in order; after that at once, whatever is lost.
    fn interrupt(&mut self) {
        if std::mem::replace(&mut self.is_told, true) {
            let UnderWay { incomplete, missing, remembered, .. } = self.control.under_way();
            if incomplete > 0 {
                eprintln!("LOST: {incomplete} guest(s) ran here and needed {missing} that are still at their senders; those guests are gone");
                // Their sessions have no time to report themselves.
                let mut report = Report::new();
                report.guest_owner = GuestOwner::Destination;
                report.reason = format!("lost: the receiver was ended while {missing} were still at {incomplete} sender(s)");
                let sink = Arc::clone(&self.sink);
                let (writing, written) = bounded::<()>(0);
                std::thread::spawn(move || {
                    (0..incomplete).for_each(|_| sink.write(&report));
                    drop(writing);
                });
                // Nobody may be reading them.
                let _ = written.recv_timeout(LAST_WORDS);
            } else if remembered > 0 {
                eprintln!("{remembered} sender(s) may ask how their migration ended, and will get no answer");
            }
            std::process::exit(Exit::Failed as i32);
        }
        self.control.stop("the receiver is told to end");
        let UnderWay { sessions, incomplete, missing, remembered } = self.control.under_way();
        eprintln!("told to end: no guest is taken in any more, and those that have not been handed over stay where they are");
        if incomplete > 0 {
            eprintln!("{incomplete} guest(s) run here and still need {missing} from their senders: interrupt again to lose them");
        } else if sessions + remembered > 0 {
            eprintln!("{sessions} session(s) are to end, and {remembered} sender(s) may ask how theirs ended");
        }
    }
}

/// Builds the guests that senders describe.
struct Factory {
    sink: Arc<ReportSink>,
    allow: Option<Vec<String>>,
    backing: Backing,
    hold: bool,
    dump: Option<PathBuf>,
    road: Arc<Road>,
}

impl GuestFactory for Factory {
    fn admit(&self, offer: &Offer) -> Result<Box<dyn Arrival>, Refusal> {
        let kind = &offer.guest_kind;
        if self.allow.as_ref().is_some_and(|allowed| !allowed.contains(kind)) {
            return Err(Refusal::new(RefuseReason::GuestKind, format!("guests of kind {kind:?} are not allowed here")));
        }
        let spec = GuestSpec::from_parts(kind, &offer.description).map_err(|error| Refusal::new(RefuseReason::Description, error.to_string()))?;
        if spec.memory() != offer.layout.bytes() {
            let detail = format!("the description says {}, the layout {}", spec.memory(), offer.layout.bytes());
            return Err(Refusal::new(RefuseReason::Layout, detail));
        }
        let guest = guests::build_destination(&spec, self.backing).map_err(|error| Refusal::new(RefuseReason::Other, in_full(&error)))?;
        eprintln!("a {spec} is coming in");
        let dump = match &self.dump {
            Some(path) => Some(File::create(path).map_err(|error| Refusal::new(RefuseReason::Other, format!("no room for its image: {error}")))?),
            None => None,
        };
        let guest = Incoming { guest, hold: self.hold };
        let road = Arc::clone(&self.road);
        Ok(Box::new(Landing { guest, dump, sink: Arc::clone(&self.sink), on_its_way: Some(road.begin()), road }))
    }

    fn backing(&self, _offer: &Offer) -> Backing {
        self.backing
    }

    fn refused(&self, _offer: &Offer, refusal: &Refusal) {
        eprintln!("a guest was refused: {refusal}");
        let mut report = Report::new();
        report.outcome = Outcome::Refused;
        report.reason = format!("{}: {refusal}", refusal.reason);
        self.sink.write(&report);
    }

    fn waits(&self, _offer: &Offer, left: PageCount) {
        eprintln!("STRANDED: {left} of the guest's memory are still at the sender, which has not come back. The guest is kept and waits for them.");
    }

    fn starves(&self, _offer: &Offer, quiet: Duration, left: PageCount) {
        let quiet = HumanTime(quiet);
        eprintln!("the sender is there and has brought nothing for {quiet}: {left} of the guest's memory are missing, and it waits for them");
    }

    fn turned_away(&self, peer: &str, error: &Error) {
        eprintln!("a connection from {peer} came to nothing: {}", error.in_full());
    }

    fn passed_over(&self, connections: u64) {
        eprintln!("{connections} more connections came to nothing before this one");
    }
}

/// A guest that may be held back instead of resumed.
struct Incoming {
    guest: Box<dyn TestGuest>,
    hold: bool,
}

impl Guest for Incoming {
    fn pause(&mut self) -> Result<(), GuestError> {
        self.guest.pause()
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        if self.hold { Ok(()) } else { self.guest.resume() }
    }

    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        self.guest.save_state()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        self.guest.load_state(state)
    }
}

struct Landing {
    guest: Incoming,
    dump: Option<File>,
    sink: Arc<ReportSink>,
    on_its_way: Option<OnItsWay>,
    road: Arc<Road>,
}

impl Arrival for Landing {
    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(self.guest.guest.memory())
    }

    fn guest(&mut self) -> &mut dyn Guest {
        &mut self.guest
    }

    fn placed(&mut self, placed: Placed) -> io::Result<()> {
        match &self.dump {
            Some(file) if placed == Placed::Paused => self.memory().dump(file).map_err(io::Error::other),
            Some(file) if self.guest.hold => {
                // Too late to leave the guest at the source.
                if let Err(error) = self.memory().dump(file) {
                    eprintln!("--dump: the image is not whole: {}", in_full(&error));
                }
                Ok(())
            }
            Some(_) => {
                eprintln!("--dump: the guest runs since before its memory was here, so there is no image of it; --hold keeps it paused");
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn ended(mut self: Box<Self>, ending: Ending) {
        self.on_its_way = None;
        let report = match ending {
            Ending::Completed { mut report } => {
                self.look_after(&mut report);
                eprintln!("the guest has arrived: {}", report.guest_check.as_deref().unwrap_or("not checked"));
                report
            }
            Ending::Dropped { error, report } => {
                eprintln!("the guest has not arrived: {}", error.in_full());
                report
            }
        };
        self.sink.write(&report);
    }
}

impl Landing {
    /// Lets the guest run until it has surely written again, then checks it.
    fn look_after(&mut self, report: &mut Report) {
        let guest = &mut self.guest.guest;
        if !self.guest.hold {
            let writes = guest.writes();
            std::thread::sleep(PROOF);
            // Looks are counted, not time: this process may have been stopped meanwhile, and the guest with it.
            let mut looks = 0;
            while guest.writes() == writes && looks < LOOKS {
                std::thread::sleep(LOOK_EVERY);
                looks += 1;
            }
            if let Err(error) = guest.pause() {
                report.guest_check = Some(in_full(&error));
                return;
            }
            if guest.writes() == writes {
                report.guest_check = Some(format!("no write in {:?} after the guest was resumed", LOOK_EVERY * LOOKS));
                return;
            }
            report.guest_gap = Some(guest.longest_gap());
        }
        let checked = self.road.check(|| guest.check());
        report.guest_check = Some(checked.map_or_else(|error| error.to_string(), |()| "ok".to_owned()));
    }
}

/// An error with its causes.
fn in_full(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source()).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// How long reports of what is lost may take to write.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a guest runs here before it is checked.
const PROOF: Duration = Duration::from_millis(300);
/// How often to look for its first write here, ...
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// ... and how many times.
const LOOKS: u32 = 500;
