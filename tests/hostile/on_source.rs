//! A hostile destination against the real source.

use std::thread;
use std::time::{Duration, Instant};

use pageferry::Error;
use pageferry::memory::MemoryLayout;
use pageferry::page::Codecs;
use pageferry::protocol::ProtocolError;
use pageferry::source::{Failure, Migration};
use pageferry::stats::{GuestOwner, Outcome};
use pageferry::transport::Listener;
use pageferry::units::{ByteCount, PageCount};
use pageferry::wire::{AnswerStatus, Features, Lane, Message, RefuseReason};

use crate::destination::{EvilDestination, next};
use crate::forge;
use crate::guest::{Stamper, filled};
use crate::honest::{TIMEOUTS, assert_no_panic, migrate, running_guest};
use crate::table::Row;
use crate::talk::{PATIENCE, Talk};

/// What the hostile side does; it returns what it heard last.
type Script = fn(&mut EvilDestination) -> Option<Message>;

/// An answer, of a kind.
type Say = fn(&mut Talk);

struct Attack {
    name: &'static str,
    script: Script,
    /// Part of the reason that the source's side is given.
    source: &'static str,
    /// Part of the reason that the hostile side is told, where somebody there can hear it.
    told: Option<&'static str>,
}

/// Attacks before everything is sent.
fn on_the_way() -> Vec<Attack> {
    [in_the_handshake(), while_attaching(), out_of_turn(), in_the_middle()].into_iter().flatten().collect()
}

fn attack(name: &'static str, source: &'static str, told: Option<&'static str>, script: Script) -> Attack {
    Attack { name, script, source, told }
}

fn in_the_handshake() -> Vec<Attack> {
    vec![
        attack("another protocol", "does not speak pageferry's protocol (its first bytes: 220 mail", Some("does not speak"), |evil| {
            evil.control.say_bytes(b"220 mail ready\r\n");
            evil.control.last_words()
        }),
        attack("closed at once", "the peer closed the control connection", None, |evil| {
            evil.control.close();
            None
        }),
        attack("no answer", "the handshake took longer than", Some("handshake took longer"), |evil| evil.control.last_words()),
        attack("another version", "protocol version 2", Some("protocol version 2"), |evil| {
            evil.control.say_bytes(&forge::envelope(2, forge::ACCEPT, 2, &[1, 0]));
            evil.control.last_words()
        }),
        attack("an altered envelope", "header has a wrong checksum", Some("checksum"), |evil| {
            evil.control.say_bytes(&forge::altered(&Message::Accept { channels: 1, codecs: Codecs::LZ4, features: Features::NONE, granule: 1 }, 10));
            evil.control.last_words()
        }),
        attack("an altered body", "Accept message has a wrong checksum", Some("checksum"), |evil| {
            evil.control.say_bytes(&forge::altered(&Message::Accept { channels: 1, codecs: Codecs::LZ4, features: Features::NONE, granule: 1 }, 32));
            evil.control.last_words()
        }),
        attack("a huge message", "more than", Some("more than"), |evil| {
            evil.control.say_bytes(&forge::envelope(1, forge::REFUSE, u32::MAX, &[]));
            evil.control.last_words()
        }),
        attack("no channels", "bad number of channels", Some("bad number of channels"), |evil| {
            evil.control.say_bytes(&forge::message(forge::ACCEPT, &[0, 0]));
            evil.control.last_words()
        }),
        attack("more channels than wanted", "5 channels granted, 2 were asked for", Some("5 channels granted"), |evil| {
            evil.control.say(&Message::Accept { channels: 5, codecs: Codecs::LZ4, features: Features::NONE, granule: 1 });
            evil.control.last_words()
        }),
        attack("Ready for a start", "Ready to an end that was offering", Some("Ready to an end"), |evil| {
            evil.control.say(&Message::Ready);
            evil.control.last_words()
        }),
        attack("Running for a start", "Running to an end that was offering", Some("Running to an end"), |evil| {
            evil.control.say(&Message::Running);
            evil.control.last_words()
        }),
    ]
}

fn while_attaching() -> Vec<Attack> {
    vec![
        attack("Refuse after Accept", "Refuse to an end that was", Some("Refuse to an end"), |evil| {
            evil.accept();
            evil.control.say(&Message::Refuse { reason: RefuseReason::Busy, detail: "full after all".into() });
            evil.control.last_words()
        }),
        attack("another channel attached", "out of place", Some("out of place"), |evil| {
            evil.accept();
            let (mut bulk, channel) = evil.bulk();
            bulk.say(&Message::Attached { lane: Lane::Bulk(channel + 1) });
            evil.control.last_words()
        }),
        attack("a channel refused", "the token is stale", Some("the token is stale"), |evil| {
            evil.accept();
            evil.bulk().0.say(&Message::Refuse { reason: RefuseReason::Authorization, detail: "the token is stale".into() });
            evil.control.last_words()
        }),
        attack("garbage on a channel", "does not speak", Some("does not speak"), |evil| {
            evil.accept();
            evil.bulk().0.say_bytes(&[0; 64]);
            evil.control.last_words()
        }),
        attack("a channel never attached", "handshake took longer", Some("handshake took longer"), |evil| {
            evil.accept();
            let _bulk = evil.bulk();
            evil.control.last_words()
        }),
        attack("a channel closed", "bulk", Some("bulk"), |evil| {
            evil.accept();
            drop(evil.attach());
            drop(evil.attach());
            evil.control.last_words()
        }),
    ]
}

fn out_of_turn() -> Vec<Attack> {
    vec![
        attack("Ready before Finish", "Ready to an end that was", Some("Ready to an end"), |evil| {
            evil.attach_all();
            evil.control.say(&Message::Ready);
            evil.control.last_words()
        }),
        attack("Running before Commit", "Running to an end", Some("Running to an end"), |evil| {
            evil.hear_finish();
            evil.control.say(&Message::Running);
            evil.control.last_words()
        }),
        attack("an Answer nobody asked for", "Answer to an end that was", Some("Answer to an end"), |evil| {
            evil.attach_all();
            evil.control.say(&Message::Answer(AnswerStatus::NeverStarted));
            evil.control.last_words()
        }),
        attack("the source's own words", "Commit to an end that was", Some("Commit to an end"), |evil| {
            evil.attach_all();
            evil.control.say(&crate::source::COMMIT);
            evil.control.last_words()
        }),
        attack("a second Accept", "Accept to an end that was", Some("Accept to an end"), |evil| {
            evil.attach_all();
            evil.accept();
            evil.control.last_words()
        }),
    ]
}

fn in_the_middle() -> Vec<Attack> {
    vec![
        attack("garbage in the middle", "does not speak", Some("does not speak"), |evil| {
            evil.attach_all();
            evil.control.say_bytes(&[0x55; 1000]);
            evil.control.last_words()
        }),
        attack("the end in the middle", "the peer closed the control connection", None, |evil| {
            evil.attach_all();
            evil.control.close();
            None
        }),
        attack("giving up in the middle", "the peer gave up: out of memory", None, |evil| {
            evil.attach_all();
            evil.control.say(&Message::Failed { reason: "out of memory".into() });
            evil.control.last_words()
        }),
        attack("silence in the middle", "nothing was heard from the peer", Some("nothing was heard"), |evil| {
            evil.attach_all();
            evil.control.last_words()
        }),
        attack("silence after Finish", "nothing was heard from the peer", Some("nothing was heard"), |evil| {
            evil.hear_finish();
            evil.control.last_words()
        }),
        attack("the end after Finish", "the peer closed the control connection", None, |evil| {
            evil.hear_finish();
            evil.control.close();
            None
        }),
        attack("giving up after Finish", "the peer gave up: totals", None, |evil| {
            evil.hear_finish();
            evil.control.say(&Message::Failed { reason: "totals".into() });
            evil.control.last_words()
        }),
        attack("giving up after Commit", "the peer gave up: no vCPU", None, |evil| {
            evil.hear_commit();
            evil.control.say(&Message::Failed { reason: "no vCPU".into() });
            evil.control.last_words()
        }),
        attack("a flood of signs of life", "the peer gave up: tired", None, |evil| {
            evil.attach_all();
            for frames in 0..100_000 {
                evil.control.say(&Message::Progress { frames, bytes: ByteCount(frames) });
            }
            evil.control.say(&Message::Failed { reason: "tired".into() });
            evil.control.last_words()
        }),
    ]
}

/// Runs a migration against `script`.
fn against<T: Send + 'static>(script: impl FnOnce(&mut EvilDestination) -> T + Send + 'static) -> (Box<Failure>, Stamper, T) {
    let (endpoint, evil) = EvilDestination::run(script);
    let mut guest = running_guest();
    let failure = migrate(Migration::to(endpoint), &mut guest).expect_err("no honest end");
    assert_no_panic();
    (failure, guest, evil.join().unwrap())
}

/// It is here, and it does run.
fn assert_runs_here(name: &str, failure: &Failure, guest: &Stamper) {
    assert_eq!((failure.owner, failure.report.guest_owner), (GuestOwner::Source, GuestOwner::Source), "{name}");
    assert!(guest.is_running() && failure.in_doubt.is_none(), "{name}");
    let word = || guest.memory.chunk(pageferry::units::ChunkIndex(0)).load_word(0, 5);
    let (before, since) = (word(), Instant::now());
    while word() == before {
        assert!(since.elapsed() < PATIENCE, "{name}: the guest does not write");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whatever a destination does before Commit, the guest runs on.
pub(crate) fn bad_destinations() -> Vec<Row> {
    let row = |Attack { name, script, source, told }| {
        let (failure, guest, heard) = against(script);
        let reason = failure.error.in_full();
        assert!(reason.contains(source), "{name}: {reason:?} does not say {source:?}");
        assert_eq!(failure.report.reason, reason, "{name}");
        assert_runs_here(name, &failure, &guest);
        if let Some(told) = told {
            assert!(matches!(&heard, Some(Message::Abort { reason }) if reason.contains(told)), "{name}: told {heard:?}");
        }
        Row::new(name, told.map_or_else(|| "the end".to_owned(), |told| format!("Abort: {told}")), source)
    };
    on_the_way().into_iter().map(row).collect()
}

#[test]
fn every_refusal_reaches_the_source_in_its_own_words() {
    use RefuseReason::{Authorization, Busy, Description, GuestKind, Layout, Memory, Other, Version};
    // A reason of a later version, too, and in a later version's envelope.
    for (version, code, expected) in [
        (1, 0, Other),
        (1, 1, Version),
        (1, 2, Layout),
        (1, 3, Memory),
        (1, 4, GuestKind),
        (1, 5, Description),
        (1, 6, Authorization),
        (1, 7, Busy),
        (1, 8, Other),
        (9, 1, Version),
    ] {
        let (failure, guest, _) = against(move |evil| {
            let body = [&u16::to_le_bytes(code)[..], &7u16.to_le_bytes(), b"because"].concat();
            evil.control.say_bytes(&forge::envelope(version, forge::REFUSE, body.len().try_into().unwrap(), &body));
            evil.control.last_words()
        });
        assert!(matches!(&failure.error, Error::Refused { reason, detail } if *reason == expected && detail == "because"), "{}", failure.error);
        assert_eq!(failure.report.outcome, Outcome::Refused);
        assert_runs_here("refused", &failure, &guest);
    }
}

#[test]
fn a_destination_that_takes_no_data_is_noticed() {
    let (endpoint, evil) = EvilDestination::run(|evil| {
        evil.accept();
        let _bulk: Vec<_> = (0..evil.offer.channels).map(|_| evil.attach()).collect();
        // Alive otherwise.
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(30) {
            evil.control.say(&Message::Progress { frames: 0, bytes: ByteCount(0) });
            thread::sleep(TIMEOUTS.heartbeat);
            if evil.control.is_over() {
                return since.elapsed();
            }
        }
        panic!("a stalled destination is put up with");
    });
    // More than the sockets' buffers hold.
    let mut guest = Stamper::new(filled(MemoryLayout::flat(PageCount(12_000)).unwrap()));
    pageferry::guest::Guest::resume(&mut guest).unwrap();
    let failure = migrate(Migration::to(endpoint), &mut guest).unwrap_err();
    assert!(failure.error.in_full().contains("the bulk"), "{}", failure.error.in_full());
    assert_runs_here("stalled", &failure, &guest);
    assert!(evil.join().unwrap() < Duration::from_secs(15));
}

#[test]
fn a_destination_that_is_gone_with_the_commit_leaves_the_guest_in_doubt_and_paused() {
    let (failure, guest, endpoint) = against(|evil| {
        evil.hear_commit();
        evil.control.close();
        evil.listener.endpoint().clone()
    });
    assert_in_doubt(&failure, &guest);
    let doubt = failure.in_doubt.as_ref().unwrap();
    assert!(doubt.ask(Duration::from_secs(1)).is_err(), "nobody is there");

    // Later somebody is, and says this or that.
    let listener = Listener::bind(&endpoint).unwrap();
    let answers: [(Say, Option<AnswerStatus>); 6] = [
        (|talk| talk.say(&Message::Answer(AnswerStatus::Unknown)), Some(AnswerStatus::Unknown)),
        (|talk| talk.say(&Message::Answer(AnswerStatus::Running)), Some(AnswerStatus::Running)),
        (|talk| talk.say(&Message::Answer(AnswerStatus::NeverStarted)), Some(AnswerStatus::NeverStarted)),
        (|talk| talk.say(&Message::Running), None),
        (|talk| talk.say_bytes(b"HTTP/1.1 200 OK\r\n\r\n"), None),
        (|talk| talk.close(), None),
    ];
    thread::scope(|scope| {
        for (say, expected) in answers {
            let answer = scope.spawn(|| doubt.ask(Duration::from_secs(5)).ok());
            let mut talk = next(&listener);
            assert!(matches!(talk.hear(), Some(Message::Query { .. })));
            say(&mut talk);
            assert_eq!(answer.join().unwrap(), expected);
        }
        let silent = scope.spawn(|| doubt.ask(Duration::from_millis(300)));
        let _talk = next(&listener);
        assert!(silent.join().unwrap().is_err());
    });
    assert!(!guest.is_running(), "an answer alone resumes nothing");
}

fn assert_in_doubt(failure: &Failure, guest: &Stamper) {
    assert_eq!((failure.owner, failure.report.outcome), (GuestOwner::InDoubt, Outcome::InDoubt), "{}", failure.error.in_full());
    assert!(matches!(failure.error, Error::InDoubt(_)));
    assert!(!guest.is_running() && failure.in_doubt.is_some());
}

#[test]
fn nonsense_instead_of_running_is_asked_about() {
    // Each breaks the connection for the source, which comes back to ask.
    let nonsense: [fn(&mut EvilDestination); 4] = [
        |evil| evil.control.say(&Message::Ready),
        |evil| evil.control.say_bytes(&[0x55; 64]),
        |evil| evil.control.close(),
        |evil| evil.control.say(&Message::Refuse { reason: RefuseReason::Other, detail: "no".into() }),
    ];
    for talk_nonsense in nonsense {
        let (failure, guest, ()) = against(move |evil| {
            evil.hear_commit();
            talk_nonsense(evil);
            evil.hear_query().say(&Message::Answer(AnswerStatus::NeverStarted));
        });
        assert!(matches!(failure.error, Error::Protocol(ProtocolError::NeverStarted { .. })), "{}", failure.error.in_full());
        assert_runs_here("never started", &failure, &guest);
    }
    let (endpoint, evil) = EvilDestination::run(|evil| {
        evil.hear_commit();
        evil.control.say_bytes(&[0x55; 64]);
        let mut doubt = evil.hear_query();
        doubt.say(&Message::Answer(AnswerStatus::Running));
        doubt.hear()
    });
    let mut guest = running_guest();
    let completed = migrate(Migration::to(endpoint), &mut guest).unwrap();
    assert_eq!(completed.report.guest_owner, GuestOwner::Destination);
    assert!(!guest.is_running(), "it runs there");
    assert_eq!(evil.join().unwrap(), Some(Message::Released));
}

#[test]
fn no_answer_but_the_two_ends_the_doubt() {
    let answers: [Say; 4] = [
        |talk| talk.say(&Message::Answer(AnswerStatus::Unknown)),
        |talk| talk.say(&Message::Running),
        |talk| talk.say(&Message::Failed { reason: "no such guest".into() }),
        |talk| talk.say_bytes(&[0; 32]),
    ];
    for say in answers {
        let (failure, guest, questions) = against(move |evil| {
            evil.hear_commit();
            evil.control.close();
            let mut questions = 0;
            while let Ok(Some(stream)) = evil.listener.accept(2 * TIMEOUTS.heartbeat + Duration::from_secs(1)) {
                let mut talk = Talk::over(stream);
                if let Some(Message::Query { .. }) = talk.hear() {
                    say(&mut talk);
                    questions += 1;
                }
                let _ = talk.hear();
            }
            questions
        });
        assert_in_doubt(&failure, &guest);
        assert!(questions > 1, "{questions} questions");
    }
}
