//! A hostile source in post-copy, against the real receiver and the host's own userfaultfd: what it does wrong while
//! pages are missing costs its connections and no more, and the rightful one brings the rest.

use std::io::Write;
use std::thread;
use std::time::Instant;

use pageferry::bitmap::PageBitmap;
use pageferry::destination::Ending;
use pageferry::protocol::Timeouts;
use pageferry::transport::Endpoint;
use pageferry::units::{ChunkIndex, PageCount};
use pageferry::wire::{Extent, Lane, Message, SessionId, Token, channel_of};

use crate::following::{FIRST, Following};
use crate::forge::{self, Frame};
use crate::honest::{Host, TIMEOUTS};
use crate::log;
use crate::source::{CHANNELS, COMMIT, EvilSource};
use crate::table::Row;
use crate::talk::{PATIENCE, Talk, encoded};

fn host() -> Host {
    log::listen();
    let endpoint: Endpoint = "127.0.0.1:0".parse().unwrap();
    // What these sources do is never silence.
    Host::with(&endpoint, Timeouts { silence: PATIENCE, handshake: PATIENCE, ..TIMEOUTS })
}

/// Whether guests can run here before their memory is there; says so if not.
fn usable(host: &Host) -> bool {
    let following = Following::copied(host);
    match &following {
        Some(following) => following.source.control.close(),
        None => println!("skipped: no userfaultfd here, so nothing of post-copy is tried"),
    }
    following.is_some()
}

struct Attack {
    name: &'static str,
    /// Part of the reason at the receiver.
    needle: &'static str,
    act: fn(&mut Following),
}

/// Up to Commit: the guest never runs at the receiver.
fn before_commit() -> Vec<Attack> {
    [about_missing_pages(), about_stale_pages(), on_lanes()].into_iter().flatten().collect()
}

fn attack(name: &'static str, needle: &'static str, act: fn(&mut Following)) -> Attack {
    Attack { name, needle, act }
}

fn about_missing_pages() -> Vec<Attack> {
    vec![
        attack("more words of Missing than chunks", "6 words from chunk 0 on, there are 5 chunks", |evil| {
            evil.source.control.say(&Message::Missing { first: ChunkIndex(0), words: vec![1; 6] });
        }),
        attack("Missing from a chunk that there is not", "1 words from chunk 4294967295 on, there are 5 chunks", |evil| {
            evil.source.control.say(&Message::Missing { first: ChunkIndex(u32::MAX), words: vec![1] });
        }),
        attack("Missing with half a word", "bad words", |evil| evil.source.control.say_bytes(&forge::message(forge::MISSING, &[0; 9]))),
        attack("pieces of Missing that overlap", "5 words from chunk 0 on, after those up to chunk 5", |evil| {
            evil.say_missing();
            evil.say_missing();
        }),
        attack("Missing names a page past the region's end", "page 300 does not belong there", |evil| {
            evil.source.control.say(&Message::Missing { first: ChunkIndex(4), words: vec![1 << 44] });
        }),
        attack("Finish counts other pages than Missing", "85 pages announced, 84 came", |evil| {
            let extent = evil.extent();
            finish(evil, Some(Extent { pages: extent.pages + PageCount(1), ..extent }));
        }),
        attack("Finish counts other chunks than there are", "6 chunks announced, there are 5", |evil| {
            let extent = evil.extent();
            finish(evil, Some(Extent { chunks: extent.chunks + 1, ..extent }));
        }),
        attack("Finish without the switch after Missing", "pages are missing, and it does not switch to post-copy", |evil| finish(evil, None)),
    ]
}

fn about_stale_pages() -> Vec<Attack> {
    vec![
        attack("Stale twice", "Stale makes no sense: it has come before", |evil| {
            stale(evil, 0);
            stale(evil, 0);
        }),
        attack("Stale counts other pages than Missing", "0 pages announced, 84 came", |evil| {
            evil.say_missing();
            let (totals, chunks) = (evil.source.totals(), evil.missing.chunks());
            evil.source.control.say(&Message::Stale { totals, stale: Extent { chunks, pages: PageCount(0) } });
        }),
        attack("Finish before Discarded", "it comes before Discarded", |evil| {
            // Of a frame that never comes.
            stale(evil, 1 << 40);
            evil.switch();
            finish(evil, Some(evil.extent()));
        }),
        attack("Finish without a page that was discarded", "page 0 was discarded and is not missing", |evil| {
            discard(evil);
            evil.switch();
            let (chunks, pages) = (evil.missing.chunks(), PageCount(0));
            evil.source.control.say(&evil.finish(Extent { chunks, pages }));
        }),
        attack("Finish without the switch after Discarded", "pages were discarded, and it does not switch to post-copy", |evil| {
            discard(evil);
            evil.source.control.say(&evil.source.finish_message());
        }),
        attack("pages after Discarded", "pages were sent after some were discarded", |evil| {
            discard(evil);
            let frame = evil.source.frame(2);
            evil.source.send(channel_of(ChunkIndex(2), CHANNELS), &frame);
            evil.switch();
            finish(evil, Some(evil.extent()));
        }),
        attack("Discarded, the destination's word", "Discarded to an end that was receiving", |evil| evil.source.control.say(&Message::Discarded)),
    ]
}

fn on_lanes() -> Vec<Attack> {
    vec![
        attack("a page of post-copy before the switch", "a frame of kind 4 does not belong here", |evil| {
            let frame = Frame { kind: 4, sequence: evil.source.totals()[0].frames, ..Frame::raw_page(0) }.bytes();
            evil.source.send(0, &frame);
        }),
        attack("a chunk on the wrong channel", "belongs on channel 1", |evil| {
            let frame = Frame { sequence: evil.source.totals()[0].frames, round: 1, ..Frame::raw_page(1) }.bytes();
            evil.source.send(0, &frame);
        }),
        attack("garbage on the urgent lane before Commit", "a connection for pages was lost while waiting for Commit", |evil| {
            evil.switch();
            finish(evil, Some(evil.extent()));
            assert_eq!(evil.source.control.hear(), Some(Message::Ready));
            evil.urgent.say_bytes(&[0x55; 200]);
        }),
    ]
}

fn finish(evil: &mut Following, missing: Option<Extent>) {
    evil.say_missing();
    let finish = missing.map_or_else(|| evil.source.finish_message(), |missing| evil.finish(missing));
    evil.source.control.say(&finish);
}

/// Says that all pages which will be missing are stale, after so many frames more than were sent.
fn stale(evil: &mut Following, more: u64) {
    evil.say_missing();
    let mut totals = evil.source.totals();
    totals[0].frames += more;
    let stale = evil.extent();
    evil.source.control.say(&Message::Stale { totals, stale });
}

fn discard(evil: &mut Following) {
    stale(evil, 0);
    assert_eq!(evil.source.control.hear(), Some(Message::Discarded));
}

pub(crate) fn before_the_guest_goes() -> Vec<Row> {
    let host = host();
    if !usable(&host) {
        return Vec::new();
    }
    let row = |Attack { name, needle, act }| {
        let mut evil = Following::copied(&host).expect("usable");
        act(&mut evil);
        let heard = evil.source.control.last_words();
        assert!(matches!(&heard, Some(Message::Failed { reason }) if reason.contains(needle)), "{name}: heard {heard:?}");
        let session = host.last_session();
        let ending = session.ending().unwrap_or_else(|| panic!("{name}: the guest was kept"));
        assert!(ending.contains(needle), "{name}: {ending:?} does not say {needle:?}");
        assert!(session.resumes() == 0 && !session.seen.lock().unwrap().ran, "{name}: the guest ran");
        host.serves_on();
        Row::new(name, format!("Failed: {needle}"), needle)
    };
    before_commit().into_iter().map(row).collect()
}

/// Where something wrong comes, after Running.
#[derive(Clone, Copy)]
enum On {
    /// On the control connection.
    Control(fn(&Following) -> Vec<u8>),
    /// On a lane, after a page as it should be.
    Lane(Lane, fn() -> Vec<u8>),
}

/// While pages are missing.
fn after_running() -> Vec<(&'static str, &'static str, On)> {
    let bulk = |frame| On::Lane(Lane::Bulk(0), frame);
    vec![
        ("a page twice", "page 0 came twice", bulk(|| second(0, 1).bytes())),
        ("a page twice, among others that are missing", "page 0 came twice", bulk(|| second(0, 0b111).bytes())),
        ("a page twice, on the urgent lane", "page 0 came twice", On::Lane(Lane::Urgent, || second(0, 1).bytes())),
        ("a page that is not missing", "page 128 came but was not missing", bulk(|| second(2, 1).bytes())),
        ("a page that is not missing, on the urgent lane", "page 16 came but was not missing", On::Lane(Lane::Urgent, || second(0, 3 << 15).bytes())),
        ("a chunk outside the memory", "chunk 5 lies outside the memory", bulk(|| second(5, 1).bytes())),
        ("a page past the region's end", "the masks of chunk 4 name pages", bulk(|| second(4, 1 << 44).bytes())),
        ("a page of a round", "a frame of kind 1 does not belong here", bulk(|| Frame { kind: 1, ..second(0, 2) }.bytes())),
        ("a second switch", "a frame of kind 3 does not belong here", bulk(|| Frame { kind: 3, sequence: 1, ..Frame::default() }.bytes())),
        ("a round's number", "a reserved field is not zero", bulk(|| Frame { round: 1, ..second(0, 2) }.bytes())),
        ("a sequence gap", "it is numbered 7", bulk(|| Frame { sequence: 7, ..second(0, 2) }.bytes())),
        (
            "an altered page",
            "the payload of chunk 0 has a wrong checksum",
            bulk(|| {
                let mut frame = second(0, 2).bytes();
                *frame.last_mut().unwrap() ^= 1;
                frame
            }),
        ),
        (
            "an unchanged page",
            "page 1 of chunk 0 refers to what was sent before the switch",
            bulk(|| Frame { masks: [0, 0, 2, 0, 0, 0, 0, 0], raw: Vec::new(), ..second(0, 2) }.bytes()),
        ),
        ("garbage on the urgent lane", "no frame begins here", On::Lane(Lane::Urgent, || vec![0x55; 200])),
        (
            "Missing again",
            "Missing to an end that was fetching pages",
            On::Control(|_| encoded(&Message::Missing { first: ChunkIndex(2), words: vec![1] })),
        ),
        (
            "Stale",
            "Stale to an end that was fetching pages",
            On::Control(|evil| encoded(&Message::Stale { totals: evil.source.totals(), stale: evil.extent() })),
        ),
        ("Discarded", "Discarded to an end that was fetching pages", On::Control(|_| encoded(&Message::Discarded))),
        ("Finish again", "Finish to an end that was fetching pages", On::Control(|evil| encoded(&evil.finish(evil.extent())))),
        ("Commit again", "Commit to an end that was fetching pages", On::Control(|_| encoded(&COMMIT))),
        ("Released too early", "Released to an end that was fetching pages", On::Control(|_| encoded(&Message::Released))),
        ("Abort", "Abort to an end that was fetching pages", On::Control(|_| encoded(&Message::Abort { reason: "enough".into() }))),
        ("garbage on the control connection", "does not speak pageferry's protocol", On::Control(|_| vec![0x55; 100])),
    ]
}

/// Pages of post-copy with made-up contents, for the second frame of a lane.
fn second(chunk: u32, mask: u64) -> Frame {
    let raw = vec![7; 4096 * mask.count_ones() as usize];
    Frame { kind: 4, sequence: 1, masks: [0, 0, 0, 0, 0, 0, 0, mask], raw, ..Frame::raw_page(chunk) }
}

pub(crate) fn while_pages_are_missing() -> Vec<Row> {
    let host = host();
    if !usable(&host) {
        return Vec::new();
    }
    let row = |(name, needle, on)| {
        let (mut evil, said) = (Following::running(&host).expect("usable"), log::length());
        let session = host.last_session();
        let mut arrived = PageBitmap::new(evil.missing.chunks());
        match on {
            On::Control(bytes) => {
                let bytes = bytes(&evil);
                evil.source.control.say_bytes(&bytes);
            }
            On::Lane(lane, bytes) => {
                arrived.insert(FIRST);
                let bytes = [evil.first_frame(), bytes()].concat();
                match lane {
                    Lane::Urgent => evil.urgent.say_bytes(&bytes),
                    Lane::Bulk(channel) => evil.source.bulk[usize::from(channel)].write_all(&bytes).unwrap(),
                }
            }
        }
        assert_eq!(evil.source.control.last_words(), None, "{name}: the connection ends");
        while let Some(heard) = evil.urgent.hear() {
            assert!(matches!(heard, Message::Fetch { .. }), "{name}: {heard:?} on the urgent lane");
        }
        let reason = log::reason_after(said, needle);
        assert!(session.seen.lock().unwrap().ending.is_none(), "{name}: the guest waits");
        evil.recover(name, &arrived, &session);
        host.serves_on();
        Row::new(name, "the end", reason)
    };
    after_running().into_iter().map(row).collect()
}

/// A source that shows signs of life and brings nothing: it keeps its session, and somebody is told.
pub(crate) fn signs_of_life_while_pages_are_missing() -> Vec<Row> {
    let first = host();
    if !usable(&first) {
        return Vec::new();
    }
    let (host, what) = (host(), "signs of life and no page");
    let mut evil = Following::running(&host).expect("usable");
    let (session, since) = (host.last_session(), Instant::now());
    while since.elapsed() < TIMEOUTS.recover * 3 / 2 {
        evil.source.control.say(&Message::Ping);
        thread::sleep(TIMEOUTS.heartbeat);
    }
    let said = host.first_said();
    assert!(!evil.source.control.is_over(), "the guest is this end's, and its source may yet bring what it lacks");
    let mut lanes: Vec<_> = evil.source.bulk.drain(..).map(Talk::over).collect();
    evil.bring(&evil.missing, &mut lanes);
    let mut control = std::mem::replace(&mut evil.source.control, Talk::to(&host.endpoint));
    evil.expect_whole(what, &mut control, &session);
    let starved = match &session.seen.lock().unwrap().ending {
        Some(Ending::Completed { report }) => report.post_copy.as_ref().unwrap().starved,
        ending => panic!("{ending:?}"),
    };
    assert!(starved.is_some_and(|starved| starved >= TIMEOUTS.recover && starved < since.elapsed()), "{starved:?}");
    host.serves_on();
    vec![Row::new(what, "signs of life", said)]
}

/// Connections of others while pages are missing: the session goes on beside them.
pub(crate) fn strangers_while_pages_are_missing() -> Vec<Row> {
    let first = host();
    if !usable(&first) {
        return Vec::new();
    }
    let (wrong_session, wrong_token) = (SessionId([0xee; 16]), Token([0; 16]));
    type Claim<'c> = (&'static str, &'c dyn Fn(&EvilSource) -> Message);
    let attach = |evil: &EvilSource, token, lane, generation| Message::Attach { session: evil.offer.session, token, lane, generation };
    let claims: [Claim<'_>; 6] = [
        ("Resume with another session's token", &|evil| Message::Resume { session: evil.offer.session, token: wrong_token }),
        ("Resume of a session that there is not", &|evil| Message::Resume { session: wrong_session, token: evil.offer.token }),
        ("an urgent lane with another token", &|evil| attach(evil, wrong_token, Lane::Urgent, 0)),
        ("a second urgent lane", &|evil| attach(evil, evil.offer.token, Lane::Urgent, 0)),
        ("a lane of a generation to come", &|evil| attach(evil, evil.offer.token, Lane::Bulk(0), 1)),
        ("the session's Hello", &|evil| Message::Hello(evil.offer.clone())),
    ];
    let row = |(what, claim): Claim<'_>| {
        // Its own, of which the first thing that it says is known to be about this.
        let host = host();
        let mut evil = Following::running(&host).expect("usable");
        let session = host.last_session();
        let mut stranger = Talk::to(&host.endpoint);
        stranger.say(&claim(&evil.source));
        let Some(Message::Refuse { reason, detail }) = stranger.last_words() else { panic!("{what}: taken in") };
        let said = host.first_said();
        let mut lanes: Vec<_> = evil.source.bulk.drain(..).map(Talk::over).collect();
        evil.bring(&evil.missing, &mut lanes);
        let mut control = std::mem::replace(&mut evil.source.control, stranger);
        evil.expect_whole(what, &mut control, &session);
        host.serves_on();
        Row::new(what, format!("Refuse ({reason}): {detail}"), said)
    };
    claims.into_iter().map(row).collect()
}

#[test]
fn what_a_guest_gives_back_while_its_source_is_away_is_not_waited_for() {
    let (host, what) = (host(), "all that was missing is given back");
    if !usable(&host) {
        return;
    }
    let evil = Following::running(&host).expect("usable");
    let session = host.last_session();
    evil.source.control.close();
    let memory = session.memory.get().expect("admitted");
    for (chunk, pages) in evil.missing.occupied() {
        (0..64).filter(|bit| pages >> bit & 1 == 1).for_each(|bit| memory.discard(chunk.page(bit), PageCount(1)).unwrap());
    }
    let (mut control, _) = evil.resume(what, &evil.missing);
    assert_eq!(control.hear(), Some(Message::Complete { pages: evil.missing.count() }));
    control.say(&Message::Released);
    assert_eq!((session.ending(), session.resumes()), (None, 1));
    host.serves_on();
}
