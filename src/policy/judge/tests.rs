//! Tables of rounds and what is decided after them.

use super::*;
use crate::policy::{Bottleneck, DirtyThreshold, VolumeLimit};
use crate::units::{BytesPerSec, PagesPerSec};

const GUEST: ByteCount = ByteCount(1 << 30);

/// A round of one second that moved 10 000 pages and left `dirty`.
fn round(index: u32, dirty: u64) -> RoundFacts {
    RoundFacts {
        index,
        elapsed: Duration::from_secs(u64::from(index) + 1),
        duration: Duration::from_secs(1),
        moving: Duration::from_secs(1),
        pages: PageCount(10_000),
        first: if index == 0 { PageCount(10_000) } else { PageCount(0) },
        empty: PageCount(0),
        wire_bytes: ByteCount(40_000_000),
        arrived: ByteCount(40_000_000),
        bottleneck: Bottleneck::Link,
        memory_sent_total: PageCount(10_000 * (u64::from(index) + 1)).bytes(),
        dirty_after: PageCount(dirty),
        unsent: PageCount(0),
        never_sent: PageCount(0),
        fixed_cost: Duration::from_millis(20),
    }
}

fn decide(limits: Limits, dirty: &[u64]) -> Vec<String> {
    let mut policy = Policy::new(limits, GUEST);
    (0..).zip(dirty).map(|(index, &dirty)| policy.after_round(&round(index, dirty)).to_string()).collect()
}

#[test]
fn each_limit_stops_pre_copy_with_its_own_reason() {
    let base = Limits { plateau: Plateau::Ignore, ..Limits::default() };
    let table: [(&str, Limits, &[u64], &str); 8] = [
        ("so few pages are not worth a round", base, &[50], "stop-and-copy: dirty-threshold"),
        ("2800 pages fit: they take 280 ms and 20 more", base, &[2800], "round: tightening"),
        ("2801 do not fit", base, &[2801], "round: converging"),
        ("the last round allowed", Limits { max_rounds: 2, ..base }, &[9000, 9000], "stop-and-copy: max-rounds"),
        (
            "the round that passes the volume",
            Limits { max_volume: VolumeLimit::Bytes(PageCount(19_999).bytes()), ..base },
            &[9000, 9000],
            "stop-and-copy: max-volume",
        ),
        (
            "exactly the volume is allowed",
            Limits { max_volume: VolumeLimit::Bytes(PageCount(20_000).bytes()), ..base },
            &[9000, 9000],
            "round: converging",
        ),
        ("the wall clock", Limits { timeout: Some(Duration::from_secs(2)), ..base }, &[9000, 9000], "stop-and-copy: timeout"),
        ("abort if told so", Limits { max_rounds: 2, on_limit: OnLimit::Abort, ..base }, &[9000, 9000], "abort: max-rounds"),
    ];
    for (name, limits, dirty, last) in table {
        let decisions = decide(limits, dirty);
        assert_eq!(decisions.last().map(String::as_str), Some(last), "{name}");
        assert!(decisions[..decisions.len() - 1].iter().all(|decision| decision == "round: converging"), "{name}: {decisions:?}");
    }
}

#[test]
fn few_pages_that_take_long_are_stopped_for_only_if_asked() {
    // A hundred pages a second: 40 take 400 ms, more than the limit, and 20 take 200.
    let slow = |index, dirty| {
        let bytes = PageCount(100).bytes();
        RoundFacts { pages: PageCount(100), wire_bytes: bytes, arrived: bytes, first: PageCount(0), ..round(index, dirty) }
    };
    let decide = |dirty_threshold, dirty: &[u64]| {
        let mut policy = Policy::new(Limits { dirty_threshold, ..Limits::default() }, GUEST);
        (0..).zip(dirty).map(|(index, &dirty)| policy.after_round(&slow(index, dirty)).to_string()).collect::<Vec<_>>()
    };
    let (few, fifty) = (DirtyThreshold::Few, DirtyThreshold::Pages(PageCount(50)));
    assert_eq!(decide(fifty, &[40]), ["stop-and-copy: dirty-threshold"]);
    assert_eq!(decide(few, &[40, 20]), ["round: converging", "stop-and-copy: dirty-threshold"]);
    assert_eq!(decide(few, &[40, 40, 40, 40]).last().unwrap(), "stop-and-copy: plateau");
    assert_eq!(decide(few, &[0]), ["stop-and-copy: dirty-threshold"]);
    let after_pause = |dirty_threshold| {
        let mut policy = Policy::new(Limits { dirty_threshold, ..Limits::default() }, GUEST);
        assert_eq!(policy.after_round(&slow(0, 20)).to_string(), "stop-and-copy: dirty-threshold");
        let facts = PauseFacts { remaining: PageCount(40), never_sent: PageCount(0), paused_for: Duration::ZERO, fixed_cost: Duration::ZERO };
        policy.after_pause(&facts).to_string()
    };
    assert_eq!((after_pause(fifty).as_str(), after_pause(few).as_str()), ("stop-and-copy: dirty-threshold", "round: over-budget"));
}

#[test]
fn it_is_known_beforehand_which_round_may_be_the_last() {
    let volume = |pages| Limits { max_volume: VolumeLimit::Bytes(PageCount(pages).bytes()), ..Limits::default() };
    let time = |millis| Limits { timeout: Some(Duration::from_millis(millis)), ..Limits::default() };
    let post_copy = |rounds| Limits { post_copy: PostCopy::After(rounds), ..Limits::default() };
    // Round 1 begins after a second, with 5000 pages, which takes half a second.
    for (name, limits, expected) in [
        ("no limit is near", Limits::default(), false),
        ("rounds", Limits { max_rounds: 2, ..Limits::default() }, true),
        ("one more round", Limits { max_rounds: 3, ..Limits::default() }, false),
        ("volume", volume(14_999), true),
        ("exactly the volume", volume(15_000), false),
        ("time", time(1500), true),
        ("more time", time(1501), false),
        ("post-copy after it", post_copy(2), true),
        ("post-copy later", post_copy(3), false),
    ] {
        let mut policy = Policy::new(limits, GUEST);
        let _ = policy.after_round(&round(0, 5000));
        let sent = PageCount(10_000).bytes();
        assert_eq!(policy.may_end_with(1, PageCount(5000), sent, Duration::from_secs(1)), expected, "{name}");
    }
}

#[test]
fn a_round_that_converges_at_a_limit_is_not_aborted() {
    let limits = Limits { max_rounds: 1, on_limit: OnLimit::Abort, ..Limits::default() };
    assert_eq!(decide(limits, &[10]), ["stop-and-copy: dirty-threshold"]);
}

#[test]
fn two_flat_rounds_are_a_plateau_from_round_three_on() {
    let stop = "stop-and-copy: plateau";
    let go = "round: converging";
    let table: [(&[u64], &[&str]); 4] = [
        (&[9000, 9000, 9000, 9000], &[go, go, go, stop]),
        (&[9000, 8000, 7000, 6000, 5900, 5800], &[go, go, go, go, go, stop]),
        (&[9000, 9000, 8000, 7900, 7000, 6000], &[go; 6]),
        (&[9000, 8000, 8900, 9100], &[go, go, go, stop]),
    ];
    for (dirty, expected) in table {
        assert_eq!(decide(Limits::default(), dirty), expected, "{dirty:?}");
    }
}

#[test]
fn the_cold_migration_stops_before_anything_is_sent() {
    let mut policy = Policy::new(Limits { max_rounds: 0, on_limit: OnLimit::Abort, ..Limits::default() }, GUEST);
    assert_eq!(policy.start().to_string(), "stop-and-copy: max-rounds");
    let pause = PauseFacts { paused_for: Duration::ZERO, remaining: GUEST.pages(), never_sent: PageCount(0), fixed_cost: Duration::ZERO };
    assert_eq!(policy.after_pause(&pause).decision, Decision::StopAndCopy, "a cold stop promised nothing");
}

#[test]
fn limits_can_change_while_it_runs() {
    let mut policy = Policy::new(Limits::default(), GUEST);
    assert_eq!(policy.after_round(&round(0, 9000)).decision, Decision::Round);
    policy.set_limits(Limits { downtime_limit: Duration::from_secs(1), ..Limits::default() });
    assert_eq!(policy.after_round(&round(1, 9000)).to_string(), "stop-and-copy: downtime-limit");
}

#[test]
fn a_pause_that_would_break_its_promise_is_taken_back_a_few_times() {
    // So little slower than the link that short rounds would not help.
    let mut policy = Policy::new(Limits { downtime_limit: Duration::from_secs(1), ..Limits::default() }, GUEST);
    let fits = PauseFacts {
        paused_for: Duration::from_millis(5),
        remaining: PageCount(8000),
        never_sent: PageCount(0),
        fixed_cost: Duration::from_millis(20),
    };
    let too_much = PauseFacts { remaining: PageCount(12_000), ..fits };
    assert_eq!(policy.after_round(&round(0, 8000)).to_string(), "stop-and-copy: downtime-limit");
    assert_eq!(policy.after_pause(&fits).to_string(), "stop-and-copy: downtime-limit");
    for index in 1..=MAX_ESCAPES {
        assert_eq!(policy.after_round(&round(index, 8000)).decision, Decision::StopAndCopy);
        assert_eq!(policy.after_pause(&too_much).to_string(), "round: over-budget");
    }
    assert_eq!(policy.after_round(&round(9, 8000)).decision, Decision::StopAndCopy);
    assert_eq!(policy.clone().after_pause(&too_much).to_string(), "stop-and-copy: over-budget", "bounded, and said");
    policy.set_limits(Limits { on_limit: OnLimit::Abort, ..*policy.limits() });
    assert_eq!(policy.after_pause(&too_much).to_string(), "abort: over-budget");
}

#[test]
fn a_stop_at_a_limit_promises_nothing_and_is_not_taken_back() {
    let mut policy = Policy::new(Limits { max_rounds: 1, ..Limits::default() }, GUEST);
    assert_eq!(policy.after_round(&round(0, 9000)).to_string(), "stop-and-copy: max-rounds");
    let pause = PauseFacts { paused_for: Duration::ZERO, remaining: PageCount(9000), never_sent: PageCount(0), fixed_cost: Duration::ZERO };
    assert_eq!(policy.after_pause(&pause).to_string(), "stop-and-copy: max-rounds");
}

#[test]
fn a_verdict_carries_the_numbers_behind_it() {
    let verdict = Policy::new(Limits::default(), GUEST).after_round(&round(0, 5000));
    assert_eq!(verdict.expected_downtime, Duration::from_millis(520));
    assert_eq!((verdict.page_rate, verdict.dirty_rate), (PagesPerSec(10_000.0), PagesPerSec(5000.0)));
    assert_eq!(verdict.bandwidth, BytesPerSec(40e6));
}

#[test]
fn a_round_that_moved_nothing_promises_nothing() {
    let empty = RoundFacts { pages: PageCount(0), wire_bytes: ByteCount(0), arrived: ByteCount(0), ..round(0, 500) };
    let verdict = Policy::new(Limits::default(), GUEST).after_round(&empty);
    assert_eq!((verdict.decision, verdict.expected_downtime), (Decision::Round, Duration::MAX));
}

#[test]
fn a_guest_that_works_in_bursts_is_stopped_between_them() {
    let (go, wait) = ("round: converging", "round: oscillating");
    let low = "stop-and-copy: local-minimum";
    let table: [(&str, &[u64], &[&str]); 3] = [
        ("waits for the next low", &[9000, 4000, 9000, 8500, 4200], &[go, go, go, wait, low]),
        ("is at a low already", &[9000, 4000, 9000, 4100], &[go, go, go, low]),
        (
            "does not wait for ever",
            &[9000, 4000, 9000, 9000, 9000, 9000, 9000, 9000],
            &[go, go, go, wait, wait, wait, wait, "stop-and-copy: plateau"],
        ),
    ];
    for (name, dirty, expected) in table {
        assert_eq!(decide(Limits::default(), dirty), expected, "{name}");
    }
    let abort = Limits { on_limit: OnLimit::Abort, ..Limits::default() };
    assert_eq!(decide(abort, &[9000, 4000, 9000, 8500]).last().unwrap(), "abort: plateau", "no low would make it fit");
    for on_limit in [OnLimit::Abort, OnLimit::Throttle] {
        let after_a_burst = decide(Limits { on_limit, ..Limits::default() }, &[9000, 7000, 5000, 9000, 6500, 4000, 2801, 2800]);
        assert_eq!(after_a_burst[3..], [go, go, go, go, "round: tightening"], "{on_limit:?}: it shrinks again");
    }
    for on_limit in [OnLimit::Stop, OnLimit::Abort, OnLimit::Throttle] {
        let past_the_old_low = decide(Limits { on_limit, ..Limits::default() }, &[9000, 5000, 4000, 9000, 6000, 4200, 2800]);
        assert_eq!(past_the_old_low[5..], [go, "round: tightening"], "{on_limit:?}: it shrinks as it did before");
    }
}

/// Rounds at 100 000 pages a second, each as long as the pages that the one before left take; each leaves `ratio` of them.
fn converge(limits: Limits, mut pages: u64, ratio: f64) -> Vec<String> {
    let mut policy = Policy::new(limits, GUEST);
    let mut elapsed = Duration::ZERO;
    let mut decisions = Vec::new();
    for index in 0..40 {
        let duration = PagesPerSec(1e5).time_for(PageCount(pages));
        elapsed += duration;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
        let dirty = (pages as f64 * ratio) as u64;
        let bytes = PageCount(pages).bytes();
        let facts = RoundFacts {
            elapsed,
            duration,
            moving: duration,
            pages: PageCount(pages),
            wire_bytes: bytes,
            arrived: bytes,
            memory_sent_total: bytes,
            fixed_cost: Duration::from_millis(2),
            ..round(index, dirty)
        };
        let verdict = policy.after_round(&facts);
        decisions.push(verdict.to_string());
        if verdict.decision != Decision::Round {
            break;
        }
        pages = dirty;
    }
    decisions
}

#[test]
fn a_stop_within_the_limit_is_made_shorter_as_long_as_that_is_cheap() {
    let tight = "round: tightening";
    // 200 000 pages in 2 s; then 20 000 (200 ms), 2000, 200, 20.
    assert_eq!(converge(Limits::default(), 200_000, 0.1), [tight, tight, tight, "stop-and-copy: dirty-threshold"]);
    // 60 000 (600 ms), 18 000 (180 ms, price 54 ms), ...; 48 pages at last.
    let decisions = converge(Limits::default(), 200_000, 0.3);
    assert_eq!((decisions[0].as_str(), decisions[1].as_str()), ("round: converging", tight));
    assert_eq!(decisions.last().unwrap(), "stop-and-copy: dirty-threshold");
    // Half as fast as the link: a round of 250 ms would cost 125 ms of a migration of 4 s, and each one after it half of that.
    let decisions = converge(Limits::default(), 200_000, 0.5);
    assert_eq!(decisions.last().unwrap(), "stop-and-copy: downtime-limit");
    assert!(decisions.iter().filter(|decision| *decision == tight).count() <= 8, "{decisions:?}");
    // As fast as nearly the link: rounds would not shrink it.
    let calm = Limits { downtime_limit: Duration::from_secs(3), ..Limits::default() };
    assert_eq!(converge(calm, 200_000, 0.8), ["stop-and-copy: downtime-limit"]);
}

#[test]
fn a_hard_limit_ends_tightening() {
    let limits = Limits { max_rounds: 2, ..Limits::default() };
    assert_eq!(converge(limits, 200_000, 0.1), ["round: tightening", "stop-and-copy: downtime-limit"]);
}

#[test]
fn a_cheaper_remainder_is_no_plateau() {
    // As many pages each time, but the second time they cost a tenth.
    let mut policy = Policy::new(Limits { downtime_limit: Duration::from_millis(10), ..Limits::default() }, GUEST);
    let cheap = |index, millis| RoundFacts {
        duration: Duration::from_millis(millis),
        moving: Duration::from_millis(millis),
        wire_bytes: ByteCount(4_000_000),
        arrived: ByteCount(4_000_000),
        ..round(index, 10_000)
    };
    let decisions: Vec<String> =
        [round(0, 10_000), round(1, 10_000), cheap(2, 100), cheap(3, 100)].iter().map(|facts| policy.after_round(facts).to_string()).collect();
    assert_eq!(decisions, ["round: converging"; 4]);
    assert!(policy.estimator().bandwidth() >= BytesPerSec(39e6), "{:?}", policy.estimator());
}

#[test]
fn a_guest_that_does_not_converge_is_slowed_down_where_that_is_wanted() {
    let limits = Limits { on_limit: OnLimit::Throttle, ..Limits::default() };
    // 9000 pages a second against 10 000.
    let decisions = decide(limits, &[9000, 9000, 9000, 9000, 5000, 2000]);
    assert_eq!(decisions[3], "throttle to 56 %: plateau");
    assert_eq!(decisions[4..], ["round: converging", "round: tightening"]);
    // A hard limit is no end either, as long as the throttle has not had its chance.
    assert_eq!(decide(Limits { max_rounds: 1, ..limits }, &[9000, 5000]), ["throttle to 56 %: max-rounds", "round: converging"]);
    // Bounded.
    let decisions = decide(limits, &[9000; 40]);
    let end = decisions.iter().position(|decision| decision == "stop-and-copy: plateau").expect("an end");
    assert!((10..20).contains(&end), "{decisions:?}");
}

#[test]
fn a_guest_that_cannot_be_slowed_down_is_stopped() {
    let mut policy = Policy::new(Limits { on_limit: OnLimit::Throttle, max_rounds: 1, ..Limits::default() }, GUEST);
    let verdict = policy.after_round(&round(0, 9000));
    assert_eq!(verdict.decision, Decision::Throttle);
    let instead = policy.cannot_throttle(verdict);
    assert_eq!(instead.to_string(), "stop-and-copy: max-rounds");
    assert_eq!(instead.share, crate::units::RunShare::FULL);
}

#[test]
fn counted_rounds_are_sent_whatever_they_leave_and_then_the_guest_moves() {
    let after = |rounds| Limits { post_copy: PostCopy::After(rounds), ..Limits::default() };
    assert_eq!(Policy::new(after(0), GUEST).start().to_string(), "post-copy: as-asked");
    assert_eq!(Policy::new(after(2), GUEST).with_sample().start().to_string(), "round: as-asked");
    let (go, switch) = ("round: as-asked", "post-copy: as-asked");
    assert_eq!(decide(after(1), &[9000]), [switch]);
    assert_eq!(decide(after(3), &[10, 0, 9000]), [go, go, switch], "a guest that would fit is no exception");
    assert_eq!(decide(after(6), &[9000; 6]), [go, go, go, go, go, switch], "nor is one that would not");
    let in_time = Limits { timeout: Some(Duration::from_secs(2)), ..after(3) };
    assert_eq!(decide(in_time, &[9000, 9000]), [go, "post-copy: timeout"], "a limit comes first");
    assert_eq!(decide(Limits { on_limit: OnLimit::Abort, ..in_time }, &[9000, 9000]), [go, "abort: timeout"]);
}

#[test]
fn at_a_limit_post_copy_takes_the_place_of_a_stop() {
    let at_limit = Limits { on_limit: OnLimit::PostCopy, ..Limits::default() };
    let auto = Limits { post_copy: PostCopy::Auto, ..Limits::default() };
    for limits in [at_limit, auto] {
        assert_eq!(Policy::new(Limits { max_rounds: 0, ..limits }, GUEST).start().to_string(), "post-copy: max-rounds");
        assert_eq!(decide(Limits { max_rounds: 1, ..limits }, &[9000]), ["post-copy: max-rounds"]);
        assert_eq!(decide(Limits { max_rounds: 1, ..limits }, &[10]), ["stop-and-copy: dirty-threshold"], "what fits is stopped for");
        assert_eq!(decide(Limits { max_rounds: 1, ..limits }, &[2800]), ["stop-and-copy: downtime-limit"]);
    }
    assert_eq!(decide(at_limit, &[9000; 4])[3], "post-copy: plateau");
    assert_eq!(decide(at_limit, &[9000, 4000, 9000, 8500])[3], "post-copy: plateau", "there is no need for a low");
}

#[test]
fn a_hopeless_guest_is_switched_as_soon_as_that_is_known() {
    let auto = Limits { post_copy: PostCopy::Auto, ..Limits::default() };
    // 16 384 pages, written all over in 0.3 s, take 1.6 s; pages that were sent before may cost less, and it is round 1 that tells.
    let mut policy = Policy::new(auto, GUEST);
    policy.set_curve(DirtyCurve::sweep(PagesPerSec(50_000.0), PageCount(16_384)));
    assert_eq!(policy.after_round(&round(0, 16_384)).to_string(), "round: converging");
    assert_eq!(policy.after_round(&round(1, 16_384)).to_string(), "post-copy: not-converging");
    // A sample tells as well.
    let mut policy = Policy::new(auto, GUEST).with_sample();
    policy.set_curve(DirtyCurve::sweep(PagesPerSec(50_000.0), PageCount(16_384)));
    assert_eq!(policy.after_round(&round(0, 16_384)).to_string(), "round: sampling");
    let sample = RoundFacts {
        duration: Duration::from_millis(51),
        moving: Duration::from_millis(51),
        pages: SAMPLE_PAGES,
        wire_bytes: SAMPLE_PAGES.bytes(),
        arrived: SAMPLE_PAGES.bytes(),
        ..round(1, 16_384)
    };
    assert_eq!(policy.clone().after_round(&sample).to_string(), "post-copy: not-converging");
    // Differences that cost next to nothing change everything.
    let cheap = RoundFacts { moving: Duration::from_millis(1), wire_bytes: ByteCount(5000), arrived: ByteCount(5000), ..sample };
    assert_ne!(policy.after_round(&RoundFacts { bottleneck: Bottleneck::Processor, ..cheap }).decision, Decision::PostCopy);
}

#[test]
fn what_is_left_after_the_pause_decides_how_the_guest_moves() {
    let fits = PauseFacts { paused_for: Duration::ZERO, remaining: PageCount(1000), never_sent: PageCount(0), fixed_cost: Duration::from_millis(20) };
    let too_much = PauseFacts { remaining: PageCount(9000), ..fits };
    let stopped = |limits: Limits, dirty: u64, expected: &str| {
        let mut policy = Policy::new(limits, GUEST);
        assert_eq!(policy.after_round(&round(0, dirty)).to_string(), expected);
        policy
    };
    let auto = Limits { post_copy: PostCopy::Auto, ..Limits::default() };
    for limits in [auto, Limits { on_limit: OnLimit::PostCopy, ..Limits::default() }] {
        let few = Limits { dirty_threshold: DirtyThreshold::Pages(PageCount(3000)), ..limits };
        let policy = || stopped(few, 2900, "stop-and-copy: dirty-threshold");
        assert_eq!(policy().after_pause(&fits).to_string(), "stop-and-copy: dirty-threshold");
        assert_eq!(policy().after_pause(&too_much).to_string(), "post-copy: over-budget", "at once, not after three more rounds");
        let policy = || stopped(Limits { max_rounds: 1, ..limits }, 9000, "post-copy: max-rounds");
        assert_eq!(policy().after_pause(&too_much).to_string(), "post-copy: max-rounds");
        assert_eq!(policy().after_pause(&fits).to_string(), "stop-and-copy: downtime-limit", "it fits after all");
    }
    let mut asked = stopped(Limits { post_copy: PostCopy::After(1), ..Limits::default() }, 9000, "post-copy: as-asked");
    assert_eq!(asked.after_pause(&fits).to_string(), "post-copy: as-asked");
}

#[test]
fn a_destination_that_cannot_take_a_guest_without_its_memory_is_not_asked_to() {
    for (limits, expected) in [
        (Limits { post_copy: PostCopy::Auto, ..Limits::default() }, "stop-and-copy: plateau"),
        (Limits { post_copy: PostCopy::After(0), ..Limits::default() }, "stop-and-copy: plateau"),
        (Limits { on_limit: OnLimit::PostCopy, ..Limits::default() }, "stop-and-copy: plateau"),
        (Limits { post_copy: PostCopy::After(1), on_limit: OnLimit::Abort, ..Limits::default() }, "abort: plateau"),
    ] {
        let mut policy = Policy::new(limits, GUEST).without_post_copy();
        assert_eq!(policy.start().decision, Decision::Round);
        let last = (0..4).map(|index| policy.after_round(&round(index, 9000)).to_string()).last();
        assert_eq!(last.as_deref(), Some(expected), "{limits:?}");
    }
}
