//! Guests in post-copy whose rest is given up: how that ends, whose they are, and that nothing is lost by it.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pageferry::Error;
use pageferry::destination::{Arrival, Ending, GuestFactory, MissingMemory, Placed, ReceiverOptions, Refusal};
use pageferry::guest::{Guest, GuestError};
use pageferry::memory::GuestMemory;
use pageferry::policy::{Limits, PostCopy};
use pageferry::source::{Event, Failure, Migration, Phase, Stranded};
use pageferry::stats::{GuestOwner, Outcome, Report};
use pageferry::transport::{Endpoint, Listener, Stream, StreamControl};
use pageferry::units::BytesPerSec;
use pageferry::wire::Offer;

use crate::guest::{Factory, Seen, Stamper, image};
use crate::moves::{migrate, receiver, running_guest};

/// The way to a receiver, which can be cut and mended.
#[derive(Clone, Default)]
struct Way(Arc<Mutex<Links>>);

#[derive(Default)]
struct Links {
    open: Vec<StreamControl>,
    is_cut: bool,
}

impl Way {
    /// Leads to `target` from the endpoint that it returns.
    fn lead(&self, target: Endpoint) -> Endpoint {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let (endpoint, way) = (listener.endpoint().clone(), self.clone());
        thread::spawn(move || {
            loop {
                let Some(near) = listener.accept(PATIENCE).unwrap() else { continue };
                let mut links = way.0.lock().unwrap();
                if links.is_cut {
                    near.control().shut_down();
                    continue;
                }
                let far = Stream::connect(&target, PATIENCE).unwrap();
                links.open.extend([near.control(), far.control()]);
                let (back_near, back_far) = (near.share(), far.share());
                thread::spawn(move || carry(near, far));
                thread::spawn(move || carry(back_far, back_near));
            }
        });
        endpoint
    }

    fn cut(&self) {
        let mut links = self.0.lock().unwrap();
        links.is_cut = true;
        links.open.drain(..).for_each(|link| link.shut_down());
    }

    fn mend(&self) {
        self.0.lock().unwrap().is_cut = false;
    }
}

fn carry(mut from: Stream, mut to: Stream) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut piece)
        && read > 0
        && to.write_all(&piece[..read]).is_ok()
    {}
    from.control().shut_down();
    to.control().shut_down();
}

/// Takes stampers in, and cuts the way when one is told to run.
struct CutsAtRun {
    inner: Factory,
    way: Way,
}

struct Cutting {
    inner: Box<dyn Arrival>,
    way: Way,
}

impl GuestFactory for CutsAtRun {
    fn admit(&self, offer: &Offer) -> Result<Box<dyn Arrival>, Refusal> {
        Ok(Box::new(Cutting { inner: self.inner.admit(offer)?, way: self.way.clone() }))
    }
}

impl Arrival for Cutting {
    fn memory(&self) -> Arc<GuestMemory> {
        self.inner.memory()
    }

    fn guest(&mut self) -> &mut dyn Guest {
        self
    }

    fn follows(&mut self, missing: MissingMemory) {
        self.inner.follows(missing);
    }

    fn placed(&mut self, placed: Placed) -> io::Result<()> {
        self.inner.placed(placed)
    }

    fn ended(self: Box<Self>, ending: Ending) {
        self.inner.ended(ending);
    }
}

impl Guest for Cutting {
    fn pause(&mut self) -> Result<(), GuestError> {
        self.inner.guest().pause()
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        // Commit has come, and nobody will hear that the guest runs.
        self.way.cut();
        self.inner.guest().resume()
    }

    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        self.inner.guest().save_state()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        self.inner.guest().load_state(state)
    }
}

/// Takes stampers in that touch one page: the others come as fast as they are pushed.
fn factory() -> Factory {
    Factory { working_set: Some(1), ..Factory::default() }
}

/// Gives the guest away at once, and takes seconds for its pages.
fn ahead_of_memory<'h>(endpoint: Endpoint) -> Migration<'h> {
    Migration::to(endpoint).limits(Limits { post_copy: PostCopy::After(0), ..Limits::default() }).bandwidth(Some(BytesPerSec(1e6)))
}

/// Whether guests can run here before their memory is there; says so if not.
fn is_usable() -> bool {
    let (endpoint, served, _) = receiver(factory(), &ReceiverOptions::default());
    let result = migrate(ahead_of_memory(endpoint).bandwidth(None), &mut running_guest());
    served.join().unwrap().unwrap();
    match result {
        Ok(completed) => {
            assert!(completed.report.post_copy.is_some(), "the guest went ahead");
            true
        }
        Err(failure) if matches!(failure.error, Error::NoPostCopy) => {
            println!("skipped: {}", failure.error.in_full());
            false
        }
        Err(failure) => panic!("{}", failure.error.in_full()),
    }
}

/// The way out of a failure that is as it must be when the rest was given up.
fn expect_let_go(failure: Failure, owner: GuestOwner, since: Instant, guest: &Stamper) -> (Stranded, Report) {
    assert!(since.elapsed() < Duration::from_secs(20), "at once, not when the time to recover is over: {:?}", since.elapsed());
    let Failure { error, owner: found, report, in_doubt, stranded } = failure;
    let outcome = if owner == GuestOwner::InDoubt { Outcome::InDoubt } else { Outcome::Failed };
    assert_eq!((found, report.guest_owner, report.outcome), (owner, owner, outcome), "{}", error.in_full());
    assert!(matches!((&error, owner), (Error::Stranded(_), GuestOwner::Destination) | (Error::InDoubt(_), GuestOwner::InDoubt)), "{error:?}");
    assert!(error.in_full().ends_with("called off: the rest of memory is given up"), "{}", error.in_full());
    assert_eq!(report.reason, error.in_full());
    assert!(in_doubt.is_none() && !guest.is_running(), "it may run at the destination, so it does not here");
    (stranded.expect("its memory is kept as long as this is"), report)
}

/// One that was stranded gets all of its guest across.
fn expect_recovery(stranded: Stranded, report: Report, guest: &Stamper) {
    let report = stranded.recover(&guest.memory, report, &mut |_| ()).unwrap().report;
    assert_eq!((report.outcome, report.guest_owner), (Outcome::Completed, GuestOwner::Destination));
}

/// All pages came in the end.
fn expect_whole(seen: &Mutex<Seen>, guest: &Stamper) {
    let seen = seen.lock().unwrap();
    assert!(seen.ran && matches!(seen.ending, Some(Ending::Completed { .. })), "{:?}", seen.ending);
    let (mut there, mut here) = (seen.image.clone().expect("placed"), image(&guest.memory));
    // The guest stamps its pages there.
    there.iter_mut().chain(&mut here).for_each(|page| page[5 * 8..6 * 8].fill(0));
    assert!(there == here, "memory is identical but for what the guest wrote there");
}

#[test]
fn a_guest_that_is_let_go_in_recovery_is_the_destinations_and_can_still_be_recovered() {
    if !is_usable() {
        return;
    }
    let way = Way::default();
    let (endpoint, served, seen) = receiver(factory(), &ReceiverOptions::default());
    let mut guest = running_guest();
    let migration = ahead_of_memory(way.lead(endpoint));
    let (steering, cutting, since) = (migration.steering(), way.clone(), Instant::now());
    let letting_go = steering.clone();
    let migration = migration.observe(move |event| match event {
        Event::Phase(Phase::PostCopy) => cutting.cut(),
        Event::Recovering { .. } => letting_go.let_go(),
        _ => {}
    });
    let failure = migrate(migration, &mut guest).unwrap_err();
    let (stranded, report) = expect_let_go(*failure, GuestOwner::Destination, since, &guest);

    let since = Instant::now();
    let mut let_go_again = |event: &Event| {
        if matches!(event, Event::Recovering { .. }) {
            steering.let_go();
        }
    };
    let failure = stranded.recover(&guest.memory, report, &mut let_go_again).unwrap_err();
    let (stranded, report) = expect_let_go(*failure, GuestOwner::Destination, since, &guest);

    way.mend();
    steering.set_bandwidth(None);
    expect_recovery(stranded, report, &guest);
    served.join().unwrap().unwrap();
    expect_whole(&seen, &guest);
}

#[test]
fn a_guest_that_is_let_go_before_it_is_known_to_run_is_in_doubt_and_can_still_be_recovered() {
    if !is_usable() {
        return;
    }
    let way = Way::default();
    let inner = factory();
    let seen = Arc::clone(&inner.seen);
    let (endpoint, served) = crate::moves::receiver_of(CutsAtRun { inner, way: way.clone() }, &ReceiverOptions::default());
    let mut guest = running_guest();
    let migration = ahead_of_memory(way.lead(endpoint));
    let (steering, since) = (migration.steering(), Instant::now());
    let letting_go = steering.clone();
    let migration = migration.observe(move |event| {
        if matches!(event, Event::Recovering { .. }) {
            letting_go.let_go();
        }
    });
    let failure = migrate(migration, &mut guest).unwrap_err();
    let (stranded, report) = expect_let_go(*failure, GuestOwner::InDoubt, since, &guest);

    way.mend();
    steering.set_bandwidth(None);
    expect_recovery(stranded, report, &guest);
    served.join().unwrap().unwrap();
    expect_whole(&seen, &guest);
}

#[test]
fn a_guest_that_is_let_go_while_its_pages_follow_is_the_destinations() {
    if !is_usable() {
        return;
    }
    let (endpoint, served, seen) = receiver(factory(), &ReceiverOptions::default());
    let mut guest = running_guest();
    let migration = ahead_of_memory(endpoint);
    let (steering, since) = (migration.steering(), Instant::now());
    let letting_go = steering.clone();
    let migration = migration.observe(move |event| {
        if matches!(event, Event::Phase(Phase::PostCopy)) {
            letting_go.let_go();
        }
    });
    let failure = migrate(migration, &mut guest).unwrap_err();
    let (stranded, report) = expect_let_go(*failure, GuestOwner::Destination, since, &guest);
    steering.set_bandwidth(None);
    expect_recovery(stranded, report, &guest);
    served.join().unwrap().unwrap();
    expect_whole(&seen, &guest);
}

#[test]
fn a_guest_that_is_let_go_before_it_is_given_away_runs_on_here() {
    let (endpoint, served, seen) = receiver(factory(), &ReceiverOptions::default());
    let mut guest = running_guest();
    let migration = Migration::to(endpoint).bandwidth(Some(BytesPerSec(1e6)));
    let steering = migration.steering();
    let migration = migration.observe(move |event| {
        if matches!(event, Event::Progress { .. }) {
            steering.let_go();
        }
    });
    let failure = migrate(migration, &mut guest).unwrap_err();
    served.join().unwrap().unwrap();
    assert!(matches!(failure.error, Error::Cancelled), "{failure}");
    assert_eq!((failure.owner, failure.report.outcome), (GuestOwner::Source, Outcome::Aborted));
    assert!(failure.stranded.is_none() && guest.is_running() && !seen.lock().unwrap().ran);
}

const PATIENCE: Duration = Duration::from_secs(10);
