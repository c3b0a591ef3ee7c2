//! Guests of huge pages that come in at the same time, where the host's pool has enough for one of them.

use std::thread;

use pageferry::Error;
use pageferry::destination::ReceiverOptions;
use pageferry::guest::Guest;
use pageferry::memory::{Backing, MemoryLayout};
use pageferry::source::Migration;
use pageferry::stats::GuestOwner;
use pageferry::units::{BytesPerSec, PageCount};
use pageferry::wire::RefuseReason;

use crate::guest::{Factory, Stamper, filled};
use crate::huge_pages::{self, HugePages};
use crate::moves::{migrate, receiver};

/// A guest of so many huge pages, running.
fn guest(huge_pages: u64) -> Stamper {
    let mut guest = Stamper::new(filled(MemoryLayout::flat(PageCount(huge_pages * 512)).unwrap()));
    guest.resume().unwrap();
    guest
}

#[test]
fn of_two_guests_that_want_one_pool_one_comes_in_and_the_other_runs_on() {
    let _reserve = match HugePages::reserve(4) {
        Ok(reserve) => reserve,
        Err(error) => return println!("skipped: {error:#}"),
    };
    // The pool is the whole host's: what others do with it meanwhile makes another attempt.
    for _ in 0..ATTEMPTS {
        let Some(before) = huge_pages::left().unwrap() else { return println!("skipped: the pool may grow by itself here") };
        if before > LARGEST {
            return println!("skipped: a pool of {before} huge pages is more than two guests are made for here");
        }
        let owners = compete(before);
        if huge_pages::left().unwrap() == Some(before) {
            let mut owners = owners;
            owners.sort_by_key(|owner| *owner == GuestOwner::Source);
            assert_eq!(owners, [GuestOwner::Destination, GuestOwner::Source], "one pool is not promised twice, and what is left of it is used");
            return;
        }
        println!("again: somebody else has used the pool");
    }
    println!("skipped: somebody else uses the pool all the time");
}

/// Two guests, each of which needs more than half of the `left` huge pages and no more than all; who has them then.
fn compete(left: u64) -> Vec<GuestOwner> {
    let options = ReceiverOptions { max_sessions: Some(2), ..ReceiverOptions::default() };
    let (endpoint, served, _) = receiver(Factory { backing: Backing::HugeTlb, ..Factory::default() }, &options);
    let sends = [(); 2].map(|()| {
        let endpoint = endpoint.clone();
        thread::spawn(move || {
            let mut guest = guest(left / 2 + 1);
            // The first is still coming in when the second asks.
            let result = migrate(Migration::to(endpoint).bandwidth(Some(BytesPerSec(2e6))), &mut guest);
            let owner = match result {
                Ok(completed) => completed.report.guest_owner,
                Err(failure) => {
                    assert!(matches!(failure.error, Error::Refused { reason: RefuseReason::Memory, .. }), "{}", failure.error.in_full());
                    assert!(failure.error.in_full().contains("this host's pool of huge pages leaves"), "{}", failure.error.in_full());
                    failure.owner
                }
            };
            assert_eq!(guest.is_running(), owner == GuestOwner::Source);
            owner
        })
    });
    let owners = sends.map(|send| send.join().unwrap()).to_vec();
    served.join().unwrap().unwrap();
    owners
}

const ATTEMPTS: u32 = 5;
/// Huge pages: half a minute at the rate that is used here.
const LARGEST: u64 = 64;
