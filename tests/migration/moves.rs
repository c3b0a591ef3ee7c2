//! Guests that arrive, and guests that stay.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pageferry::destination::{Ending, GuestFactory, Receiver, ReceiverOptions};
use pageferry::dirty::{self, Choice, Tracked, TrackerKind};
use pageferry::guest::Guest;
use pageferry::memory::{MemoryLayout, RegionSpec};
use pageferry::page::Compression;
use pageferry::policy::Limits;
use pageferry::protocol::Timeouts;
use pageferry::source::{Completed, Event, Failure, Migration, Outgoing};
use pageferry::stats::{GuestOwner, Outcome, RoundKind};
use pageferry::transport::Endpoint;
use pageferry::units::{BytesPerSec, GuestAddr, PageCount};
use pageferry::{Error, wire};

use crate::guest::{Factory, Seen, Stamper, filled, image};

/// A receiver, of one session unless `options` say more, on a thread of its own.
pub(crate) fn receiver(factory: Factory, options: &ReceiverOptions) -> (Endpoint, JoinHandle<Result<(), Error>>, Arc<Mutex<Seen>>) {
    let seen = Arc::clone(&factory.seen);
    let (endpoint, served) = receiver_of(factory, options);
    (endpoint, served, seen)
}

/// The same with any factory.
pub(crate) fn receiver_of(factory: impl GuestFactory + 'static, options: &ReceiverOptions) -> (Endpoint, JoinHandle<Result<(), Error>>) {
    let timeouts = Timeouts { tombstone: Duration::from_secs(1), ..Timeouts::default() };
    let max_sessions = Some(options.max_sessions.unwrap_or(1));
    let options = ReceiverOptions { max_sessions, timeouts, ..options.clone() };
    let receiver = Receiver::bind(&"127.0.0.1:0".parse().unwrap(), options, Arc::new(factory)).unwrap();
    let endpoint = receiver.endpoint().clone();
    (endpoint, std::thread::spawn(move || receiver.serve()))
}

fn layout() -> MemoryLayout {
    let region = |start, pages| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) };
    MemoryLayout::new(vec![region(0, 700), region(0x100_0000, 1000)]).unwrap()
}

fn tracker(guest: &Stamper) -> Box<dyn dirty::DirtyTracker> {
    let tracked = Tracked { memory: Arc::clone(&guest.memory), marks: guest.marks.clone(), marks_complete: true, kvm: None };
    dirty::open(Choice::Only(TrackerKind::Marked), &tracked).unwrap()
}

pub(crate) fn migrate(migration: Migration<'_>, guest: &mut Stamper) -> Result<Completed, Box<Failure>> {
    let memory = Arc::clone(&guest.memory);
    let mut tracker = tracker(guest);
    migration.run(Outgoing { guest, memory: &memory, tracker: &mut *tracker, kind: "stamper".into(), description: String::new() })
}

pub(crate) fn running_guest() -> Stamper {
    let memory = filled(MemoryLayout::flat(PageCount(1700)).unwrap());
    let mut guest = Stamper::new(memory);
    guest.resume().unwrap();
    guest
}

#[test]
fn a_writing_guest_arrives_identical_and_runs() {
    for (channels, compression) in [(1, Compression::Lz4), (2, Compression::Zstd), (5, Compression::Lz4)] {
        let (endpoint, served, seen) = receiver(Factory::default(), &ReceiverOptions::default());
        let mut guest = running_guest();
        let mut rounds = 0;
        let migration = Migration::to(endpoint)
            .channels(channels)
            .compression(compression)
            .observe(|event| rounds += u32::from(matches!(event, Event::Round { .. })));
        let Completed { report } = migrate(migration, &mut guest).unwrap();
        served.join().unwrap().unwrap();
        assert_eq!((report.outcome, report.guest_owner), (Outcome::Completed, GuestOwner::Destination));
        assert!(!guest.is_running(), "the source's guest stays paused");
        let seen = seen.lock().unwrap();
        assert!(seen.ran);
        assert!(seen.image.as_ref().unwrap() == &image(&guest.memory), "memory is identical");
        let Some(Ending::Completed { report: theirs }) = &seen.ending else { panic!("{:?}", seen.ending) };
        assert_eq!(theirs.pages_transferred, report.pages_transferred);
        assert_eq!(theirs.wire_bytes, report.wire_bytes);
        let parts = report.downtime_parts.expect("it was paused");
        assert!(parts.sum().abs_diff(report.downtime) < Duration::from_micros(10), "{parts:?} make {:?}", report.downtime);
        let parts = theirs.downtime_parts.expect("they resumed it");
        assert!(parts.load.is_some() && parts.resume.is_some() && parts.sum() < report.downtime, "{parts:?}");
        assert!(report.predicted.is_some() && report.prediction_error.is_some(), "{}", report.to_json());
        assert_eq!(report.throttle, None);
        assert_eq!(theirs.pages_by_encoding, report.pages_by_encoding);
        let sent = report.pages_by_encoding;
        assert!([sent.columns, sent.raw].iter().all(|pages| *pages > PageCount(100)) && sent.delta > PageCount(0), "{sent:?}");
    }
}

#[test]
fn pages_that_are_held_back_arrive_and_where_a_limit_comes_next_none_are() {
    for (max_rounds, holds_back) in [(8, true), (2, false)] {
        let (endpoint, served, seen) = receiver(Factory::default(), &ReceiverOptions::default());
        let mut guest = Stamper::new(filled(MemoryLayout::flat(PageCount(16_384)).unwrap()));
        (guest.burst, guest.working_set) = (12_289, Some(12_289));
        guest.resume().unwrap();
        let limits = Limits { max_rounds, ..Limits::default() };
        let report = migrate(Migration::to(endpoint).bandwidth(Some(BytesPerSec(60e6))).limits(limits), &mut guest).unwrap().report;
        served.join().unwrap().unwrap();
        assert!(seen.lock().unwrap().image.as_ref().unwrap() == &image(&guest.memory), "memory is identical");
        // It writes to most of its memory before that has its turn, so it goes whole in the second round.
        let second = report.rounds.windows(2).find(|pair| pair[0].decision.as_deref() != Some("round: sampling")).unwrap();
        let (left, sent) = (second[0].dirty_after.unwrap(), second[1].pages);
        let enough = PageCount(left.0 - left.0 / 8);
        assert!(left > PageCount(12_000) && if holds_back { (enough..left).contains(&sent) } else { sent == left }, "{:#?}", report.rounds);
    }
}

#[test]
fn a_cold_migration_copies_the_paused_guest_of_several_regions_once() {
    let (endpoint, served, seen) = receiver(Factory::default(), &ReceiverOptions::default());
    let mut guest = Stamper::new(filled(layout()));
    let migration = Migration::to(endpoint).limits(Limits { max_rounds: 0, ..Limits::default() });
    let report = migrate(migration, &mut guest).unwrap().report;
    served.join().unwrap().unwrap();
    assert_eq!(report.rounds.iter().map(|round| round.kind).collect::<Vec<_>>(), [RoundKind::Cold]);
    assert!(seen.lock().unwrap().image.as_ref().unwrap() == &image(&guest.memory));
}

#[test]
fn cancelled_migrations_leave_the_guest_running_here() {
    let (endpoint, served, seen) = receiver(Factory::default(), &ReceiverOptions::default());
    let mut guest = running_guest();
    let migration = Migration::to(endpoint).bandwidth(Some(BytesPerSec(1e6)));
    let steering = migration.steering();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        steering.cancel();
    });
    let failure = migrate(migration, &mut guest).unwrap_err();
    canceller.join().unwrap();
    served.join().unwrap().unwrap();
    assert!(matches!(failure.error, Error::Cancelled), "{failure}");
    assert_eq!((failure.owner, failure.report.outcome), (GuestOwner::Source, Outcome::Aborted));
    assert!(guest.is_running());
    let Some(Ending::Dropped { error, .. }) = &seen.lock().unwrap().ending else { panic!("dropped") };
    assert!(error.in_full().contains("cancelled"), "the destination knows why: {}", error.in_full());
}

#[test]
fn cancelled_at_any_moment_the_guest_runs_on_exactly_one_side() {
    let mut owners = [0, 0];
    for step in 0..40 {
        let (endpoint, served, seen) = receiver(Factory::default(), &ReceiverOptions::default());
        let mut guest = running_guest();
        let migration = Migration::to(endpoint);
        let steering = migration.steering();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2 * step));
            steering.cancel();
        });
        let owner = match migrate(migration, &mut guest) {
            Ok(completed) => completed.report.guest_owner,
            Err(failure) => failure.owner,
        };
        canceller.join().unwrap();
        // A migration cancelled before it connected leaves the receiver waiting for one.
        let ran = if served.is_finished() || seen.lock().unwrap().ending.is_some() || owner == GuestOwner::Destination {
            served.join().unwrap().unwrap();
            seen.lock().unwrap().ran
        } else {
            false
        };
        owners[usize::from(ran)] += 1;
        assert_ne!(guest.is_running(), ran, "step {step}: {owner:?}");
        assert_eq!(ran, owner == GuestOwner::Destination);
    }
    println!("cancelled: {}, moved: {}", owners[0], owners[1]);
}

#[test]
fn a_destination_without_room_refuses_and_says_so() {
    let options = ReceiverOptions { max_memory: Some(pageferry::units::ByteCount(1 << 20)), ..ReceiverOptions::default() };
    let (endpoint, served, _) = receiver(Factory::default(), &options);
    let mut guest = running_guest();
    let failure = migrate(Migration::to(endpoint), &mut guest).unwrap_err();
    served.join().unwrap().unwrap();
    assert!(matches!(failure.error, Error::Refused { reason: wire::RefuseReason::Memory, .. }), "{failure}");
    assert_eq!((failure.owner, failure.report.outcome), (GuestOwner::Source, Outcome::Refused));
    assert!(guest.is_running());
}

#[test]
fn another_layout_at_the_destination_is_refused() {
    let factory = Factory { other_layout: Some(MemoryLayout::flat(PageCount(1701)).unwrap()), ..Factory::default() };
    let (endpoint, served, _) = receiver(factory, &ReceiverOptions::default());
    let mut guest = running_guest();
    let failure = migrate(Migration::to(endpoint), &mut guest).unwrap_err();
    served.join().unwrap().unwrap();
    assert!(matches!(failure.error, Error::Refused { reason: wire::RefuseReason::Layout, .. }), "{failure}");
    assert!(guest.is_running());
    // Its tracking had begun by then.
    let (endpoint, served, seen) = receiver(Factory::default(), &ReceiverOptions::default());
    migrate(Migration::to(endpoint), &mut guest).unwrap();
    served.join().unwrap().unwrap();
    assert!(seen.lock().unwrap().ran && !guest.is_running());
}

#[test]
fn a_guest_that_cannot_start_there_runs_on_here() {
    for factory in [Factory { fail_to_resume: true, ..Factory::default() }, Factory { fail_when_placed: true, ..Factory::default() }] {
        let (endpoint, served, seen) = receiver(factory, &ReceiverOptions::default());
        let mut guest = running_guest();
        let failure = migrate(Migration::to(endpoint), &mut guest).unwrap_err();
        served.join().unwrap().unwrap();
        assert_eq!((failure.owner, failure.report.outcome), (GuestOwner::Source, Outcome::Failed), "{}", failure.error.in_full());
        assert!(guest.is_running());
        assert!(!seen.lock().unwrap().ran);
    }
}

#[test]
fn a_guest_that_cannot_start_here_either_is_told_of() {
    let (endpoint, served, _) = receiver(Factory { fail_when_placed: true, ..Factory::default() }, &ReceiverOptions::default());
    let mut guest = running_guest();
    guest.fail_to_resume = true;
    let failure = migrate(Migration::to(endpoint), &mut guest).unwrap_err();
    served.join().unwrap().unwrap();
    assert_eq!(failure.owner, GuestOwner::Source);
    let reason = &failure.report.reason;
    assert!(
        reason.starts_with(&failure.error.in_full()) && reason.contains("; and the guest could not be resumed") && reason.ends_with("told to fail"),
        "{reason}"
    );
}

#[test]
fn a_failing_step_at_the_pause_leaves_the_guest_running_here() {
    let (endpoint, served, _) = receiver(Factory::default(), &ReceiverOptions::default());
    let mut guest = running_guest();
    let migration = Migration::to(endpoint).at_pause(|_| Err(std::io::Error::other("disk full")));
    let failure = migrate(migration, &mut guest).unwrap_err();
    served.join().unwrap().unwrap();
    assert!(failure.error.in_full().ends_with("disk full"), "{}", failure.error.in_full());
    assert!(guest.is_running());
}

#[test]
fn nobody_listening_leaves_the_guest_running_here() {
    let mut guest = running_guest();
    let endpoint = "127.0.0.1:1".parse().unwrap();
    let failure = migrate(Migration::to(endpoint), &mut guest).unwrap_err();
    assert!(matches!(failure.error, Error::Transport(_)), "{failure}");
    assert!(guest.is_running());
}
