//! A hostile source against the real receiver.

use std::time::{Duration, Instant};

use pageferry::transport::Endpoint;
use pageferry::wire::{AnswerStatus, FRAME_HEADER_BYTES, Lane, MAX_CHANNELS, MAX_STATE_BYTES, Message, RefuseReason, SessionId, Token};

use crate::forge::{self, Frame};
use crate::honest::{Host, PAGES, assert_no_panic};
use crate::source::{CHANNELS, COMMIT, EvilSource, Stage};
use crate::table::Row;
use crate::talk::Talk;

/// What the hostile side hears last on its control connection.
#[derive(Debug)]
enum Hears {
    Refused(RefuseReason, &'static str),
    Failed(&'static str),
    /// The end, without a word: nobody is there to understand one.
    Nothing,
}
use Hears::{Failed, Nothing, Refused};

struct Attack {
    name: &'static str,
    /// How far it goes by the rules.
    from: Stage,
    act: fn(&mut EvilSource),
    hears: Hears,
    /// Part of the reason that the receiver's own side is given, where a session was accepted.
    host: &'static str,
}

/// Attacks at Hello, which has no session behind it yet.
fn before_a_session() -> Vec<Attack> {
    let attack = |name, hears, act| Attack { name, from: Stage::Connected, act, hears, host: "" };
    vec![
        attack("another protocol", Nothing, |evil| evil.control.say_bytes(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n")),
        attack("TLS", Nothing, |evil| evil.control.say_bytes(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])),
        attack("nothing at all", Nothing, |evil| evil.control.close()),
        attack("half a Hello", Nothing, |evil| {
            let hello = forge::message(forge::HELLO, &hello_body(evil));
            evil.control.say_bytes(&hello[..hello.len() / 2]);
            evil.control.close();
        }),
        attack("another version", Refused(RefuseReason::Version, "version 2"), |evil| say_hello_in(2, 0, evil)),
        attack("another version and a long Hello", Refused(RefuseReason::Version, "version 2"), |evil| say_hello_in(2, 64 << 10, evil)),
        attack("an altered envelope", Refused(RefuseReason::Other, "header has a wrong checksum"), |evil| say_altered_hello(evil, 12)),
        attack("an altered body", Refused(RefuseReason::Other, "Hello message has a wrong checksum"), |evil| say_altered_hello(evil, 60)),
        attack("an unknown kind", Refused(RefuseReason::Other, "kind 99"), |evil| evil.control.say_bytes(&forge::message(99, &[]))),
        attack("a huge Hello", Refused(RefuseReason::Other, "more than"), |evil| {
            evil.control.say_bytes(&forge::envelope(1, forge::HELLO, u32::MAX, &[]));
        }),
        attack("no channels", Refused(RefuseReason::Other, "bad number of channels"), |evil| say_hello_with(evil, 32, &[0, 0])),
        attack("too many channels", Refused(RefuseReason::Other, "bad number of channels"), |evil| say_hello_with(evil, 32, &[65, 0])),
        attack("more regions than there may be", Refused(RefuseReason::Other, "bad number of regions"), |evil| say_hello_with(evil, 42, &[1, 4])),
        attack("a region of no pages", Refused(RefuseReason::Other, "bad memory layout"), |evil| say_hello_with(evil, 52, &[0; 8])),
        attack("a region at the end of everything", Refused(RefuseReason::Other, "bad memory layout"), |evil| say_hello_with(evil, 44, &[0xff; 8])),
        attack("a kind that is no text", Refused(RefuseReason::Other, "bad guest kind"), |evil| say_hello_with(evil, 62, &[0xff])),
        attack("the largest memory there is", Refused(RefuseReason::Memory, "64 TiB"), |evil| {
            say_hello_with(evil, 52, &(1u64 << 34).to_le_bytes());
        }),
        attack("a guest over the limit", Refused(RefuseReason::Memory, "the limit of this receiver"), |evil| {
            say_hello_with(evil, 52, &(1u64 << 15).to_le_bytes());
        }),
        attack("a kind that is not allowed", Refused(RefuseReason::GuestKind, "\"spy\" are not allowed"), |evil| {
            evil.offer.guest_kind = "spy".into();
            evil.control.say(&Message::Hello(evil.offer.clone()));
        }),
        attack("another layout than described", Refused(RefuseReason::Layout, "another memory layout"), |evil| {
            evil.offer.description = "larger inside".into();
            evil.control.say(&Message::Hello(evil.offer.clone()));
        }),
        attack("Commit for a start", Refused(RefuseReason::Other, "does not begin with Commit"), |evil| evil.control.say(&COMMIT)),
        attack("a long Finish for a start", Refused(RefuseReason::Other, "begins with a message of over"), |evil| {
            let length = u32::try_from(MAX_STATE_BYTES).unwrap();
            evil.control.say_bytes(&forge::envelope(1, forge::FINISH, length, &[0; 128 << 10]));
        }),
    ]
}

fn hello_body(evil: &EvilSource) -> Vec<u8> {
    forge::body(&Message::Hello(evil.offer.clone()))
}

fn say_hello_in(version: u16, more: usize, evil: &mut EvilSource) {
    let mut body = hello_body(evil);
    body.resize(body.len() + more, 0);
    evil.control.say_bytes(&forge::envelope(version, forge::HELLO, body.len().try_into().unwrap(), &body));
}

fn say_altered_hello(evil: &mut EvilSource, at: usize) {
    let hello = forge::altered(&Message::Hello(evil.offer.clone()), at);
    evil.control.say_bytes(&hello);
}

/// Says Hello with other bytes at `at` of its body: 32 channels, 42 regions, 44 the first one's address, 52 its pages,
/// 60 the kind.
fn say_hello_with(evil: &mut EvilSource, at: usize, bytes: &[u8]) {
    let mut body = hello_body(evil);
    body[at..at + bytes.len()].copy_from_slice(bytes);
    evil.control.say_bytes(&forge::message(forge::HELLO, &body));
}

/// Attacks in the middle of a session, on the control connection.
fn in_a_session() -> Vec<Attack> {
    let attack = |name, from, needle, act| Attack { name, from, act, hears: Failed(needle), host: needle };
    vec![
        attack("Commit instead of channels", Stage::Accepted, "Commit to an end that was attaching", |evil| evil.control.say(&COMMIT)),
        attack("Commit while copying", Stage::Copied, "Commit to an end that was receiving", |evil| evil.control.say(&COMMIT)),
        attack("a second Hello", Stage::Attached, "Hello to an end that was receiving", |evil| {
            evil.control.say(&Message::Hello(evil.offer.clone()));
        }),
        attack("Finish before the channels", Stage::Accepted, "Finish to an end", |evil| evil.control.say(&evil.finish_message())),
        attack("a second Finish", Stage::Ready, "Finish to an end that was waiting for Commit", |evil| evil.control.say(&evil.finish_message())),
        attack("Released for nothing", Stage::Ready, "Released to an end", |evil| evil.control.say(&Message::Released)),
        attack("the destination's own words", Stage::Copied, "Ready to an end", |evil| evil.control.say(&Message::Ready)),
        attack("garbage on the control connection", Stage::Copied, "does not speak", |evil| evil.control.say_bytes(&[0x55; 100])),
        attack("garbage instead of Commit", Stage::Ready, "does not speak", |evil| evil.control.say_bytes(&[0x55; 100])),
        attack("an altered Finish", Stage::Copied, "checksum", |evil| evil.control.say_bytes(&forge::altered(&evil.finish_message(), 40))),
        attack("an altered Commit", Stage::Ready, "Commit message has a wrong checksum", |evil| {
            evil.control.say_bytes(&forge::altered(&COMMIT, 32));
        }),
        attack("a state larger than any", Stage::Copied, "Finish message of", |evil| {
            evil.control.say_bytes(&forge::envelope(1, forge::FINISH, u32::MAX, &[]));
        }),
        attack("a long state before the channels", Stage::Accepted, "16777216 bytes is not taken in: this end is attaching channels", |evil| {
            evil.control.say_bytes(&long_finish(MAX_STATE_BYTES));
        }),
        attack("a long state after another", Stage::Ready, "200000 bytes is not taken in: this end is waiting for Commit", |evil| {
            evil.control.say_bytes(&long_finish(200_000));
        }),
        attack("a state that is not the guest's", Stage::Copied, "not its registers", |evil| {
            evil.control.say(&Message::Finish { totals: evil.totals(), state: b"rootkit".to_vec(), missing: None });
        }),
        attack("totals of more channels", Stage::Copied, "totals of 3 channels, there are 2", |evil| {
            let totals = [evil.totals(), vec![evil.totals()[0]]].concat();
            evil.control.say(&Message::Finish { totals, state: Vec::new(), missing: None });
        }),
        attack("totals without the last frame", Stage::Copied, "announced", |evil| finish_with(evil, |frames, _, _| *frames -= 1)),
        attack("totals with other pages", Stage::Copied, "announced", |evil| finish_with(evil, |_, pages, _| *pages += 1)),
        attack("totals with another digest", Stage::Copied, "announced", |evil| finish_with(evil, |_, _, digest| *digest ^= 1)),
        attack("a frame more than announced", Stage::Copied, "announced", |evil| {
            let finish = evil.finish_message();
            let mut extra = evil.frame(0);
            evil.frames[0].push_round_end(&mut extra, 1);
            evil.send(0, &extra);
            // Until that has arrived for certain; Finish could overtake it otherwise.
            std::thread::sleep(Duration::from_millis(300));
            evil.control.say(&finish);
        }),
        attack("the control connection closed", Stage::Ready, "", |evil| evil.control.close()),
        attack("a bulk connection closed", Stage::Attached, "closed the bulk 1 connection", |evil| drop(evil.bulk.pop())),
        attack("a frame cut off", Stage::Attached, "closed the bulk 1 connection", |evil| {
            let frame = evil.frame(1);
            evil.send(1, &frame[..frame.len() - 10]);
            drop(evil.bulk.pop());
        }),
        attack("a header cut off", Stage::Attached, "closed the bulk 1 connection", |evil| {
            let frame = evil.frame(1);
            evil.send(1, &frame[..FRAME_HEADER_BYTES - 1]);
            drop(evil.bulk.pop());
        }),
    ]
}

/// The envelope of a Finish so long, and nothing of its body.
pub(crate) fn long_finish(length: usize) -> Vec<u8> {
    forge::envelope(1, forge::FINISH, length.try_into().unwrap(), &[])
}

fn finish_with(evil: &mut EvilSource, change: fn(&mut u64, &mut u64, &mut u64)) {
    let mut totals = evil.totals();
    let last = totals.last_mut().unwrap();
    change(&mut last.frames, &mut last.pages.0, &mut last.digest);
    evil.control.say(&Message::Finish { totals, state: b"registers".to_vec(), missing: None });
}

/// Frames with good checksums that make no sense, as the first one of channel 0.
fn senseless_frames() -> Vec<(&'static str, &'static str, Frame)> {
    let page = || Frame::raw_page(0);
    let zero_run = || Frame { masks: [1, 0, 0, 0, 0, 0, 0, 0], raw: Vec::new(), ..page() };
    let last_chunk = u32::try_from(PAGES.0 / 64).unwrap();
    vec![
        ("outside the memory", "outside the memory", Frame::raw_page(last_chunk + 1)),
        ("far outside the memory", "outside the memory", Frame::raw_page(u32::MAX)),
        ("on the wrong channel", "belongs on channel 1", Frame::raw_page(1)),
        ("a sequence gap", "numbered 1", Frame { sequence: 1, ..page() }),
        ("a sequence far ahead", "numbered 18446744073709551615", Frame { sequence: u64::MAX, ..page() }),
        ("masks that overlap", "masks", Frame { masks: [1, 0, 0, 0, 0, 0, 0, 1], ..page() }),
        ("masks of no page", "masks", Frame { masks: [0; 8], raw: Vec::new(), ..page() }),
        ("pages past the region's end", "masks", Frame { chunk: last_chunk, masks: [1 << 63, 0, 0, 0, 0, 0, 0, 0], raw: Vec::new(), ..page() }),
        ("an unknown kind", "kind 3", Frame { kind: 3, ..page() }),
        ("kind 0", "kind 0", Frame { kind: 0, ..page() }),
        ("an unknown packing of deltas", "way 3", Frame { packing: 3, ..page() }),
        ("packed deltas and no delta", "meta", Frame { packing: 1, ..page() }),
        ("a round end with packed deltas", "reserved", Frame { packing: 1, ..Frame::round_end() }),
        (
            "a Zstandard frame nobody agreed on",
            "page 3 of chunk 0 comes in a form that was not agreed on",
            Frame { masks: [0, 0, 0, 0, 0, 0, 8, 0], meta: vec![1; 9], raw: Vec::new(), ..page() },
        ),
        (
            "deltas packed in a way nobody agreed on",
            "page 0 of chunk 0 comes in a form that was not agreed on",
            Frame { packing: 2, ..Frame::deltas(1, &[10], &[0; 10]) },
        ),
        (
            "an unchanged page that was never sent",
            "page 1 refers to contents that were never sent",
            Frame { masks: [0, 0, 2, 0, 0, 0, 0, 0], raw: Vec::new(), ..page() },
        ),
        ("columns of no width", "columns of page 0 do not make a page", Frame::columns(&[0, 0, 0])),
        ("columns past their end", "columns of page 0 do not make a page", Frame::columns(&[1, 1, 0, 7])),
        ("packed columns that are none", "packed deltas and columns from page 0 on do not decompress", Frame { packing: 1, ..packed_columns() }),
        ("a delta of a page that was never sent", "page 2 refers to contents that were never sent", Frame::deltas(4, &[10], &[0; 10])),
        ("a round end with a chunk", "reserved", Frame { chunk: 1, ..Frame::round_end() }),
        ("meta where none belongs", "meta", Frame { meta: vec![0; 8], ..zero_run() }),
        ("huge meta", "meta", Frame { meta_bytes: Some(u32::MAX), ..zero_run() }),
        ("a uniform page without its word", "meta", Frame { masks: [0, 1, 0, 0, 0, 0, 0, 0], raw: Vec::new(), ..page() }),
        ("an empty LZ4 block", "LZ4 block of page 0 has 0 bytes", Frame::packed(&[(0, &[]), (2, &[0, 0])])),
        ("an LZ4 block past the end", "meta bytes", Frame::packed(&[(100, &[0; 10])])),
        ("bytes after the LZ4 block", "meta bytes", Frame::packed(&[(26, &[LZ4_PAGE, &[0; 30]].concat())])),
        ("LZ4 to less than a page", "does not decompress to a page", Frame::packed(&[(2, &[0x10, 7])])),
        ("LZ4 to more than a page", "does not decompress to a page", Frame::packed(&[(40, &lz4_run(0xff, 33))])),
        ("LZ4 that refers to nothing", "does not decompress to a page", Frame::packed(&[(6, &[0x10, 7, 9, 0, 0x10, 7])])),
        ("LZ4 that is cut off", "does not decompress to a page", Frame::packed(&[(3, &[0xf0, 0xff, 0xff])])),
        ("LZ4 that is too long for itself", "LZ4 block of page 0 has 3585 bytes", long_block()),
        ("rounds out of order", "round", Frame { round: 7, ..Frame::round_end() }),
    ]
}

/// Columns of 3000 bytes, of which LZ4 makes more: a literal and a match that goes on and on.
fn packed_columns() -> Frame {
    let block = lz4_run(0xff, 100);
    let meta = [&3000u16.to_le_bytes()[..], &u32::try_from(block.len()).unwrap().to_le_bytes(), &block].concat();
    Frame { meta, ..Frame::columns(&[]) }
}

/// A page of sevens: one literal, a match of 4090 bytes, five literals.
const LZ4_PAGE: &[u8] = &[0x1f, 7, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 246, 0x50, 7, 7, 7, 7, 7];

/// One literal and a match so long that it makes far more than a page.
fn lz4_run(step: u8, steps: usize) -> Vec<u8> {
    [&[0x1f, 7, 1, 0][..], &vec![step; steps], &[0], &[0x10, 7]].concat()
}

fn long_block() -> Frame {
    let block = vec![0; 3585];
    Frame::packed(&[(3585, &block), (1, &[0])])
}

/// Runs one attack and checks everything that must hold after it.
fn run(attack: &Attack, host: &Host) -> Row {
    let sessions = host.sessions();
    let mut evil = EvilSource::at(attack.from, &host.endpoint);
    (attack.act)(&mut evil);
    check(attack.name, &attack.hears, attack.host, &mut evil, host);
    assert!(attack.from >= Stage::Accepted || sessions == host.sessions() || attack.name.contains("layout"), "{}: no session", attack.name);
    let said = if attack.from == Stage::Connected { host.first_said() } else { attack.host.to_owned() };
    host.serves_on();
    let heard = match attack.hears {
        Refused(reason, needle) => format!("Refuse ({reason}): {needle}"),
        Failed("") | Nothing => "the end".to_owned(),
        Failed(needle) => format!("Failed: {needle}"),
    };
    Row::new(attack.name, heard, said)
}

fn check(name: &str, hears: &Hears, reason: &str, evil: &mut EvilSource, host: &Host) {
    let heard = evil.control.last_words();
    match (hears, &heard) {
        (Refused(reason, needle), Some(Message::Refuse { reason: said, detail })) if said == reason && detail.contains(needle) => {}
        (Failed(needle), Some(Message::Failed { reason })) if reason.contains(needle) => {}
        (Failed("") | Nothing, None) => {}
        _ => panic!("{name}: heard {heard:?}, expected {hears:?}"),
    }
    if !matches!(hears, Failed(_)) {
        return;
    }
    let session = host.last_session();
    let ending = session.ending().unwrap_or_else(|| panic!("{name}: the guest was kept"));
    assert!(ending.contains(reason), "{name}: {ending:?} does not say {reason:?}");
    assert_eq!(session.resumes(), 0, "{name}: the guest ran");
    assert!(!session.seen.lock().unwrap().ran);
}

/// Each at a receiver of its own, of which the first thing that it says is known to be about this.
pub(crate) fn bad_beginnings() -> Vec<Row> {
    before_a_session().iter().map(|attack| run(attack, &Host::new())).collect()
}

pub(crate) fn off_the_path() -> Vec<Row> {
    let host = Host::new();
    in_a_session().iter().map(|attack| run(attack, &host)).collect()
}

pub(crate) fn nonsense() -> Vec<Row> {
    let host = Host::new();
    let attack = |(name, needle, frame): (&'static str, &'static str, Frame)| {
        let mut evil = EvilSource::at(Stage::Attached, &host.endpoint);
        evil.send(0, &frame.bytes());
        check(name, &Failed(needle), needle, &mut evil, &host);
        assert!(host.last_session().ending().unwrap().contains("channel 0"), "{name}");
        host.serves_on();
        Row::new(name, format!("Failed: {needle}"), needle)
    };
    senseless_frames().into_iter().map(attack).collect()
}

/// Connections that name a session which is another's, or none: each at a receiver of its own, beside the session that
/// it is after, and that session goes on.
pub(crate) fn strangers() -> Vec<Row> {
    let attach = |session, token, lane| Message::Attach { session, token, lane, generation: 0 };
    let (wrong_session, wrong_token) = (SessionId([0xee; 16]), Token([0; 16]));
    type Claim<'c> = (&'static str, &'c dyn Fn(&EvilSource) -> Message);
    let claims: [Claim<'_>; 6] = [
        ("a lane with another token", &|evil| attach(evil.offer.session, wrong_token, Lane::Bulk(0))),
        ("a lane of a session that there is not", &|evil| attach(wrong_session, evil.offer.token, Lane::Bulk(0))),
        ("a channel beyond those granted", &|evil| evil.attach_message(CHANNELS)),
        ("an urgent lane where post-copy was not granted", &|evil| attach(evil.offer.session, evil.offer.token, Lane::Urgent)),
        ("Resume with another token", &|evil| Message::Resume { session: evil.offer.session, token: wrong_token }),
        ("a second Hello of the same session", &|evil| Message::Hello(evil.offer.clone())),
    ];
    let row = |(what, claim): Claim<'_>| {
        let host = Host::new();
        let evil = EvilSource::at(Stage::Accepted, &host.endpoint);
        let mut stranger = Talk::to(&host.endpoint);
        stranger.say(&claim(&evil));
        let Some(Message::Refuse { reason, detail }) = stranger.last_words() else { panic!("{what}: taken in") };
        let said = host.first_said();
        let mut own = Talk::to(&host.endpoint);
        own.say(&evil.attach_message(0));
        assert_eq!(own.hear(), Some(Message::Attached { lane: Lane::Bulk(0) }), "{what}: the session goes on");
        evil.control.close();
        host.serves_on();
        Row::new(what, format!("Refuse ({reason}): {detail}"), said)
    };
    claims.into_iter().map(row).collect()
}

#[test]
fn an_altered_frame_is_noticed_wherever_it_was_altered() {
    let host = Host::new();
    // Chunk 0 of the guest has raw, LZ4 and zero pages.
    let length = EvilSource::at(Stage::Connected, &host.endpoint).frame(0).len();
    let inside = (0..FRAME_HEADER_BYTES).step_by(4).chain([FRAME_HEADER_BYTES - 1, FRAME_HEADER_BYTES, length / 2, length - 1]);
    for at in inside {
        let mut evil = EvilSource::at(Stage::Attached, &host.endpoint);
        let mut frame = evil.frame(0);
        frame[at] ^= 1;
        evil.send(0, &frame);
        let needle = if at < 4 { "no frame begins here" } else { "wrong checksum" };
        check(&format!("byte {at}"), &Failed(needle), "frame 0 of channel 0 is wrong", &mut evil, &host);
    }
    host.serves_on();
}

#[test]
fn frames_after_finish_change_nothing() {
    let host = Host::new();
    let mut evil = EvilSource::at(Stage::Ready, &host.endpoint);
    let extra = Frame { sequence: evil.totals()[0].frames, ..Frame::raw_page(0) }.bytes();
    evil.send(0, &extra);
    evil.control.say(&COMMIT);
    assert_eq!(evil.control.hear(), Some(Message::Running));
    evil.control.say(&Message::Released);
    let session = host.last_session();
    assert_eq!(session.ending(), None);
    assert!(session.seen.lock().unwrap().image.as_ref().unwrap() == &crate::guest::image(&evil.memory), "what was announced is what runs");
    host.serves_on();
}

#[test]
fn a_second_commit_runs_nothing_twice() {
    let host = Host::new();
    for second in [COMMIT, Message::Abort { reason: "changed my mind".into() }] {
        let mut evil = EvilSource::at(Stage::Running, &host.endpoint);
        evil.control.say(&second);
        assert_eq!(evil.control.last_words(), None);
        let session = host.last_session();
        assert_eq!((session.ending(), session.resumes()), (None, 1), "committed is committed");
        let mut doubt = Talk::to(&host.endpoint);
        doubt.say(&evil.query());
        assert_eq!(doubt.hear(), Some(Message::Answer(AnswerStatus::Running)));
        host.serves_on();
    }
}

#[test]
fn a_source_that_does_not_let_go_of_a_guest_that_runs_keeps_no_session() {
    let host = Host::new();
    let mut evil = EvilSource::at(Stage::Running, &host.endpoint);
    let since = Instant::now();
    while !evil.control.is_over() {
        evil.control.say(&Message::Ping);
        assert!(since.elapsed() < Duration::from_secs(10), "it is still listened to");
    }
    let session = host.last_session();
    assert_eq!((session.ending(), session.resumes()), (None, 1));
    host.serves_on();
}

#[test]
fn a_question_before_commit_rules_the_commit_out() {
    let host = Host::new();
    let mut evil = EvilSource::at(Stage::Ready, &host.endpoint);
    let mut doubt = Talk::to(&host.endpoint);
    doubt.say(&evil.query());
    assert_eq!(doubt.hear(), Some(Message::Answer(AnswerStatus::NeverStarted)));
    evil.control.say(&COMMIT);
    check("a late Commit", &Failed("asked what became"), "asked what became", &mut evil, &host);
    host.serves_on();
}

#[test]
fn a_source_that_is_gone_after_ready_is_told_never_started() {
    let host = Host::new();
    let evil = EvilSource::at(Stage::Ready, &host.endpoint);
    evil.control.close();
    assert!(host.last_session().ending().unwrap().contains("closed the control connection"));
    for (query, answer) in
        [(evil.query(), AnswerStatus::NeverStarted), (Message::Query { session: evil.offer.session, token: Token([0; 16]) }, AnswerStatus::Unknown)]
    {
        let mut doubt = Talk::to(&host.endpoint);
        doubt.say(&query);
        assert_eq!(doubt.last_words(), Some(Message::Answer(answer)));
    }
    let mut again = Talk::to(&host.endpoint);
    again.say(&Message::Hello(evil.offer.clone()));
    assert!(matches!(again.last_words(), Some(Message::Refuse { reason: RefuseReason::Busy, .. })), "the session's name is taken");
    host.serves_on();
}

#[test]
fn strangers_do_not_get_into_a_session() {
    let host = Host::new();
    let mut evil = EvilSource::at(Stage::Accepted, &host.endpoint);
    let mine = |channel| evil.attach_message(channel);
    let other_token = Message::Attach { session: evil.offer.session, token: Token([0; 16]), lane: Lane::Bulk(0), generation: 0 };
    let other_session = Message::Attach { session: SessionId([0xee; 16]), token: evil.offer.token, lane: Lane::Bulk(0), generation: 0 };
    let strangers = [
        (other_token, RefuseReason::Authorization, "token"),
        (other_session, RefuseReason::Authorization, "no such session"),
        (mine(CHANNELS), RefuseReason::Other, "channel 2 of 2"),
        (mine(MAX_CHANNELS - 1), RefuseReason::Other, "channel 63 of 2"),
    ];
    for (attach, reason, needle) in strangers {
        assert_refused(&host.endpoint, &attach, reason, needle);
    }
    let mut eager = Talk::to(&host.endpoint);
    let mut bytes = Vec::new();
    mine(0).encode(&mut bytes).unwrap();
    eager.say_bytes(&[bytes, Frame::raw_page(0).bytes()].concat());
    // One or two reads: either what follows is seen to come too early, or it is a frame like any other.
    let answer = eager.hear();
    assert!(matches!(answer, Some(Message::Refuse { .. } | Message::Attached { .. })), "{answer:?}");

    let mut question = Talk::to(&host.endpoint);
    question.say(&Message::Query { session: evil.offer.session, token: Token([0; 16]) });
    assert_eq!(question.last_words(), Some(Message::Answer(AnswerStatus::Unknown)), "and the session lives");
    let mut attached = Talk::to(&host.endpoint);
    attached.say(&mine(1));
    assert_eq!(attached.hear(), Some(Message::Attached { lane: Lane::Bulk(1) }));
    assert_refused(&host.endpoint, &mine(1), RefuseReason::Other, "");

    evil.control.say(&Message::Abort { reason: "enough".into() });
    assert_eq!(evil.control.last_words(), None);
    let ending = host.last_session().ending().unwrap();
    assert!(ending.contains("the peer gave up: enough"), "{ending}");
    host.serves_on();
}

fn assert_refused(endpoint: &Endpoint, attach: &Message, reason: RefuseReason, needle: &str) {
    let mut stranger = Talk::to(endpoint);
    stranger.say(attach);
    // To the end: a connection that was refused is closed.
    let answer = stranger.last_words();
    assert!(
        matches!(&answer, Some(Message::Refuse { reason: said, detail }) if *said == reason && detail.contains(needle)),
        "{attach:?}: {answer:?}"
    );
}

#[test]
fn a_channel_that_vanishes_when_it_is_attached_does_not_hold_the_session() {
    let folder = tempfile::tempdir().unwrap();
    // Over a Unix socket the receiver reads the whole of Attach and then cannot answer it.
    let host = Host::at(&Endpoint::Unix(folder.path().join("socket")));
    let mut evil = EvilSource::at(Stage::Accepted, &host.endpoint);
    for channel in 0..CHANNELS {
        let mut bulk = Talk::to(&host.endpoint);
        bulk.say(&evil.attach_message(channel));
        bulk.close();
    }
    std::thread::sleep(Duration::from_millis(200));
    evil.control.say(&Message::Finish { totals: evil.totals(), state: b"registers".to_vec(), missing: None });
    let heard = evil.control.last_words();
    assert!(matches!(&heard, Some(Message::Failed { reason }) if reason.contains("bulk")), "{heard:?}");
    assert!(host.last_session().ending().unwrap().contains("bulk"));
    host.serves_on();
}

#[test]
fn rounds_without_end_do_not_fill_the_memory() {
    let host = Host::new();
    let mut evil = EvilSource::at(Stage::Attached, &host.endpoint);
    let end = |round: u64| Frame { round: u16::try_from(round % (1 << 16)).unwrap(), sequence: round, ..Frame::round_end() }.bytes();
    for first in (0..=u64::from(u16::MAX)).step_by(1 << 12) {
        let ends: Vec<u8> = (first..first + (1 << 12)).flat_map(end).collect();
        (0..CHANNELS).for_each(|channel| evil.send(channel, &ends));
        evil.control.say(&Message::Ping);
    }
    evil.send(0, &end(1 << 16));
    let needle = "ends round 0 out of order";
    check("rounds", &Failed(needle), needle, &mut evil, &host);
    host.serves_on();
}

#[test]
fn a_source_that_falls_silent_is_let_go() {
    let host = Host::new();
    for (stage, needle) in [
        (Stage::Accepted, "while attaching channels"),
        (Stage::Attached, "nothing was heard from the peer"),
        (Stage::Copied, "nothing was heard from the peer"),
        (Stage::Ready, "nothing was heard from the peer"),
    ] {
        let mut evil = EvilSource::at(stage, &host.endpoint);
        if stage == Stage::Attached {
            let frame = evil.frame(0);
            evil.send(0, &frame[..frame.len() / 2]);
        }
        let since = Instant::now();
        check("silence", &Failed(needle), needle, &mut evil, &host);
        assert!(since.elapsed() < Duration::from_secs(10), "{:?} in {stage:?}", since.elapsed());
    }
    host.serves_on();
    assert_no_panic();
}
