//! Peers that take all they are given, and who still comes in.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use pageferry::destination::{ReceiverLimits, ReceiverOptions, UnderWay};
use pageferry::protocol::Timeouts;
use pageferry::transport::Endpoint;
use pageferry::units::ByteCount;
use pageferry::wire::{AnswerStatus, Message, RefuseReason};
use socket2::{Domain, Socket, Type};

use crate::honest::{Host, TIMEOUTS};
use crate::on_receiver::long_finish;
use crate::source::{EvilSource, Stage};
use crate::table::Row;
use crate::talk::{PATIENCE, Talk};

fn host_with(limits: ReceiverLimits, timeouts: Timeouts) -> Host {
    Host::with_options(&"127.0.0.1:0".parse().unwrap(), ReceiverOptions { timeouts, limits, ..ReceiverOptions::default() })
}

/// Whoever holds something may hold it for longer than a test takes on a busy machine.
const LONG: Timeouts = Timeouts { silence: PATIENCE, handshake: PATIENCE, ..TIMEOUTS };

/// Waits until what the receiver has under way is so.
fn await_under_way(host: &Host, what: &str, is_so: impl Fn(UnderWay) -> bool) {
    let since = Instant::now();
    while !is_so(host.control.under_way()) {
        assert!(since.elapsed() < PATIENCE, "never {what}: {:?}", host.control.under_way());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Where to connect to reach `target` from another address than everybody's here.
fn from_elsewhere(target: &Endpoint) -> Endpoint {
    let Endpoint::Tcp(target) = target else { panic!("a TCP address") };
    let target: SocketAddr = target.parse().unwrap();
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp(relay.local_addr().unwrap().to_string());
    thread::spawn(move || {
        for near in relay.incoming().map(Result::unwrap) {
            let far = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            far.bind(&SocketAddr::from((ELSEWHERE, 0)).into()).unwrap();
            far.connect(&target.into()).unwrap();
            let far = TcpStream::from(far);
            let (back_near, back_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || carry(&near, &far));
            thread::spawn(move || carry(&back_far, &back_near));
        }
    });
    endpoint
}

fn carry(mut from: &TcpStream, mut to: &TcpStream) {
    // It ends as either end wants.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

/// What becomes of a session more.
fn hello(endpoint: &Endpoint) -> Option<Message> {
    let mut evil = EvilSource::at(Stage::Connected, endpoint);
    evil.control.say(&Message::Hello(evil.offer.clone()));
    evil.control.hear()
}

#[track_caller]
fn assert_busy(heard: &Option<Message>, words: &str) {
    assert!(matches!(heard, Some(Message::Refuse { reason: RefuseReason::Busy, detail }) if detail.contains(words)), "{heard:?}, not {words:?}");
}

/// Gets to Ready and goes away: the receiver has to remember it.
fn get_ready_and_go(host: &Host) -> EvilSource {
    let evil = EvilSource::at(Stage::Ready, &host.endpoint);
    evil.control.close();
    evil
}

fn ask(evil: &EvilSource) -> Option<Message> {
    let mut asking = Talk::to(&evil.endpoint);
    asking.say(&evil.query());
    asking.hear()
}

/// One more of something than there may be, each at a receiver of its own. Who else comes in meanwhile is for the tests below.
pub(crate) fn one_too_many() -> Vec<Row> {
    let default = ReceiverLimits::default;
    vec![
        row("a session more than the receiver takes", ReceiverLimits { sessions: 1, ..default() }, |from| {
            let holder = EvilSource::at(Stage::Accepted, from);
            (hello(from), vec![holder])
        }),
        row("a session more than one peer may have", ReceiverLimits { sessions_per_peer: 1, ..default() }, |from| {
            let holder = EvilSource::at(Stage::Accepted, from);
            (hello(from), vec![holder])
        }),
        row("a session more than can be remembered", ReceiverLimits { remembered: 1, ..default() }, |from| {
            let holder = EvilSource::at(Stage::Accepted, from);
            (hello(from), vec![holder])
        }),
        row("a guest more than there is memory for", default(), |from| {
            let mut holders = Vec::new();
            loop {
                let mut evil = EvilSource::at(Stage::Connected, from);
                evil.control.say(&Message::Hello(evil.offer.clone()));
                match evil.control.hear() {
                    Some(Message::Accept { .. }) => holders.push(evil),
                    heard => break (heard, holders),
                }
            }
        }),
        row("a state more than one peer has room for", ReceiverLimits { states_per_peer: ByteCount(3 << 20), ..default() }, |from| {
            let [holder, mut other] = [(); 2].map(|()| EvilSource::at(Stage::Copied, from));
            let mut holder = holder;
            holder.control.say_bytes(&long_finish(2 << 20));
            // Nothing tells from without that it has been read.
            thread::sleep(Duration::from_millis(300));
            other.control.say_bytes(&long_finish(2 << 20));
            (other.control.last_words(), vec![holder])
        }),
        row("a connection more than the receiver takes", ReceiverLimits { connections: 6, ..default() }, |from| {
            // Three connections each.
            let holders = vec![EvilSource::at(Stage::Attached, from), EvilSource::at(Stage::Attached, from)];
            (Talk::to(from).hear(), holders)
        }),
        row("a connection more than one peer may have", ReceiverLimits { connections_per_peer: 6, ..default() }, |from| {
            let holders = vec![EvilSource::at(Stage::Attached, from), EvilSource::at(Stage::Attached, from)];
            (Talk::to(from).hear(), holders)
        }),
        row("a connection more than one peer may make at a time", ReceiverLimits { burst_per_peer: 6, rate_per_peer: 1, ..default() }, |from| {
            // Some may come in on a slow machine, and say nothing.
            let mut flood: Vec<Talk> = (0..16).map(|_| Talk::to(from)).collect();
            (flood.pop().expect("the last").hear(), Vec::new())
        }),
    ]
}

/// What a peer hears last, and the sessions that it holds.
type Heard = (Option<Message>, Vec<EvilSource>);

fn row(what: &str, limits: ReceiverLimits, act: fn(&Endpoint) -> Heard) -> Row {
    let host = host_with(limits, LONG);
    let (heard, mut holders) = act(&from_elsewhere(&host.endpoint));
    let (heard, said) = match heard {
        Some(Message::Refuse { reason, detail }) => (format!("Refuse ({reason}): {detail}"), host.first_said()),
        Some(Message::Failed { reason }) => (format!("Failed: {reason}"), host.last_session().ending().unwrap()),
        heard => panic!("{what}: heard {heard:?}"),
    };
    assert!(holders.iter_mut().all(|holder| !holder.control.is_over()), "{what}: all held meanwhile");
    drop(holders);
    await_under_way(&host, "over", |under_way| under_way.sessions == 0);
    // Connections are counted off a moment after their session.
    thread::sleep(Duration::from_millis(300));
    host.serves_on();
    Row::new(what, heard, said)
}

#[test]
fn a_receiver_that_serves_for_ever_forgets_sessions_when_their_time_is_over() {
    let host = host_with(ReceiverLimits::default(), Timeouts { tombstone: Duration::from_secs(10), ..TIMEOUTS });
    let evil = get_ready_and_go(&host);
    await_under_way(&host, "remembered", |under_way| (under_way.sessions, under_way.remembered) == (0, 1));
    assert_eq!(ask(&evil), Some(Message::Answer(AnswerStatus::NeverStarted)));
    await_under_way(&host, "forgotten", |under_way| under_way.remembered == 0);
    assert_eq!(ask(&evil), Some(Message::Answer(AnswerStatus::Unknown)));
    host.serves_on();
}

#[test]
fn sessions_that_cannot_be_remembered_are_not_begun() {
    let limits = ReceiverLimits { remembered: 2, ..ReceiverLimits::default() };
    let host = host_with(limits, Timeouts { tombstone: Duration::from_secs(15), ..TIMEOUTS });
    let evil = [get_ready_and_go(&host), get_ready_and_go(&host)];
    await_under_way(&host, "remembered", |under_way| (under_way.sessions, under_way.remembered) == (0, 2));
    assert_busy(&hello(&host.endpoint), "2 sessions under way or to remember");
    for evil in &evil {
        assert_eq!(ask(evil), Some(Message::Answer(AnswerStatus::NeverStarted)), "none was forgotten for a newer one");
    }
    await_under_way(&host, "forgotten", |under_way| under_way.remembered == 0);
    host.serves_on();
}

#[test]
fn more_sessions_side_by_side_than_there_may_be_are_refused() {
    let host = host_with(ReceiverLimits { sessions: 2, ..ReceiverLimits::default() }, LONG);
    let holders = [(); 2].map(|()| EvilSource::at(Stage::Accepted, &host.endpoint));
    assert_busy(&hello(&host.endpoint), "2 sessions under way");
    assert_busy(&hello(&from_elsewhere(&host.endpoint)), "2 sessions under way");
    drop(holders);
    await_under_way(&host, "over", |under_way| under_way.sessions == 0);
    host.serves_on();
}

#[test]
fn a_peer_that_opens_all_the_sessions_it_may_leaves_some_to_others() {
    let limits = ReceiverLimits { sessions: 4, sessions_per_peer: 3, ..ReceiverLimits::default() };
    let host = host_with(limits, LONG);
    let elsewhere = from_elsewhere(&host.endpoint);
    let mut holders = [(); 3].map(|()| EvilSource::at(Stage::Accepted, &elsewhere));
    assert_busy(&hello(&elsewhere), "3 sessions from there");
    host.serves_on();
    assert!(holders.iter_mut().all(|holder| !holder.control.is_over()), "all held meanwhile");
    drop(holders);
    await_under_way(&host, "over", |under_way| under_way.sessions == 0);
    assert!(matches!(hello(&elsewhere), Some(Message::Accept { .. })), "it may again");
}

#[test]
fn states_that_a_peer_has_no_room_for_are_not_taken_in_and_others_are() {
    let limits = ReceiverLimits { states: ByteCount(4 << 20), states_per_peer: ByteCount(3 << 20), ..ReceiverLimits::default() };
    let host = host_with(limits, LONG);
    let elsewhere = from_elsewhere(&host.endpoint);
    let announce = |endpoint: &Endpoint, length| {
        let mut evil = EvilSource::at(Stage::Copied, endpoint);
        evil.control.say_bytes(&long_finish(length));
        evil
    };
    let mut holder = announce(&elsewhere, 2 << 20);
    // Nothing tells from without that it has been read.
    thread::sleep(Duration::from_millis(300));
    for (endpoint, needle) in [(&elsewhere, "one peer's guests"), (&host.endpoint, "all guests")] {
        let heard = announce(endpoint, (2 << 20) + 1).control.last_words();
        assert!(matches!(&heard, Some(Message::Failed { reason }) if reason.contains(needle)), "{heard:?}");
        assert!(host.last_session().ending().unwrap().contains(needle));
    }
    assert!(!holder.control.is_over(), "it has its room");
    host.serves_on();
    drop(holder);
    await_under_way(&host, "over", |under_way| under_way.sessions == 0);
    // The state is held until it is whole, and then it is not the guest's.
    let mut whole = EvilSource::at(Stage::Copied, &elsewhere);
    whole.control.say(&Message::Finish { totals: whole.totals(), state: vec![7; 2 << 20], missing: None });
    let heard = whole.control.last_words();
    assert!(matches!(&heard, Some(Message::Failed { reason }) if reason.contains("not its registers")), "{heard:?}");
    host.serves_on();
}

#[test]
fn a_peer_with_all_the_connections_it_may_have_leaves_some_to_others() {
    // An honest guest needs a few at a time.
    let limits = ReceiverLimits { connections: 40, connections_per_peer: 20, ..ReceiverLimits::default() };
    let host = host_with(limits, LONG);
    let elsewhere = from_elsewhere(&host.endpoint);
    let mut holders = Vec::new();
    // Three connections each.
    for _ in 0..6 {
        holders.push(EvilSource::at(Stage::Attached, &elsewhere));
    }
    let idle = [(); 2].map(|()| Talk::to(&elsewhere));
    assert_busy(&Talk::to(&elsewhere).hear(), "20 connections from there");
    host.serves_on();
    drop((holders, idle));
    await_under_way(&host, "over", |under_way| under_way.sessions == 0);
    // Counted off a moment after its session.
    let since = Instant::now();
    while !matches!(hello(&elsewhere), Some(Message::Accept { .. })) {
        assert!(since.elapsed() < PATIENCE, "it may again");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_peer_that_connects_too_often_is_turned_away_and_others_are_not() {
    let host = host_with(ReceiverLimits { burst_per_peer: 20, rate_per_peer: 1, ..ReceiverLimits::default() }, TIMEOUTS);
    let elsewhere = from_elsewhere(&host.endpoint);
    let since = Instant::now();
    let mut flood: Vec<Talk> = (0..60).map(|_| Talk::to(&elsewhere)).collect();
    let heard: Vec<_> = flood.iter_mut().map(Talk::last_words).collect();
    let says = |heard: &&Option<Message>| matches!(heard, Some(Message::Refuse { reason: RefuseReason::Busy, detail }) if detail.contains("more often than 1 times a second"));
    let refused = heard.iter().filter(says).count();
    let filled = usize::try_from(since.elapsed().as_secs()).unwrap() + 1;
    assert!((60 - 20 - filled..=60 - 20).contains(&refused), "{refused} of 60 in {:?}", since.elapsed());
    host.serves_on();
}
