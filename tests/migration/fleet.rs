//! Guests that go together, as an embedder moves them.

use std::num::NonZeroUsize;

use pageferry::destination::{Ending, ReceiverOptions};
use pageferry::source::{Fleet, Migration};
use pageferry::stats::{GuestOwner, Outcome};
use pageferry::transport::Endpoint;
use pageferry::units::BytesPerSec;

use crate::guest::{Factory, image};
use crate::moves::{migrate, receiver, running_guest};

#[test]
fn guests_of_a_fleet_arrive_and_one_that_leads_nowhere_stays() {
    let nowhere: Endpoint = "unix:/nonexistent/pageferry".parse().unwrap();
    for bandwidth in [None, Some(BytesPerSec(200e6))] {
        let fleet = Fleet::new();
        fleet.set_bandwidth(bandwidth);
        let receivers: Vec<_> = (0..5).map(|_| receiver(Factory::default(), &ReceiverOptions::default())).collect();
        let mut endpoints: Vec<Endpoint> = receivers.iter().map(|(endpoint, ..)| endpoint.clone()).collect();
        endpoints.insert(2, nowhere.clone());
        let ended = Fleet::run_all(NonZeroUsize::new(3).unwrap(), endpoints, |endpoint, _place| {
            let mut guest = running_guest();
            let result = migrate(Migration::to(endpoint).in_fleet(&fleet), &mut guest);
            (guest, result)
        });
        let (mut arrivals, mut stayed) = (receivers.into_iter(), 0);
        for (index, ended) in ended.into_iter().enumerate() {
            let (guest, result) = ended.unwrap();
            if index == 2 {
                let failure = result.unwrap_err();
                assert_eq!((failure.owner, failure.report.outcome), (GuestOwner::Source, Outcome::Failed));
                assert!(guest.is_running());
                stayed += 1;
                continue;
            }
            let (_, served, seen) = arrivals.next().unwrap();
            assert_eq!(result.unwrap().report.guest_owner, GuestOwner::Destination);
            served.join().unwrap().unwrap();
            let seen = seen.lock().unwrap();
            assert!(seen.ran && matches!(seen.ending, Some(Ending::Completed { .. })));
            assert!(seen.image.as_ref().unwrap() == &image(&guest.memory), "memory is identical");
        }
        assert_eq!((stayed, arrivals.len()), (1, 0));
    }
}

#[test]
fn one_that_was_cancelled_before_its_turn_connects_to_nobody() {
    let mut guest = running_guest();
    let migration = Migration::to("unix:/nonexistent/pageferry".parse().unwrap()).in_fleet(&Fleet::new());
    migration.steering().cancel();
    let failure = migrate(migration, &mut guest).unwrap_err();
    assert!(matches!(failure.error, pageferry::Error::Cancelled), "{failure}");
    assert!(guest.is_running());
}
