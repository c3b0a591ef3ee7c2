//! Does the push that follows the guest's faults keep it from waiting?
//!
//! In virtual time, so nothing here depends on the machine. `cargo bench --bench prepaging` prints the whole table.

mod simulation;

use pageferry::source::Prepaging;
use simulation::{Outcome, PATTERNS, Pattern, SCENARIOS, run};

#[test]
fn several_pivots_spare_a_guest_faults() {
    for scenario in &SCENARIOS {
        for pattern in PATTERNS {
            let [push, pivots] = [Prepaging::Push, Prepaging::Pivots].map(|prepaging| run(scenario, pattern, prepaging));
            let most = match pattern {
                // All that is missing is in use, and asked for faster than the link brings it: no order helps much.
                _ if scenario.is_starved() => 1.05,
                Pattern::Sweep | Pattern::HotCold => 0.75,
                Pattern::Random => 1.0,
            };
            let share = pivots.faults as f64 / push.faults as f64;
            assert!(share <= most, "{}, {pattern:?}: {pivots:?} instead of {push:?}", scenario.name);
        }
    }
}

#[test]
fn prepaging_does_not_make_the_whole_longer() {
    for scenario in &SCENARIOS {
        let finished = |prepaging| run(scenario, Pattern::Sweep, prepaging).finished.expect("it ends") as f64;
        let (push, pivots) = (finished(Prepaging::Push), finished(Prepaging::Pivots));
        assert!((pivots / push - 1.0).abs() < 0.01, "{}: {pivots} instead of {push}", scenario.name);
    }
}

#[test]
fn on_demand_every_page_is_waited_for_once() {
    let Outcome { faults, lost, finished } = run(&SCENARIOS[0], Pattern::Sweep, Prepaging::Demand);
    assert_eq!((faults, finished), (SCENARIOS[0].working_set.1, None));
    assert!(lost >= faults * SCENARIOS[0].round_trip);
}
