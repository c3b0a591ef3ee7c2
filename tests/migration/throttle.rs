//! Guests that write faster than the link moves, and are slowed down for it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pageferry::destination::ReceiverOptions;
use pageferry::guest::Guest;
use pageferry::page::{Compression, DeltaCache};
use pageferry::policy::{Decision, Limits, OnLimit};
use pageferry::source::{Completed, Event, Migration};
use pageferry::stats::{GuestOwner, Outcome, Report};
use pageferry::transport::Endpoint;
use pageferry::units::BytesPerSec;

use crate::guest::{Factory, Stamper, image};
use crate::moves::{migrate, receiver, running_guest};

/// All 1700 pages are written several times in the time that they take on this link.
const LINK: BytesPerSec = BytesPerSec(12e6);

/// Pages go whole: as differences this guest's would fit the link.
fn plain<'h>(endpoint: Endpoint) -> Migration<'h> {
    Migration::to(endpoint).compression(Compression::None).delta_cache(DeltaCache::Off)
}

fn limits() -> Limits {
    Limits { on_limit: OnLimit::Throttle, downtime_limit: Duration::from_millis(30), max_rounds: 3, ..Limits::default() }
}

/// A guest that rewrites its memory in some tens of milliseconds.
fn fast_guest() -> Stamper {
    let mut guest = running_guest();
    guest.pause().unwrap();
    guest.burst = 8;
    guest.resume().unwrap();
    guest
}

fn move_it(guest: &mut Stamper) -> (Report, Vec<Decision>) {
    let (endpoint, served, seen) = receiver(Factory::default(), &ReceiverOptions::default());
    let mut decisions = Vec::new();
    let migration = plain(endpoint).bandwidth(Some(LINK)).limits(limits()).observe(|event| {
        if let Event::Round { verdict, .. } = event {
            decisions.push(verdict.decision);
        }
    });
    let Completed { report } = migrate(migration, guest).unwrap();
    served.join().unwrap().unwrap();
    assert_eq!((report.outcome, report.guest_owner), (Outcome::Completed, GuestOwner::Destination));
    assert!(seen.lock().unwrap().image.as_ref().unwrap() == &image(&guest.memory), "memory is identical");
    (report, decisions)
}

#[test]
fn a_guest_too_fast_for_the_link_is_slowed_down_until_the_rest_fits() {
    let mut guest = fast_guest();
    let (report, decisions) = move_it(&mut guest);
    assert!(decisions.contains(&Decision::Throttle), "{decisions:?}");
    let throttle = report.throttle.expect("it was slowed down");
    assert!(throttle.lowest_share.value() < 1.0 && throttle.time > Duration::ZERO, "{throttle:?}");
    assert!(["downtime-limit", "dirty-threshold"].contains(&report.reason.as_str()), "it converged: {}", report.to_json());
    assert_eq!(guest.share.load(Ordering::Relaxed), 1000, "and had its full speed back");
}

#[test]
fn a_guest_that_cannot_be_slowed_down_is_stopped_at_the_limit() {
    let mut guest = fast_guest();
    guest.can_be_throttled = false;
    let (report, _) = move_it(&mut guest);
    assert_eq!((report.reason.as_str(), report.throttle), ("max-rounds", None));
}

#[test]
fn a_guest_that_is_slow_enough_keeps_its_speed_when_time_is_over() {
    let mut guest = running_guest();
    guest.pause().unwrap();
    guest.working_set = Some(8);
    guest.resume().unwrap();
    let (endpoint, served, _) = receiver(Factory::default(), &ReceiverOptions::default());
    // Over within round 0, which takes half a second.
    let limits = Limits { timeout: Some(Duration::from_millis(150)), max_rounds: 20, ..limits() };
    let Completed { report } = migrate(plain(endpoint).bandwidth(Some(LINK)).limits(limits), &mut guest).unwrap();
    served.join().unwrap().unwrap();
    assert_eq!(report.throttle, None, "{}", report.to_json());
    assert!(["downtime-limit", "dirty-threshold"].contains(&report.reason.as_str()), "it converged: {}", report.to_json());
    assert!(report.rounds.len() <= 6, "and is not cut short again and again: {}", report.to_json());
}

#[test]
fn a_slowed_guest_that_stays_has_its_full_speed_back() {
    let (endpoint, served, _) = receiver(Factory::default(), &ReceiverOptions::default());
    let mut guest = fast_guest();
    let migration = plain(endpoint).bandwidth(Some(LINK)).limits(Limits { max_rounds: 1, ..limits() });
    let steering = migration.steering();
    let migration = migration.observe(move |event| {
        if let Event::Round { verdict, .. } = event
            && verdict.decision == Decision::Throttle
        {
            steering.cancel();
        }
    });
    let failure = migrate(migration, &mut guest).unwrap_err();
    served.join().unwrap().unwrap();
    assert_eq!((failure.owner, failure.report.outcome), (GuestOwner::Source, Outcome::Aborted));
    assert!(failure.report.throttle.is_some_and(|throttle| throttle.lowest_share.value() < 1.0), "it was slowed down");
    assert!(guest.is_running());
    assert_eq!(guest.share.load(Ordering::Relaxed), 1000);
}
