//! The honest sides: a receiver that serves for ever, a guest to send, and what must hold after every attack.

use std::panic;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use pageferry::Error;
use pageferry::destination::{Arrival, Ending, GuestFactory, Placed, Receiver, ReceiverControl, ReceiverOptions, Refusal};
use pageferry::dirty::{self, Choice, Tracked, TrackerKind};
use pageferry::guest::{Guest, GuestError};
use pageferry::memory::{GuestMemory, MemoryLayout};
use pageferry::protocol::Timeouts;
use pageferry::source::{Completed, Failure, Migration, Outgoing};
use pageferry::transport::{ClientSecurity, Endpoint};
use pageferry::units::{ByteCount, PageCount};
use pageferry::wire::{Offer, RefuseReason};

use crate::guest::{Factory, Seen, Stamper, filled, image};
use crate::talk::PATIENCE;

/// Short, but not for a busy machine.
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    heartbeat: Duration::from_millis(100),
    silence: Duration::from_secs(2),
    handshake: Duration::from_secs(2),
    resolve: Duration::from_secs(3),
    recover: Duration::from_secs(3),
    tombstone: Duration::from_secs(30),
};

/// Pages of the guests that are moved about here.
pub(crate) const PAGES: PageCount = PageCount(300);
/// What the receiver gives to all guests together.
pub(crate) const MAX_MEMORY: ByteCount = ByteCount(64 << 20);

/// A real receiver and what became of its sessions.
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    pub(crate) control: ReceiverControl,
    records: Arc<Records>,
}

#[derive(Default)]
struct Records {
    sessions: Mutex<Vec<Record>>,
    said: Mutex<Vec<String>>,
}

/// One session that was accepted.
#[derive(Clone, Default)]
pub(crate) struct Record {
    pub(crate) seen: Arc<Mutex<Seen>>,
    /// Of the guest.
    pub(crate) memory: Arc<OnceLock<Arc<GuestMemory>>>,
    pub(crate) resumes: Arc<AtomicU32>,
}

impl Record {
    /// How often the guest was told to run here.
    pub(crate) fn resumes(&self) -> u32 {
        self.resumes.load(Ordering::SeqCst)
    }

    /// Waits for the end of the session: why the guest was dropped, or `None` when it was kept.
    pub(crate) fn ending(&self) -> Option<String> {
        let since = Instant::now();
        loop {
            match &self.seen.lock().unwrap().ending {
                Some(Ending::Dropped { error, .. }) => return Some(error.in_full()),
                Some(Ending::Completed { .. }) => return None,
                None => assert!(since.elapsed() < PATIENCE, "the session does not end"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::at(&"127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn at(endpoint: &Endpoint) -> Self {
        Self::with(endpoint, TIMEOUTS)
    }

    pub(crate) fn with(endpoint: &Endpoint, timeouts: Timeouts) -> Self {
        Self::with_options(endpoint, ReceiverOptions { timeouts, ..ReceiverOptions::default() })
    }

    pub(crate) fn with_options(endpoint: &Endpoint, options: ReceiverOptions) -> Self {
        count_panics();
        let records = Arc::new(Records::default());
        let options = ReceiverOptions { max_memory: Some(MAX_MEMORY), ..options };
        let receiver = Receiver::bind(endpoint, options, Arc::new(Reception(Arc::clone(&records)))).unwrap();
        let (endpoint, control) = (receiver.endpoint().clone(), receiver.control());
        // Serves until the process ends.
        thread::Builder::new().name("pf-serve".into()).spawn(move || receiver.serve().unwrap()).unwrap();
        Self { endpoint, control, records }
    }

    /// The session that was accepted last.
    pub(crate) fn last_session(&self) -> Record {
        self.records.sessions.lock().unwrap().last().expect("a session").clone()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.records.sessions.lock().unwrap().len()
    }

    /// The first thing the receiver said of a connection or an offer that came to nothing.
    pub(crate) fn first_said(&self) -> String {
        let since = Instant::now();
        loop {
            if let Some(first) = self.records.said.lock().unwrap().first() {
                return first.clone();
            }
            assert!(since.elapsed() < PATIENCE, "the receiver says nothing");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// An honest guest comes in, and no guest of an attacker has run.
    pub(crate) fn serves_on(&self) {
        self.serves_on_over(ClientSecurity::Plain);
    }

    /// The same over connections protected like that.
    pub(crate) fn serves_on_over(&self, security: ClientSecurity) {
        let mut guest = running_guest();
        migrate(Migration::to(self.endpoint.clone()).security(security), &mut guest).unwrap();
        let record = self.last_session();
        assert_eq!(record.ending(), None);
        assert!(!guest.is_running() && record.resumes() == 1, "the guest runs there and only there");
        assert!(record.seen.lock().unwrap().image.as_ref().unwrap() == &image(&guest.memory), "memory is identical");
        assert_no_panic();
    }
}

/// Takes guests of kind "stamper" in and keeps a record of each.
struct Reception(Arc<Records>);

impl GuestFactory for Reception {
    fn admit(&self, offer: &Offer) -> Result<Box<dyn Arrival>, Refusal> {
        if offer.guest_kind != "stamper" {
            return Err(Refusal::new(RefuseReason::GuestKind, format!("guests of kind {:?} are not allowed here", offer.guest_kind)));
        }
        let other_layout = (offer.description == "larger inside").then(|| MemoryLayout::flat(PageCount(PAGES.0 + 1)).unwrap());
        let record = Record::default();
        let inner = Factory { seen: Arc::clone(&record.seen), other_layout, ..Factory::default() }.admit(offer)?;
        record.memory.set(inner.memory()).expect("a record of its own");
        self.0.sessions.lock().unwrap().push(record.clone());
        Ok(Box::new(Watched { inner, record }))
    }

    fn refused(&self, _offer: &Offer, refusal: &Refusal) {
        self.0.said.lock().unwrap().push(refusal.to_string());
    }

    fn starves(&self, _offer: &Offer, quiet: Duration, left: PageCount) {
        self.0.said.lock().unwrap().push(format!("the source brings nothing for {} s, {left} are missing", quiet.as_secs()));
    }

    fn turned_away(&self, _peer: &str, error: &Error) {
        self.0.said.lock().unwrap().push(error.in_full());
    }
}

/// Counts how often the guest is told to run.
struct Watched {
    inner: Box<dyn Arrival>,
    record: Record,
}

impl Arrival for Watched {
    fn memory(&self) -> Arc<GuestMemory> {
        self.inner.memory()
    }

    fn guest(&mut self) -> &mut dyn Guest {
        self
    }

    fn placed(&mut self, placed: Placed) -> std::io::Result<()> {
        self.inner.placed(placed)
    }

    fn ended(self: Box<Self>, ending: Ending) {
        self.inner.ended(ending);
    }
}

impl Guest for Watched {
    fn pause(&mut self) -> Result<(), GuestError> {
        self.inner.guest().pause()
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.record.resumes.fetch_add(1, Ordering::SeqCst);
        self.inner.guest().resume()
    }

    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        self.inner.guest().save_state()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        self.inner.guest().load_state(state)
    }
}

/// A guest that writes to its memory.
pub(crate) fn running_guest() -> Stamper {
    let mut guest = Stamper::new(filled(MemoryLayout::flat(PAGES).unwrap()));
    guest.resume().unwrap();
    guest
}

/// Runs a migration of `guest`.
pub(crate) fn migrate(migration: Migration<'_>, guest: &mut Stamper) -> Result<Completed, Box<Failure>> {
    count_panics();
    let memory = Arc::clone(&guest.memory);
    let tracked = Tracked { memory: Arc::clone(&memory), marks: guest.marks.clone(), marks_complete: true, kvm: None };
    let mut tracker = dirty::open(Choice::Only(TrackerKind::Marked), &tracked).unwrap();
    let outgoing = Outgoing { guest, memory: &memory, tracker: &mut *tracker, kind: "stamper".into(), description: String::new() };
    // Most hostile destinations show no sign of life, and a busy machine may take its time to come to what they wait for.
    migration.timeouts(Timeouts { silence: Duration::from_secs(6), ..TIMEOUTS }).run(outgoing)
}

/// No thread of the engine has panicked so far, in any test.
pub(crate) fn assert_no_panic() {
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of the engine panicked");
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if thread::current().name().is_some_and(|name| name.starts_with("pf-")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            report(panic);
        }));
    });
}

static PANICS: AtomicU32 = AtomicU32::new(0);
