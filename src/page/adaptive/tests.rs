//! Whole migrations in virtual time: a sender, a link and a receiver of given speeds, pages of given ratios.
//!
//! The link and the receiver each have a buffer in front of them, as sockets do, so a slow one shows late.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::units::CHUNK_SIZE;

/// What the methods make of some kind of page: nanoseconds per byte, and what remains.
#[derive(Clone, Copy, Debug)]
struct Data {
    lz4: (f64, f64),
    zstd: [(f64, f64); 3],
}

const RANDOM: Data = Data { lz4: (0.05, 1.0), zstd: [(0.02, 1.0); 3] };
const HALF_RANDOM: Data = Data { lz4: (0.7, 0.75), zstd: [(0.7, 0.57), (0.75, 0.57), (3.0, 0.57)] };
const TEXT: Data = Data { lz4: (1.7, 0.55), zstd: [(3.3, 0.31), (4.0, 0.31), (9.0, 0.28)] };
const STRUCTS: Data = Data { lz4: (1.1, 0.44), zstd: [(1.25, 0.115), (1.35, 0.122), (6.0, 0.122)] };
const SPARSE: Data = Data { lz4: (0.35, 0.07), zstd: [(0.45, 0.04), (0.5, 0.037), (3.2, 0.036)] };
/// Such that zstd is no match for a link on which LZ4 pays.
const SLOW_TEXT: Data = Data { lz4: (1.7, 0.55), zstd: [(7.0, 0.38), (8.0, 0.37), (20.0, 0.35)] };

const ALL: [(&str, Data); 6] =
    [("random", RANDOM), ("half random", HALF_RANDOM), ("text", TEXT), ("structs", STRUCTS), ("sparse", SPARSE), ("slow text", SLOW_TEXT)];

impl Data {
    fn of(&self, method: Method) -> (f64, f64) {
        match method {
            Method::Raw => (0.0, 1.0),
            Method::Lz4 => self.lz4,
            Method::Zstd(1) => self.zstd[0],
            Method::Zstd(3) => self.zstd[1],
            Method::Zstd(_) => self.zstd[2],
        }
    }
}

/// A connection and the host at its end.
struct World {
    start: Instant,
    now: f64,
    /// Bytes a second, from a moment on.
    rates: Vec<(f64, f64)>,
    /// Bytes in the sender's socket, and those in the receiver's.
    unsent: f64,
    unread: f64,
    /// Of each chunk on its way: wire bytes that the receiver has not read, and its seconds per byte.
    work: VecDeque<(f64, f64)>,
    written: f64,
    says_window: bool,
    /// Seconds the receiver takes, against the usual.
    slowness: f64,
    /// After so many chunks each, others have the sender's processor for so many seconds.
    gaps: (usize, f64),
}

impl World {
    fn new(rate: f64) -> Self {
        Self {
            start: Instant::now(),
            now: 0.0,
            rates: vec![(0.0, rate)],
            unsent: 0.0,
            unread: 0.0,
            work: VecDeque::new(),
            written: 0.0,
            says_window: true,
            slowness: 1.0,
            gaps: (1, 0.0),
        }
    }

    fn rate(&self) -> f64 {
        self.rates.iter().rev().find(|(from, _)| *from <= self.now).expect("a rate from the start").1
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.now)
    }

    /// Lets `seconds` pass.
    fn pass(&mut self, seconds: f64) {
        let end = self.now + seconds;
        while self.now < end {
            let step = STEP.min(end - self.now);
            let mut left = step;
            while let Some((bytes, cost)) = self.work.front_mut() {
                let read = self.unread.min(*bytes).min(left / *cost);
                if read <= 0.0 && *bytes >= 1.0 {
                    break;
                }
                (*bytes, self.unread, left) = (*bytes - read, self.unread - read, left - read * *cost);
                // What rounding leaves is not worth a step.
                if *bytes < 1.0 {
                    self.unread = (self.unread - *bytes).max(0.0);
                    self.work.pop_front();
                }
            }
            let moved = (self.rate() * step).min(self.unsent).min((RECEIVE_BUFFER - self.unread).max(0.0));
            (self.unsent, self.unread) = (self.unsent - moved, self.unread + moved);
            self.now += step;
        }
    }

    /// Writes `bytes`, for which the receiver needs `seconds`; gives the time it took.
    fn write(&mut self, bytes: f64, seconds: f64) -> f64 {
        let before = self.now;
        self.pass(bytes * WRITE_COST);
        while self.unsent > SEND_BUFFER - bytes.min(SEND_BUFFER / 2.0) {
            self.pass(STEP);
        }
        self.unsent += bytes;
        self.written += bytes;
        self.work.push_back((bytes, seconds * self.slowness / bytes));
        self.now - before
    }

    fn sample(&self, blocked: f64) -> LinkSample {
        LinkSample {
            written: whole(self.written),
            unacknowledged: whole(self.unsent),
            blocked: Duration::from_secs_f64(blocked),
            waited: Duration::ZERO,
            peer_window: self.says_window.then(|| whole(RECEIVE_BUFFER - self.unread)),
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a simulation")]
fn whole(number: f64) -> u64 {
    number.max(0.0) as u64
}

fn made_of_a_chunk(packed_bytes: f64, took: f64) -> Packed {
    Packed {
        plain_bytes: CHUNK_SIZE,
        raw_bytes: CHUNK_SIZE,
        packed_bytes: usize::try_from(whole(packed_bytes)).unwrap(),
        took: Duration::from_secs_f64(took),
    }
}

/// When each chunk was encoded, and how.
type Log = Vec<(f64, Method)>;

/// Sends `chunks` chunks of what `data` says of each; the seconds until the receiver has placed them, and what was done.
fn migrate(world: &mut World, setting: Option<Method>, chunks: usize, data: impl Fn(usize) -> Data) -> (f64, Log) {
    migrate_with(&mut Chooser::new(Compression::Auto, Arc::default()), world, setting, chunks, data)
}

/// The same with a chooser that knows something, perhaps.
fn migrate_with(chooser: &mut Chooser, world: &mut World, setting: Option<Method>, chunks: usize, data: impl Fn(usize) -> Data) -> (f64, Log) {
    let (mut log, mut buffer, mut work) = (Vec::new(), 0.0, 0.0);
    for number in 0..chunks {
        let method = setting.unwrap_or_else(|| chooser.method(world.instant()));
        log.push((world.now, method));
        let (cost, ratio) = data(number).of(method);
        let plain = CHUNK_SIZE as f64;
        let took = plain * cost * 1e-9;
        world.pass(took + plain * OVERHEAD);
        let packed = plain * ratio;
        chooser.encoded(method, made_of_a_chunk(packed, took));
        let index = LADDER.iter().position(|known| *known == method).unwrap();
        (buffer, work) = (buffer + packed, work + plain * RECEIVER[index]);
        if buffer >= 65536.0 || number + 1 == chunks {
            let blocked = world.write(buffer, work);
            (buffer, work) = (0.0, 0.0);
            chooser.link(world.instant(), world.sample(blocked));
        }
        if (number + 1) % world.gaps.0 == 0 {
            world.pass(world.gaps.1);
        }
    }
    while !world.work.is_empty() {
        assert!(world.now < 1000.0, "it comes to an end");
        world.pass(STEP);
    }
    (world.now, log)
}

const STEP: f64 = 20e-6;
const SEND_BUFFER: f64 = 1024.0 * 1024.0;
const RECEIVE_BUFFER: f64 = 3.0 * 1024.0 * 1024.0;
const WRITE_COST: f64 = 0.3e-9;
const OVERHEAD: f64 = 0.25e-9;
const LINKS: [f64; 3] = [12.5e6, 125e6, 2e9];
const FIXED: [Method; 3] = [Method::Raw, Method::Lz4, Method::Zstd(1)];
const BAR: f64 = 1.10;
/// Nothing says beforehand when pages of another kind begin.
const BAR_IN_TURNS: f64 = 1.13;
/// 512 MiB.
const CHUNKS: usize = 2048;

/// Auto against the best fixed choice: at most `bar` times its time.
fn against_fixed(name: &str, bar: f64, new: impl Fn() -> World, data: impl Fn(usize) -> Data) {
    let fixed = FIXED.map(|method| migrate(&mut new(), Some(method), CHUNKS, &data).0);
    let best = fixed.into_iter().min_by(f64::total_cmp).unwrap();
    let (auto, log) = migrate(&mut new(), None, CHUNKS, &data);
    let used = LADDER.map(|method| log.iter().filter(|(_, used)| *used == method).count());
    assert!(auto <= best * bar, "{name}: {auto:.3} s, fixed {fixed:.3?}, used {used:?}");
}

#[test]
fn steady_links_are_used_as_well_as_by_the_best_fixed_choice() {
    for (name, data) in ALL {
        for rate in LINKS {
            against_fixed(&format!("{name} at {} MB/s", rate / 1e6), BAR, || World::new(rate), |_| data);
        }
    }
}

#[test]
fn pages_of_all_kinds_may_take_turns() {
    for run in [1, 4, 16, 64, 256] {
        for rate in LINKS {
            against_fixed(
                &format!("turns of {run} chunks at {} MB/s", rate / 1e6),
                BAR_IN_TURNS,
                || World::new(rate),
                |number| ALL[number / run % 5].1,
            );
        }
    }
}

#[test]
fn a_rate_that_changes_is_followed() {
    for (name, data) in ALL {
        let new = || World { rates: vec![(0.0, 125e6), (1.0, 12.5e6), (4.0, 125e6), (6.0, 2e9)], ..World::new(0.0) };
        against_fixed(&format!("{name} on a link that changes"), BAR, new, |_| data);
    }
}

#[test]
fn the_choice_follows_within_a_second() {
    let mut world = World { rates: vec![(0.0, 2e9), (1.0, 12.5e6), (6.0, 2e9)], ..World::new(0.0) };
    let (_, log) = migrate(&mut world, None, 16384, |_| SLOW_TEXT);
    let heavy = |from: f64, to: f64| {
        let of = log.iter().filter(|(at, _)| (from..to).contains(at));
        let (zstd, all) = of.fold((0, 0), |(zstd, all), (_, method)| (zstd + u32::from(matches!(method, Method::Zstd(_))), all + 1));
        f64::from(zstd) / f64::from(all)
    };
    let shares = [heavy(0.2, 1.0), heavy(2.0, 6.0), heavy(7.0, 8.0)];
    assert!(shares[0] < 0.02 && shares[1] > 0.9 && shares[2] < 0.02, "zstd for {shares:.3?}");
}

#[test]
fn a_receiver_short_of_processor_is_not_given_more_to_unpack() {
    for (name, data) in ALL {
        for slowness in [2.0, 4.0] {
            against_fixed(&format!("{name}, receiver {slowness} times slower"), BAR, || World { slowness, ..World::new(2e9) }, |_| data);
        }
    }
}

#[test]
fn a_sender_that_waits_for_a_processor_is_not_given_more_bytes_to_send() {
    for (name, data) in ALL {
        for (rate, gap) in LINKS.into_iter().flat_map(|rate| [0.5e-3, 1e-3].map(|gap| (rate, gap))) {
            let name = format!("{name} at {} MB/s, others have {gap} s for each chunk", rate / 1e6);
            against_fixed(&name, BAR, || World { gaps: (4, 4.0 * gap), ..World::new(rate) }, |_| data);
        }
    }
}

#[test]
fn a_full_link_is_not_hoped_to_be_faster_for_a_moment_in_which_less_was_sent() {
    const RATE: f64 = 60e6;
    let (mut link, start) = (Link::new(Arc::default()), Instant::now());
    let (mut now, mut arrived) = (0.0, 0.0);
    let mut send = |rate: f64, unacknowledged: u64, seconds: f64| {
        let until = now + seconds;
        while now < until {
            (now, arrived) = (now + 2e-3, arrived + rate * 2e-3);
            let written = whole(arrived) + unacknowledged;
            let (blocked, waited) = (Duration::from_micros(100), Duration::ZERO);
            link.sample(start + Duration::from_secs_f64(now), LinkSample { written, unacknowledged, blocked, waited, peer_window: None });
        }
        (link.rate(), link.to_string().contains("measured"))
    };
    let full = send(RATE, 400_000, 0.3);
    assert!((full.0 / RATE - 1.0).abs() < 0.02 && full.1, "{full:?}");
    for _ in 0..3 {
        let gap = send(0.9 * RATE, 0, 0.04);
        assert!(gap.0 < 1.02 * RATE, "{gap:?}");
        let again = send(RATE, 400_000, 0.06);
        assert!(again.0 < 1.02 * RATE && again.1, "{again:?}: at once");
    }
    let faster = send(RATE, 0, 0.3);
    assert!(faster.0 > 1.3 * RATE && !faster.1, "{faster:?}: nothing has been under way for a while");
}

#[test]
fn a_connection_that_does_not_tell_its_window_is_used_as_well() {
    for (name, data) in ALL {
        for rate in LINKS {
            against_fixed(&format!("{name} without window"), BAR, || World { says_window: false, ..World::new(rate) }, |_| data);
        }
    }
}

#[test]
fn fixed_settings_stay_as_they_are() {
    let now = Instant::now();
    for (setting, method) in [(Compression::None, Method::Raw), (Compression::Lz4, Method::Lz4), (Compression::Zstd, FIXED_ZSTD)] {
        let mut chooser = Chooser::new(setting, Arc::default());
        for _ in 0..100 {
            assert_eq!(chooser.method(now), method);
            chooser.encoded(method, made_of_a_chunk(CHUNK_SIZE as f64, 5e-3));
        }
    }
}

#[test]
fn what_is_kept_of_pages_goes_by_what_is_waited_for() {
    for (rate, slowness, expected) in [
        (12.5e6, 1.0, Keep::Copies),
        (125e6, 1.0, Keep::Copies),
        (300e6, 1.0, Keep::Hashes),
        (1e9, 1.0, Keep::HashesOfReturning),
        (2e9, 1.0, Keep::HashesOfReturning),
        (2e9, 8.0, Keep::HashesOfReturning),
    ] {
        let mut chooser = Chooser::new(Compression::None, Arc::default());
        assert_eq!(chooser.keep(), Keep::Hashes, "nothing is known");
        migrate_with(&mut chooser, &mut World { slowness, ..World::new(rate) }, None, CHUNKS, |_| RANDOM);
        assert_eq!(chooser.keep(), expected, "{} MB/s, receiver {slowness} times slower", rate / 1e6);
        // What a successor takes over is no measurement.
        assert_ne!(chooser.successor(Compression::None, Arc::default()).keep(), Keep::Copies);
    }
    // A link that has become faster than the processors.
    let mut chooser = Chooser::new(Compression::None, Arc::default());
    migrate_with(&mut chooser, &mut World { rates: vec![(0.0, 125e6), (1.0, 4e9)], ..World::new(0.0) }, None, 2 * CHUNKS, |_| RANDOM);
    assert_eq!(chooser.keep(), Keep::HashesOfReturning);
}

#[test]
fn a_successor_begins_as_the_one_before_ended() {
    for (rate, expected) in [(2e9, Method::Raw), (12.5e6, FIXED_ZSTD)] {
        let mut first = Chooser::new(Compression::Auto, Arc::default());
        migrate_with(&mut first, &mut World::new(rate), None, CHUNKS, |_| TEXT);
        let mut second = first.successor(Compression::Auto, Arc::default());
        let (_, log) = migrate_with(&mut second, &mut World::new(rate), None, 64, |_| TEXT);
        let others = log.iter().filter(|(_, method)| (*method == Method::Raw) != (expected == Method::Raw)).count();
        assert!(others <= 4, "{others} of 64 other than {expected:?}: {log:?}");
    }
}

#[test]
fn a_successor_on_another_link_finds_that_out() {
    for (name, data) in ALL {
        for (before, after) in LINKS.into_iter().flat_map(|before| LINKS.map(|after| (before, after))) {
            let mut first = Chooser::new(Compression::Auto, Arc::default());
            migrate_with(&mut first, &mut World::new(before), None, CHUNKS, |_| data);
            let fixed = FIXED.map(|method| migrate(&mut World::new(after), Some(method), CHUNKS, |_| data).0);
            let best = fixed.into_iter().min_by(f64::total_cmp).unwrap();
            let mut second = first.successor(Compression::Auto, Arc::default());
            let (auto, _) = migrate_with(&mut second, &mut World::new(after), None, CHUNKS, |_| data);
            // What it begins with may fill the buffers on the way.
            let bar = best * BAR + (SEND_BUFFER + RECEIVE_BUFFER) / after;
            assert!(auto <= bar, "{name} at {} MB/s after {}: {auto:.3} s, fixed {fixed:.3?}", after / 1e6, before / 1e6);
        }
    }
}

#[test]
fn a_successor_knows_the_pages() {
    let now = Instant::now();
    let mut first = Chooser::new(Compression::Auto, Arc::default());
    for _ in 0..50 {
        let method = first.method(now);
        let (packed, took) = if method == Method::Raw { (CHUNK_SIZE, 0.0) } else { (CHUNK_SIZE / 2, 400e-6) };
        first.encoded(method, made_of_a_chunk(packed as f64, took));
    }
    let mut second = first.successor(Compression::Auto, Arc::default());
    assert!(FIRST.into_iter().all(|index| second.costs[index].ratio() == first.costs[index].ratio()));
    second.method(now);
    assert!(second.plan.time > 0.0, "it plans at once, and tries nothing first");
    assert_eq!(first.successor(Compression::None, Arc::default()).method(now), Method::Raw);
}
