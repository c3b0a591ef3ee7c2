//! Guests that stay, because of a limit or because somebody changed their mind.

use std::time::Duration;

use pageferry::destination::ReceiverOptions;
use pageferry::page::{Compression, DeltaCache};
use pageferry::policy::{DirtyThreshold, Limits, OnLimit};
use pageferry::source::{Event, Migration};
use pageferry::stats::{GuestOwner, Outcome, Report};
use pageferry::transport::Endpoint;
use pageferry::units::{ByteCount, BytesPerSec, PageCount};

use crate::guest::{Factory, Stamper};
use crate::moves::{migrate, receiver, running_guest};

fn stays<'h>(guest: &mut Stamper, migration: impl FnOnce(Migration<'h>) -> Migration<'h>) -> Report {
    let (endpoint, served, _) = receiver(Factory::default(), &ReceiverOptions::default());
    let plain = |endpoint: Endpoint| Migration::to(endpoint).compression(Compression::None).delta_cache(DeltaCache::Off);
    let report = migrate(migration(plain(endpoint)), guest).unwrap_err().report;
    served.join().unwrap().unwrap();
    assert_eq!((report.outcome, report.guest_owner), (Outcome::Aborted, GuestOwner::Source), "{}", report.to_json());
    assert!(guest.is_running());
    report
}

#[test]
fn a_guest_is_not_stopped_for_a_state_that_takes_longer_than_it_may_stand_still() {
    let mut guest = running_guest();
    guest.told_state = ByteCount(1 << 30);
    let dirty_threshold = DirtyThreshold::Pages(PageCount(0));
    let limits = Limits { on_limit: OnLimit::Abort, max_rounds: 4, dirty_threshold, ..Limits::default() };
    let report = stays(&mut guest, |migration| migration.limits(limits).bandwidth(Some(BytesPerSec(60e6))));
    assert_eq!((report.downtime, report.stall), (Duration::ZERO, Duration::ZERO), "{}", report.to_json());
}

#[test]
fn what_went_in_a_round_that_was_cut_short_is_reported() {
    let report = stays(&mut running_guest(), |migration| {
        let steering = migration.steering();
        migration.bandwidth(Some(BytesPerSec(2e6))).observe(move |event| {
            if let Event::Progress { bytes, .. } = event
                && *bytes > ByteCount(200_000)
            {
                steering.cancel();
            }
        })
    });
    assert!(report.wire_bytes > ByteCount(200_000) && report.pages_transferred > PageCount(40), "{}", report.to_json());
}
