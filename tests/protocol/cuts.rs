//! The link cut at every step of a session, in every way, with every kind of luck afterwards.

use std::time::Duration;

use pageferry::protocol::{GuestOwner, SourceEnd};

use crate::world::{Cut, Meddle, Notice, OnTheWay, Plan, Reconnect, Resume, Ways, World};

/// Near, far, and so lopsided that a heartbeat or a whole handover fits into one way.
const LATENCIES: [(u64, u64); 4] = [(1, 1), (150, 150), (1, 1300), (1300, 1)];
const RESUMES: [Resume; 3] = [Resume::Works, Resume::Slow, Resume::Fails];
const WAYS: [Ways; 6] = [Ways::Forth, Ways::Back, Ways::Both, Ways::DestinationDead, Ways::DestinationRestarted, Ways::SourceDead];
const NOTICES: [Notice; 4] = [Notice::Nobody, Notice::Source, Notice::Destination, Notice::Everyone];
const RECONNECTS: [Reconnect; 4] = [Reconnect::AtOnce, Reconnect::Later, Reconnect::AnswerLost, Reconnect::Never];

/// Every session without a cut.
fn quiet_plans() -> impl Iterator<Item = Plan> {
    LATENCIES.into_iter().flat_map(|(forth, back)| {
        RESUMES.into_iter().map(move |resume| Plan {
            forth: Duration::from_millis(forth),
            back: Duration::from_millis(back),
            resume,
            cut: None,
            reconnect: Reconnect::AtOnce,
            meddle: None,
        })
    })
}

/// `plan` with a cut before each of its steps, in each way. The last steps come after its end: there a cut hits nothing.
fn cuts_of(plan: Plan) -> impl Iterator<Item = Plan> {
    let steps = World::run(plan).steps;
    (0..=steps).flat_map(move |step| {
        WAYS.into_iter().flat_map(move |ways| {
            NOTICES.into_iter().flat_map(move |notice| {
                [OnTheWay::Lost, OnTheWay::Late].into_iter().map(move |on_the_way| Plan { cut: Some(Cut { step, ways, notice, on_the_way }), ..plan })
            })
        })
    })
}

#[test]
fn without_a_cut_the_guest_arrives_or_stays() {
    for plan in quiet_plans() {
        let world = World::run(plan);
        let owner = if plan.resume == Resume::Fails { GuestOwner::Source } else { GuestOwner::Destination };
        assert_eq!(world.source.unwrap().owner(), owner, "{plan:?}");
    }
}

#[test]
fn a_cut_anywhere_leaves_exactly_one_owner_or_a_recorded_doubt() {
    let (mut scenarios, mut steps) = (0, 0);
    let mut ends = [0; 4];
    for plan in quiet_plans().flat_map(cuts_of) {
        for reconnect in RECONNECTS {
            let world = World::run(Plan { reconnect, ..plan });
            scenarios += 1;
            steps += world.steps;
            ends[world.source.map_or(3, |source| source.owner() as usize)] += 1;
        }
    }
    println!("{scenarios} scenarios, {steps} steps; source {}, destination {}, in doubt {}, source dead {}", ends[0], ends[1], ends[2], ends[3]);
    assert!(scenarios > 50_000 && ends.iter().all(|count| *count > 1000), "the enumeration has lost its point: {scenarios}, {ends:?}");
}

#[test]
fn a_doubt_is_settled_when_the_destination_can_be_asked_at_last() {
    let mut settled = [0; 2];
    for plan in quiet_plans().flat_map(cuts_of) {
        let mut world = World::run(Plan { reconnect: Reconnect::Never, ..plan });
        let alive = plan.cut.is_some_and(|cut| matches!(cut.ways, Ways::Forth | Ways::Back | Ways::Both));
        if alive && matches!(world.source_end, Some(SourceEnd::InDoubt { .. })) {
            world.settle();
            settled[usize::from(world.destination_runs)] += 1;
        }
    }
    println!("{} stayed at the source, {} had gone", settled[0], settled[1]);
    assert!(settled.iter().all(|count| *count > 100), "the enumeration has lost its point: {settled:?}");
}

#[test]
fn calling_it_off_at_any_step_is_safe_with_and_without_a_cut() {
    let mut scenarios = 0;
    for plan in quiet_plans() {
        let steps = World::run(plan).steps;
        for meddle in (0..=steps).flat_map(|step| [(step, Meddle::SourceAborts), (step, Meddle::DestinationFails)]) {
            let plan = Plan { meddle: Some(meddle), ..plan };
            World::run(plan);
            for step in 0..=steps {
                for ways in [Ways::Forth, Ways::Back, Ways::Both] {
                    let cut = Cut { step, ways, notice: Notice::Nobody, on_the_way: OnTheWay::Late };
                    World::run(Plan { cut: Some(cut), ..plan });
                    scenarios += 1;
                }
            }
        }
    }
    println!("{scenarios} scenarios");
}
