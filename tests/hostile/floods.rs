//! Too much, or too slowly.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pageferry::destination::{ReceiverLimits, ReceiverOptions};
use pageferry::wire::{Message, RefuseReason};

use crate::forge;
use crate::honest::{Host, TIMEOUTS};
use crate::source::{EvilSource, Stage};
use crate::table::Row;
use crate::talk::{PATIENCE, Talk, encoded};

/// Whoever takes too long, each at a receiver of its own.
pub(crate) fn slow_ones() -> Vec<Row> {
    let limits = ReceiverLimits { half_open_per_peer: 8, standstill: Duration::from_secs(3), ..ReceiverLimits::default() };
    type Act = fn(&mut EvilSource);
    let row = |what: &str, from, act: Act| {
        let options = ReceiverOptions { timeouts: TIMEOUTS, limits, ..ReceiverOptions::default() };
        let host = Host::with_options(&"127.0.0.1:0".parse().unwrap(), options);
        let mut evil = EvilSource::at(from, &host.endpoint);
        let since = Instant::now();
        act(&mut evil);
        let heard = evil.control.last_words();
        assert!(since.elapsed() < PATIENCE, "{what}: took {:?}", since.elapsed());
        let said = if from == Stage::Connected { host.first_said() } else { host.last_session().ending().unwrap() };
        // Whoever else stands there leaves, and has the time to.
        evil.bulk.clear();
        std::thread::sleep(Duration::from_millis(300));
        host.serves_on();
        let heard = match heard {
            Some(Message::Failed { reason }) => format!("Failed: {reason}"),
            None => "the end".to_owned(),
            other => panic!("{what}: heard {other:?}"),
        };
        Row::new(what, heard, said)
    };
    vec![
        row("nothing is said", Stage::Connected, |_| ()),
        row("a Hello trickles in", Stage::Connected, |evil| {
            let hello = forge::message(forge::HELLO, &forge::body(&Message::Hello(evil.offer.clone())));
            for byte in hello.chunks(1).take(60) {
                evil.control.say_bytes(byte);
                std::thread::sleep(TIMEOUTS.handshake / 40);
            }
        }),
        row("nine connections say nothing, where eight may", Stage::Connected, |evil| {
            std::thread::sleep(Duration::from_millis(1200));
            evil.bulk = (0..8).map(|_| Talk::to(&evil.endpoint).into_stream()).collect();
            let since = Instant::now();
            assert_eq!(evil.control.last_words(), None, "the one that stood there longest gives way");
            assert!(since.elapsed() < TIMEOUTS.handshake / 3, "not before its time was over");
        }),
        row("silence before the lanes", Stage::Accepted, |_| ()),
        row("silence in the middle of a frame", Stage::Attached, |evil| {
            let frame = evil.frame(0);
            evil.send(0, &frame[..frame.len() / 2]);
        }),
        row("silence after a round", Stage::Copied, |_| ()),
        row("silence after Ready", Stage::Ready, |_| ()),
        row("signs of life and nothing else", Stage::Copied, |evil| {
            for _ in 0..60 {
                evil.control.say(&Message::Ping);
                std::thread::sleep(Duration::from_millis(100));
            }
        }),
        row("signs of life in two halves each, and nothing else", Stage::Copied, |evil| {
            let ping = encoded(&Message::Ping);
            for half in ping.chunks(ping.len().div_ceil(2)).cycle().take(120) {
                evil.control.say_bytes(half);
                std::thread::sleep(Duration::from_millis(50));
            }
        }),
    ]
}

#[test]
fn more_connections_than_there_may_be_are_turned_away() {
    let limits = ReceiverLimits { connections: 5, burst_per_peer: 8, rate_per_peer: 1, ..ReceiverLimits::default() };
    let options = ReceiverOptions { timeouts: TIMEOUTS, limits, ..ReceiverOptions::default() };
    let host = Host::with_options(&"127.0.0.1:0".parse().unwrap(), options);
    let mut flood: Vec<Talk> = (0..10).map(|_| Talk::to(&host.endpoint)).collect();
    let heard: Vec<_> = flood.iter_mut().map(Talk::last_words).collect();
    let refused = |words: &str| {
        let says = |heard: &&Option<Message>| matches!(heard, Some(Message::Refuse { reason: RefuseReason::Busy, detail }) if detail.contains(words));
        heard.iter().filter(says).count()
    };
    assert_eq!((heard.iter().filter(|heard| heard.is_none()).count(), refused("5 connections")), (5, 5), "{heard:?}");
    assert_eq!(host.sessions(), 0);
}

#[test]
fn connections_that_say_nothing_do_not_last() {
    allow_descriptors();
    let host = Host::new();
    let idle: Vec<Talk> = (0..1000).map(|_| Talk::to(&host.endpoint)).collect();
    std::thread::sleep(TIMEOUTS.handshake);
    serves_soon(&host);
    drop(idle);
}

/// Both ends of all the connections are in this process.
fn allow_descriptors() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(8192)), hard).unwrap();
}

/// Lets the connections before it be noticed as gone.
fn serves_soon(host: &Host) {
    std::thread::sleep(Duration::from_millis(500));
    host.serves_on();
}

#[test]
fn sessions_that_hold_all_the_memory_give_it_back() {
    let host = Host::new();
    let mut holders = Vec::new();
    let refused = loop {
        let mut evil = EvilSource::at(Stage::Connected, &host.endpoint);
        evil.control.say(&Message::Hello(evil.offer.clone()));
        match evil.control.hear() {
            Some(Message::Accept { .. }) => holders.push(evil),
            other => break other,
        }
    };
    assert!(matches!(refused, Some(Message::Refuse { reason: RefuseReason::Memory, .. })), "{refused:?}");
    assert!(holders.len() > 40, "{} guests fit", holders.len());
    drop(holders);
    serves_soon(&host);
}
