//! The connections cut at every step of post-copy, in every way, once and then again during the recovery.

use std::time::Duration;

use pageferry::protocol::{GuestOwner, SourceEnd};

use super::plan::{Cut, Notice, OnTheWay, Plan, Reconnect, Start, Ways};
use super::world::World;

/// Near, far, and so lopsided that a heartbeat or a whole handover fits into one way.
const LATENCIES: [(u64, u64); 4] = [(1, 1), (150, 150), (1, 1300), (1300, 1)];
const STARTS: [Start; 3] = [Start::Works, Start::Slow, Start::Fails];
const WAYS: [Ways; 7] = [Ways::Forth, Ways::Back, Ways::Both, Ways::Lanes, Ways::DestinationDead, Ways::DestinationRestarted, Ways::SourceDead];
const NOTICES: [Notice; 4] = [Notice::Nobody, Notice::Source, Notice::Destination, Notice::Everyone];
const RECONNECTS: [Reconnect; 4] = [Reconnect::AtOnce, Reconnect::Later, Reconnect::AnswerLost, Reconnect::Never];

/// Every session without a cut.
fn quiet_plans() -> impl Iterator<Item = Plan> {
    LATENCIES.into_iter().flat_map(|(forth, back)| {
        STARTS.into_iter().map(move |start| Plan {
            forth: Duration::from_millis(forth),
            back: Duration::from_millis(back),
            start,
            cuts: [None; 2],
            reconnect: Reconnect::AtOnce,
        })
    })
}

/// Every cut before `step`. Lanes that break without anybody noticing are a matter of the transport's own time-outs.
fn cuts_at(step: usize) -> impl Iterator<Item = Cut> {
    WAYS.into_iter().flat_map(move |ways| {
        let notices = NOTICES.into_iter().filter(move |notice| ways != Ways::Lanes || *notice != Notice::Nobody);
        notices.flat_map(move |notice| [OnTheWay::Lost, OnTheWay::Late].into_iter().map(move |on_the_way| Cut { step, ways, notice, on_the_way }))
    })
}

/// `plan` with one cut at each of its steps, in each way.
fn cuts_of(plan: Plan) -> impl Iterator<Item = Plan> {
    let steps = World::run(plan).steps;
    (0..=steps).flat_map(cuts_at).map(move |cut| Plan { cuts: [Some(cut), None], ..plan })
}

#[test]
fn without_a_cut_the_guest_arrives_with_all_its_pages_or_stays() {
    for plan in quiet_plans() {
        let world = World::run(plan);
        let owner = if plan.start == Start::Fails { GuestOwner::Source } else { GuestOwner::Destination };
        assert_eq!((world.source.unwrap().owner(), world.recoveries), (owner, 0), "{plan:?}");
    }
}

#[test]
fn a_cut_anywhere_is_recovered_from_or_leaves_one_owner_or_a_recorded_doubt() {
    let (mut scenarios, mut steps, mut recoveries) = (0, 0, 0);
    let mut ends = [0; 5];
    for plan in quiet_plans().flat_map(cuts_of) {
        for reconnect in RECONNECTS {
            let world = World::run(Plan { reconnect, ..plan });
            scenarios += 1;
            steps += world.steps;
            recoveries += usize::from(world.recoveries > 0);
            let end = match world.source_end {
                Some(SourceEnd::Completed) => 0,
                Some(SourceEnd::Stranded { .. }) => 1,
                Some(SourceEnd::InDoubt { .. }) => 2,
                Some(_) => 3,
                None => 4,
            };
            ends[end] += 1;
        }
    }
    println!("{scenarios} scenarios, {steps} steps, {recoveries} recovered; completed, stranded, in doubt, at the source, source dead: {ends:?}");
    assert!(recoveries > 1000 && ends.iter().all(|count| *count > 200), "the enumeration has lost its point: {recoveries}, {ends:?}");
}

#[test]
fn a_second_cut_during_the_recovery_is_recovered_from_too() {
    let (mut scenarios, mut twice) = (0, 0);
    for plan in quiet_plans().filter(|plan| plan.forth == plan.back && plan.start != Start::Slow) {
        let steps = World::run(plan).steps;
        for first in (0..=steps).step_by(2) {
            let first = Cut { step: first, ways: Ways::Both, notice: Notice::Source, on_the_way: OnTheWay::Late };
            let recovered = World::run(Plan { cuts: [Some(first), None], ..plan }).steps;
            for second in (first.step + 1..=recovered.min(first.step + 40)).flat_map(cuts_at) {
                for reconnect in [Reconnect::AtOnce, Reconnect::AnswerLost] {
                    let world = World::run(Plan { cuts: [Some(first), Some(second)], reconnect, ..plan });
                    scenarios += 1;
                    twice += usize::from(world.recoveries > 1);
                }
            }
        }
    }
    println!("{scenarios} scenarios, {twice} recovered twice or more often");
    assert!(twice > 1000, "the enumeration has lost its point: {twice} of {scenarios}");
}

#[test]
fn a_source_that_gave_up_goes_on_when_the_destination_can_be_reached_at_last() {
    let mut settled = [0; 2];
    for plan in quiet_plans().flat_map(cuts_of) {
        let is_alive = plan.cuts[0].is_some_and(|cut| matches!(cut.ways, Ways::Forth | Ways::Back | Ways::Both | Ways::Lanes));
        if !is_alive {
            continue;
        }
        let mut world = World::run(Plan { reconnect: Reconnect::Never, ..plan });
        let owner = world.source.as_ref().unwrap().owner();
        if matches!(world.source_end, Some(SourceEnd::Stranded { .. } | SourceEnd::InDoubt { .. })) {
            world.settle();
            let is_settled = matches!(world.source_end, Some(SourceEnd::Completed | SourceEnd::Failed { .. }));
            assert!(is_settled, "{:?}: {plan:?}", world.source_end);
            settled[usize::from(owner == GuestOwner::Destination)] += 1;
        }
    }
    println!("{} from doubt, {} were stranded", settled[0], settled[1]);
    assert!(settled.iter().all(|count| *count > 100), "the enumeration has lost its point: {settled:?}");
}
