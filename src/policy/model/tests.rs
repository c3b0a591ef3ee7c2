//! The model against the algorithm as it is printed, and against its equations.

use proptest::prelude::*;

use super::*;
use crate::policy::{DirtyThreshold, OnLimit, Plateau, VolumeLimit};

const MIB: u64 = 1 << 20;

/// The thresholds of the algorithm and nothing else.
fn plain(max_rounds: u32, max_volume: VolumeLimit, dirty_threshold: u64) -> Limits {
    Limits {
        max_rounds,
        max_volume,
        dirty_threshold: DirtyThreshold::Pages(PageCount(dirty_threshold)),
        downtime_limit: Duration::ZERO,
        timeout: None,
        plateau: Plateau::Ignore,
        on_limit: OnLimit::Stop,
        post_copy: PostCopy::Never,
    }
}

fn input(memory_mib: u64, dirty_rate: f64, bandwidth: f64, limits: Limits) -> ModelInput {
    ModelInput {
        memory: ByteCount(memory_mib * MIB),
        dirty_rate: PagesPerSec(dirty_rate),
        bandwidth: BytesPerSec(bandwidth),
        working_set: None,
        fixed_cost: Duration::ZERO,
        limits,
    }
}

/// The algorithm as it is printed, with its omissions put right, in whole pages: rounds, `v_mig`, `t_mig`, `t_down`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates at both ends")]
fn listing(input: &ModelInput) -> (u32, ByteCount, Duration, Duration) {
    let limits = input.limits;
    let v_th = limits.max_volume.for_guest(input.memory).0;
    let v_mem = input.memory.pages().0;
    let (mut v, mut rounds, mut v_mig, mut t_mig) = (v_mem, 0, 0, Duration::ZERO);
    for _ in 0..limits.max_rounds {
        let t = PagesPerSec(input.bandwidth.0 / 4096.0).time_for(PageCount(v));
        t_mig += t;
        v_mig += v;
        rounds += 1;
        v = ((input.dirty_rate.0 * t.as_secs_f64() - ROUNDING).ceil() as u64).min(v_mem);
        if v_mig * 4096 > v_th || v <= limits.dirty_threshold.pages().0 {
            break;
        }
    }
    let t_down = PagesPerSec(input.bandwidth.0 / 4096.0).time_for(PageCount(v));
    (rounds, ByteCount((v_mig + v) * 4096), t_mig + t_down, t_down)
}

prop_compose! {
    fn any_plain_input()(
        memory in 1_u64..4096,
        dirty_rate in prop_oneof![Just(0.0), 0.0..1e6, 1e6..1e12],
        bandwidth in 1e4..1e11,
        max_rounds in 0_u32..40,
        times in 0.0..20.0,
        threshold in 0_u64..5000,
    ) -> ModelInput {
        input(memory, dirty_rate, bandwidth, plain(max_rounds, VolumeLimit::Times(times), threshold))
    }
}

prop_compose! {
    fn any_input()(
        plain in any_plain_input(),
        working_set in proptest::option::of(0_u64..100_000),
        fixed_ms in 0_u64..50,
        downtime_ms in 0_u64..1000,
        timeout_s in proptest::option::of(0_u64..100),
        watch in any::<bool>(),
        stop in any::<bool>(),
    ) -> ModelInput {
        ModelInput {
            working_set: working_set.map(PageCount),
            fixed_cost: Duration::from_millis(fixed_ms),
            limits: Limits {
                downtime_limit: Duration::from_millis(downtime_ms),
                timeout: timeout_s.map(Duration::from_secs),
                plateau: if watch { Plateau::Watch } else { Plateau::Ignore },
                on_limit: if stop { OnLimit::Stop } else { OnLimit::Abort },
                ..plain.limits
            },
            ..plain
        }
    }
}

/// Equal but for the nanosecond that each round may be rounded by.
fn close(a: Duration, b: Duration) -> bool {
    a.abs_diff(b) <= Duration::from_nanos(50) + a.mul_f64(1e-12)
}

proptest! {
    #[test]
    fn the_model_is_the_printed_algorithm(input in any_plain_input()) {
        let (rounds, moved, total, downtime) = listing(&input);
        let predicted = predict(&input);
        prop_assert_eq!(predicted.rounds.len(), rounds as usize);
        prop_assert_eq!(predicted.moved, moved);
        prop_assert_eq!(predicted.total, total);
        prop_assert_eq!(predicted.downtime, downtime);
    }

    #[test]
    fn equations_hold_for_any_guest_and_limits(input in any_input()) {
        let predicted = predict(&input);
        let stops = predicted.decision == Decision::StopAndCopy;
        let down_once = if stops { input.fixed_cost } else { Duration::ZERO };
        // 4.1
        prop_assert!(close(predicted.total.saturating_sub(down_once), input.bandwidth.time_for(predicted.moved)));
        // 4.2
        let memory = input.memory.pages();
        let most = input.working_set.unwrap_or(memory).min(memory);
        let mut expected = memory;
        for round in &predicted.rounds {
            prop_assert_eq!(round.pages, expected);
            prop_assert!(close(round.duration, input.bandwidth.time_for(round.pages.bytes())));
            let dirtied = input.dirty_rate.0 * round.duration.as_secs_f64();
            prop_assert!(round.dirty_after <= most);
            let difference = round.dirty_after.0 as f64 - dirtied.min(most.0 as f64);
            prop_assert!((-1e-2..=1.0).contains(&difference), "{} pages off", difference);
            expected = round.dirty_after;
        }
        // 4.3
        prop_assert_eq!(predicted.moved, predicted.rounds.iter().map(|round| round.pages).sum::<PageCount>().bytes() + predicted.remainder.bytes());
        // 4.4
        if stops {
            prop_assert_eq!(predicted.remainder, expected);
            prop_assert!(close(predicted.downtime - input.fixed_cost, input.bandwidth.time_for(expected.bytes())));
        } else {
            prop_assert_eq!(predicted.downtime, Duration::ZERO);
        }
    }

    #[test]
    fn no_guest_leaves_the_bounds(input in any_input()) {
        let (predicted, bounds) = (predict(&input), input.bounds());
        let slack = Duration::from_nanos(50);
        prop_assert!(predicted.total <= bounds.most_total + slack + bounds.most_total.mul_f64(1e-12));
        prop_assert!(predicted.downtime <= bounds.most_downtime + slack);
        if predicted.decision == Decision::StopAndCopy {
            prop_assert!(predicted.total + slack >= bounds.least_total);
            prop_assert!(predicted.downtime >= bounds.least_downtime);
        }
    }

    #[test]
    fn a_stop_for_the_downtime_limit_keeps_it(input in any_input()) {
        let predicted = predict(&input);
        if predicted.stopped_by == Reason::DowntimeLimit {
            prop_assert!(predicted.downtime <= input.limits.downtime_limit + Duration::from_micros(1));
        }
    }
}

#[test]
fn an_idle_guest_moves_its_memory_once() {
    let predicted = predict(&input(1024, 0.0, 125e6, plain(30, VolumeLimit::Times(10.0), 50)));
    assert_eq!((predicted.rounds.len(), predicted.moved), (1, ByteCount(1024 * MIB)));
    assert_eq!((predicted.downtime, predicted.stopped_by), (Duration::ZERO, Reason::DirtyThreshold));
}

#[test]
fn a_guest_that_dirties_everything_moves_it_in_every_round_and_once_more() {
    let predicted = predict(&input(64, 1e9, 125e6, plain(7, VolumeLimit::Times(100.0), 50)));
    assert_eq!((predicted.rounds.len(), predicted.moved), (7, ByteCount(8 * 64 * MIB)));
    assert_eq!(predicted.stopped_by, Reason::MaxRounds);
}

#[test]
fn rounds_shrink_by_the_ratio_of_dirty_rate_to_bandwidth() {
    // 1 GiB at 40 960 pages/s, 4096 pages/s dirtied: a tenth each round.
    let predicted = predict(&input(1024, 4096.0, 40_960.0 * 4096.0, plain(30, VolumeLimit::Times(10.0), 50)));
    let pages: Vec<u64> = predicted.rounds.iter().map(|round| round.pages.0).collect();
    assert_eq!(pages, [262_144, 26_215, 2_622, 263]);
    assert_eq!(predicted.remainder, PageCount(27));
}

#[test]
fn no_rounds_is_the_cold_migration() {
    let predicted = predict(&input(1024, 1e4, 125e6, plain(0, VolumeLimit::Times(10.0), 50)));
    assert_eq!((predicted.rounds.len(), predicted.remainder), (0, ByteCount(1024 * MIB).pages()));
    assert_eq!(predicted.total, predicted.downtime);
}

#[test]
fn a_working_set_that_is_dirtied_faster_than_it_moves_is_a_plateau() {
    let limits = Limits { downtime_limit: Duration::from_millis(10), ..Limits::default() };
    let busy = ModelInput { working_set: Some(PageCount(4096)), ..input(1024, 1e6, 125e6, limits) };
    let predicted = predict(&busy);
    assert_eq!((predicted.stopped_by, predicted.rounds.len()), (Reason::Plateau, 4));
}

#[test]
fn limits_without_end_still_end() {
    let limits = plain(u32::MAX, VolumeLimit::Times(f64::INFINITY), 0);
    let predicted = predict(&input(1, 1e12, 1e9, limits));
    assert_eq!((predicted.rounds.len(), predicted.stopped_by), (MAX_ROUNDS as usize, Reason::MaxRounds));
}

#[test]
fn a_link_that_moves_nothing_takes_for_ever() {
    let predicted = predict(&input(1, 1.0, 0.0, plain(3, VolumeLimit::Times(10.0), 0)));
    assert_eq!(predicted.total, Duration::MAX);
}

#[test]
fn a_measured_guest_is_predicted_by_what_its_pages_cost() {
    // 1 GiB, a quarter of it filled, half compressible; 64 MiB swept at 10 000 pages a second.
    let guest = MeasuredGuest {
        memory: ByteCount(1024 * MIB),
        reach: PageCount(262_144),
        pages: PageCount(65_536),
        first: vec![
            PageCost { bytes: 4000.0, processors: PagesPerSec(900_000.0) },
            PageCost { bytes: 2500.0, processors: PagesPerSec(500_000.0) },
            PageCost { bytes: 2400.0, processors: PagesPerSec(40_000.0) },
        ],
        again_bytes: 25.0,
        curve: DirtyCurve::sweep(PagesPerSec(10_000.0), PageCount(16_384)),
        round_cost: Duration::from_millis(1),
    };
    let plan = predict_measured(&guest, BytesPerSec(125e6), Limits::default(), Duration::from_millis(2));
    // 1.31 s for round 0, and 13 107 pages dirtied meanwhile take 26 ms.
    assert_eq!(plan.rounds[0].dirty_after, PageCount(13_118));
    assert!((1.34..1.36).contains(&plan.total.as_secs_f64()), "{plan:?}");
    assert!(plan.downtime < Duration::from_millis(3), "{plan:?}");
    assert_eq!(plan.stopped_by, Reason::DirtyThreshold);
    // A link that is faster than the processors pack takes pages as they are.
    let over = |bytes_per_s| guest.first_over(BytesPerSec(bytes_per_s)).bytes;
    assert!([(1e6, 2400.0), (125e6, 2500.0), (1e10, 4000.0)].iter().all(|&(link, bytes)| (over(link) - bytes).abs() < 1e-9));
}

#[test]
fn the_rest_is_predicted_as_the_whole_would_be() {
    let whole = input(1024, 4096.0, 40_960.0 * 4096.0, Limits { downtime_limit: Duration::from_millis(10), ..Limits::default() });
    let expected = predict(&whole);
    let first = expected.rounds[0];
    let facts = RoundFacts {
        index: 0,
        elapsed: first.duration,
        duration: first.duration,
        moving: first.duration,
        pages: first.pages,
        first: first.pages,
        empty: PageCount(0),
        wire_bytes: first.pages.bytes(),
        arrived: first.pages.bytes(),
        bottleneck: Bottleneck::Link,
        memory_sent_total: first.pages.bytes(),
        dirty_after: first.dirty_after,
        unsent: PageCount(0),
        never_sent: PageCount(0),
        fixed_cost: Duration::ZERO,
    };
    let mut policy = Policy::new(whole.limits, whole.memory);
    let verdict = policy.after_round(&facts);
    let rest = policy.predict_rest(&facts, verdict, &DirtyCurve::default(), None, Duration::ZERO);
    assert_eq!(rest.rounds, expected.rounds[1..]);
    assert_eq!((rest.total, rest.downtime, rest.moved), (expected.total, expected.downtime, expected.moved));
    // Differences were seen to be small, and what processors make of them was not.
    let cheap = policy.predict_rest(&facts, verdict, &DirtyCurve::default(), Some(41.0), Duration::ZERO);
    let by_pages = |prediction: &Prediction| prediction.rounds[0].duration.as_secs_f64() / prediction.rounds[0].pages.0 as f64;
    assert!((by_pages(&rest) / by_pages(&cheap) / (4096.0 / 41.0) - 1.0).abs() < 0.01, "{cheap:?}");
}

/// 1 Gbit/s, `fixed_ms` of fixed costs, post-copy as the policy sees fit.
fn auto(memory_mib: u64, dirty_rate: f64, working_set: u64, limits: Limits) -> ModelInput {
    let limits = Limits { post_copy: PostCopy::Auto, ..limits };
    ModelInput { working_set: Some(PageCount(working_set)), fixed_cost: Duration::from_millis(5), ..input(memory_mib, dirty_rate, 125e6, limits) }
}

proptest! {
    #[test]
    fn a_guest_that_converges_is_never_switched(
        memory in 64_u64..4096,
        dirty_rate in prop_oneof![0.0..40_000.0_f64, 1e4..1e6_f64],
        working_set in prop_oneof![0_u64..20_000, 0_u64..1_000_000],
        downtime_ms in 10_u64..1000,
    ) {
        let limits = Limits { downtime_limit: Duration::from_millis(downtime_ms), ..Limits::default() };
        let switching = auto(memory, dirty_rate, working_set, limits);
        let alone = predict(&ModelInput { limits, ..switching });
        let predicted = predict(&switching);
        if matches!(alone.stopped_by, Reason::DirtyThreshold | Reason::DowntimeLimit) {
            prop_assert_eq!(predicted.decision, Decision::StopAndCopy, "{:?}\n{:?}", alone, predicted);
        }
        prop_assert!(predicted.downtime <= limits.downtime_limit + switching.fixed_cost);
    }

    #[test]
    fn post_copy_moves_what_is_left_once_and_stands_still_for_the_fixed_cost(plain in any_input(), rounds in 0_u32..10) {
        let limits = Limits { post_copy: PostCopy::After(rounds), max_rounds: 40, max_volume: VolumeLimit::Times(100.0), timeout: None, ..plain.limits };
        let predicted = predict(&ModelInput { limits, ..plain });
        prop_assert_eq!((predicted.decision, predicted.rounds.len()), (Decision::PostCopy, rounds as usize));
        prop_assert_eq!(predicted.downtime, plain.fixed_cost);
        prop_assert!(close(predicted.total - plain.fixed_cost, plain.bandwidth.time_for(predicted.moved)));
        prop_assert!(close(predicted.resume, plain.bandwidth.time_for(predicted.remainder.bytes())));
        prop_assert_eq!(predicted.rounds.last().map_or(plain.memory.pages(), |round| round.dirty_after), predicted.remainder);
    }
}

#[test]
fn a_hopeless_guest_is_switched_after_round_zero_and_a_sample() {
    for working_set in [16_384, 65_536] {
        let predicted = predict(&auto(1024, 100_000.0, working_set, Limits::default()));
        assert_eq!((predicted.decision, predicted.stopped_by), (Decision::PostCopy, Reason::NotConverging));
        assert_eq!(predicted.rounds.iter().map(|round| round.pages.0).collect::<Vec<_>>(), [262_144, SAMPLE_PAGES.0]);
        assert_eq!((predicted.remainder, predicted.downtime), (PageCount(working_set - SAMPLE_PAGES.0), Duration::from_millis(5)));
    }
    // A volume or a time that does not suffice is as hopeless.
    let slow = auto(1024, 15_000.0, 262_144, Limits::default());
    assert_eq!(predict(&slow).decision, Decision::StopAndCopy);
    let late = Limits { timeout: Some(Duration::from_secs(12)), ..slow.limits };
    assert_eq!(predict(&ModelInput { limits: late, ..slow }).stopped_by, Reason::NotConverging);
    let little = Limits { max_volume: VolumeLimit::Times(1.3), ..slow.limits };
    assert_eq!(predict(&ModelInput { limits: little, ..slow }).stopped_by, Reason::NotConverging);
}

#[test]
fn a_measured_guest_pays_full_price_for_pages_that_follow_it() {
    // What is a difference of 1000 bytes in a round is a page of 4096 in post-copy.
    let guest = MeasuredGuest {
        memory: ByteCount(1024 * MIB),
        reach: PageCount(262_144),
        pages: PageCount(131_072),
        first: vec![PageCost { bytes: 4096.0, processors: PagesPerSec(1e9) }],
        again_bytes: 1000.0,
        curve: DirtyCurve::sweep(PagesPerSec(1e6), PageCount(65_536)),
        round_cost: Duration::ZERO,
    };
    let limits = Limits { post_copy: PostCopy::Auto, ..Limits::default() };
    let plan = predict_measured(&guest, BytesPerSec(125e6), limits, Duration::from_millis(3));
    assert_eq!((plan.decision, plan.rounds.len()), (Decision::PostCopy, 2), "65 536 differences take 524 ms");
    assert!(close(plan.resume, BytesPerSec(125e6).time_for(PageCount(65_024).bytes())), "{plan:?}");
}

#[test]
fn a_measured_guest_dirties_no_more_than_it_can_reach() {
    // Whole pages, rewritten at a rate at which a second shows less than a third of them.
    let mut guest = MeasuredGuest {
        memory: ByteCount(1024 * MIB),
        reach: PageCount(65_536),
        pages: PageCount(65_536),
        first: vec![PageCost { bytes: 2950.0, processors: PagesPerSec(1e9) }],
        again_bytes: 4096.0,
        curve: DirtyCurve::default(),
        round_cost: Duration::ZERO,
    };
    guest.curve.add(Duration::from_secs(1), PageCount(20_000));
    let predicted = |guest: &MeasuredGuest| predict_measured(guest, BytesPerSec(62.5e6), Limits::default(), Duration::from_millis(3));
    let plan = predicted(&guest);
    assert!(plan.rounds.iter().all(|round| round.dirty_after <= guest.reach), "{plan:?}");
    assert!(close(plan.downtime, Duration::from_secs_f64(65_536.0 * 4096.0 / 62.5e6 + 0.003)), "{plan:?}");
    let further = MeasuredGuest { reach: PageCount(262_144), ..guest };
    assert!(predicted(&further).downtime > 2 * plan.downtime);
}
