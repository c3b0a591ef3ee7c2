//! Too much, or too slowly.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pageferry::protocol::Timeouts;
use pageferry::wire::{Message, RefuseReason};

use crate::forge;
use crate::honest::{Host, TIMEOUTS};
use crate::source::{EvilSource, Stage};
use crate::talk::{PATIENCE, Talk};

#[test]
fn a_hello_that_trickles_in_does_not_keep_a_connection() {
    let host = Host::new();
    let mut evil = EvilSource::at(Stage::Connected, &host.endpoint);
    let hello = forge::message(forge::HELLO, &forge::body(&Message::Hello(evil.offer.clone())));
    let since = Instant::now();
    for byte in hello.chunks(1).cycle().take(60) {
        evil.control.say_bytes(byte);
        std::thread::sleep(TIMEOUTS.handshake / 40);
    }
    assert_eq!(evil.control.last_words(), None);
    assert!(since.elapsed() < 3 * TIMEOUTS.handshake);
    assert_eq!(host.sessions(), 0);
    host.serves_on();
}

#[test]
fn a_flood_of_connections_is_bounded_and_passes() {
    allow_descriptors();
    // Patient, so that none of them is given up before the last one comes.
    let host = Host::with(&"127.0.0.1:0".parse().unwrap(), Timeouts { handshake: PATIENCE, ..TIMEOUTS });
    let mut flood: Vec<Talk> = (0..1100).map(|_| Talk::to(&host.endpoint)).collect();
    let turned_away = flood.last_mut().unwrap().last_words();
    assert!(matches!(turned_away, Some(Message::Refuse { reason: RefuseReason::Busy, .. })), "{turned_away:?}");
    drop(flood);
    serves_soon(&host);
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
