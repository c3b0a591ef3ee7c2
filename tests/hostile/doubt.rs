//! A link that breaks around Commit, between two honest ends: exactly one of them runs the guest, always.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pageferry::Error;
use pageferry::guest::Guest;
use pageferry::protocol::ProtocolError;
use pageferry::source::Migration;
use pageferry::stats::GuestOwner;
use pageferry::transport::{Endpoint, Listener, Stream, StreamControl};
use pageferry::wire::{AnswerStatus, Message, decode_message};

use crate::guest::Stamper;
use crate::honest::{Host, migrate, running_guest};
use crate::talk::PATIENCE;

/// Where the link breaks, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Commit does not come through.
    BeforeCommit,
    /// Commit comes through, nothing after it.
    AfterCommit,
    /// Commit is held back; the source's side breaks; Commit comes through when the source has asked.
    CommitLate,
}

/// A Commit that was held back, and where it goes.
type Late = Arc<Mutex<Option<(Stream, Vec<u8>)>>>;

/// A relay in front of a receiver that breaks all connections at a chosen moment.
#[derive(Clone)]
struct Relay {
    target: Endpoint,
    cut: Cut,
    links: Arc<Mutex<Vec<[StreamControl; 2]>>>,
    is_cut: Arc<AtomicBool>,
    /// Takes no connection after the cut.
    stays_dead: bool,
    late: Late,
}

impl Relay {
    fn start(target: &Endpoint, cut: Cut, stays_dead: bool) -> Endpoint {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = listener.endpoint().clone();
        let relay = Self { target: target.clone(), cut, links: Arc::default(), is_cut: Arc::default(), stays_dead, late: Arc::default() };
        thread::spawn(move || {
            while !(relay.stays_dead && relay.is_cut.load(Ordering::SeqCst)) {
                let source = listener.accept(Duration::from_millis(20)).unwrap();
                if let Some(source) = source.filter(|_| !(relay.stays_dead && relay.is_cut.load(Ordering::SeqCst))) {
                    relay.carry(source);
                }
            }
        });
        endpoint
    }

    fn carry(&self, source: Stream) {
        let target = Stream::connect(&self.target, PATIENCE).unwrap();
        self.links.lock().unwrap().push([source.control(), target.control()]);
        let (back_from, back_to) = (target.share(), source.share());
        let is_doomed = !self.is_cut.load(Ordering::SeqCst);
        let relay = self.clone();
        thread::spawn(move || relay.answer(back_from, back_to, is_doomed));
        let relay = self.clone();
        thread::spawn(move || relay.forward(source, target));
    }

    /// Destination to source, message by message: on a connection from before the cut nothing comes through after it.
    fn answer(&self, mut target: Stream, mut source: Stream, is_doomed: bool) {
        let (mut bytes, mut piece, mut runs) = (Vec::new(), [0; 4096], false);
        while !runs
            && let Ok(read) = target.read(&mut piece)
            && read > 0
        {
            bytes.extend_from_slice(&piece[..read]);
            while let Some((message, length)) = decode_message(&bytes).unwrap() {
                let message_bytes: Vec<u8> = bytes.drain(..length).collect();
                if is_doomed && self.is_cut.load(Ordering::SeqCst) {
                    runs |= message == Message::Running;
                } else {
                    let _ = source.write_all(&message_bytes);
                }
            }
        }
        source.control().shut_down();
        target.control().shut_down();
    }

    /// Source to destination, message by message until one says that frames follow.
    fn forward(&self, mut source: Stream, mut target: Stream) {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            while let Some((message, length)) = decode_message(&bytes).unwrap() {
                let message_bytes: Vec<u8> = bytes.drain(..length).collect();
                match message {
                    Message::Commit { .. } if !self.is_cut.swap(true, Ordering::SeqCst) => return self.break_at(target, message_bytes),
                    Message::Attach { .. } => {
                        let _ = target.write_all(&message_bytes);
                        return copy(source, target);
                    }
                    _ => {
                        let _ = target.write_all(&message_bytes);
                    }
                }
            }
            match source.read(&mut piece) {
                Ok(read) if read > 0 => bytes.extend_from_slice(&piece[..read]),
                _ => break,
            }
        }
        target.control().shut_down();
        // A question was asked and answered: now the old Commit arrives.
        if let Some((mut target, commit)) = self.late.lock().unwrap().take() {
            let _ = target.write_all(&commit);
        }
    }

    fn break_at(&self, mut target: Stream, commit: Vec<u8>) {
        let links: Vec<_> = self.links.lock().unwrap().drain(..).collect();
        match self.cut {
            Cut::BeforeCommit => links.iter().for_each(|[_, target]| target.shut_down()),
            // All ends when the answer comes, so that no question can overtake this.
            Cut::AfterCommit => return target.write_all(&commit).unwrap(),
            Cut::CommitLate => *self.late.lock().unwrap() = Some((target, commit)),
        }
        links.iter().for_each(|[source, _]| source.shut_down());
    }
}

fn copy(mut from: Stream, mut to: Stream) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut piece)
        && read > 0
        && to.write_all(&piece[..read]).is_ok()
    {}
    from.control().shut_down();
    to.control().shut_down();
}

/// How many ends run the guest.
fn owners(source: &Stamper, host: &Host) -> (bool, u32) {
    let session = host.last_session();
    session.ending();
    assert!(session.resumes() <= 1);
    (source.is_running(), session.resumes())
}

#[test]
fn a_link_cut_right_after_commit_resolves_to_the_destination() {
    let host = Host::new();
    for _ in 0..3 {
        let mut guest = running_guest();
        let completed = migrate(Migration::to(Relay::start(&host.endpoint, Cut::AfterCommit, false)), &mut guest).unwrap();
        assert_eq!(completed.report.guest_owner, GuestOwner::Destination);
        assert_eq!(owners(&guest, &host), (false, 1));
    }
    host.serves_on();
}

#[test]
fn a_link_cut_right_before_commit_resolves_to_the_source() {
    let host = Host::new();
    for cut in [Cut::BeforeCommit, Cut::CommitLate] {
        for _ in 0..3 {
            let mut guest = running_guest();
            let failure = migrate(Migration::to(Relay::start(&host.endpoint, cut, false)), &mut guest).unwrap_err();
            assert!(matches!(failure.error, Error::Protocol(ProtocolError::NeverStarted { .. })), "{cut:?}: {}", failure.error.in_full());
            assert_eq!(failure.owner, GuestOwner::Source);
            // Time for a late Commit to do harm.
            thread::sleep(Duration::from_millis(100));
            assert_eq!(owners(&guest, &host), (true, 0), "{cut:?}");
        }
    }
    host.serves_on();
}

#[test]
fn a_link_that_stays_dead_leaves_a_doubt_that_can_be_settled_later() {
    let host = Host::new();
    for (cut, answer, there) in [(Cut::AfterCommit, AnswerStatus::Running, 1), (Cut::BeforeCommit, AnswerStatus::NeverStarted, 0)] {
        let mut guest = running_guest();
        let relay = Relay::start(&host.endpoint, cut, true);
        let failure = migrate(Migration::to(relay.clone()), &mut guest).unwrap_err();
        assert_eq!(failure.owner, GuestOwner::InDoubt, "{cut:?}: {}", failure.error.in_full());
        assert_eq!(owners(&guest, &host), (false, there), "{cut:?}: never two");
        // The link is mended.
        let mended = Listener::bind(&relay).unwrap();
        let target = host.endpoint.clone();
        thread::spawn(move || {
            let source = mended.accept(PATIENCE).unwrap().unwrap();
            let target = Stream::connect(&target, PATIENCE).unwrap();
            let (back_from, back_to) = (target.share(), source.share());
            thread::spawn(move || copy(back_from, back_to));
            copy(source, target);
        });
        assert_eq!(failure.in_doubt.unwrap().ask(PATIENCE).unwrap(), answer, "{cut:?}");
        if answer == AnswerStatus::NeverStarted {
            guest.resume().unwrap();
        }
        assert_eq!(u32::from(guest.is_running()) + host.last_session().resumes(), 1, "{cut:?}: exactly one");
    }
    host.serves_on();
}
