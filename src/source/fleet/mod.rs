//! Many guests on their way at the same time, from one process.
//!
//! Migrations that know nothing of each other compete: a hundred threads pack pages for guests that run anyway, while the
//! one guest that stands still waits for a processor, and then for the link. In a fleet they take turns instead, at the
//! processors and, where the fleet has a bandwidth, at the link: a few threads at a time, guests that stand still first,
//! the others evenly ([`Line`](mod@line)). Only a few guests stand still at a time ([`Berths`](berths)).
//!
//! And only a few begin to send at a time, while the others run, connected and ready. A hundred guests that share a link
//! all take a hundred times as long as one: each writes to more of its pages meanwhile, which go again, and what is on its
//! way is spread over so many queues and pages that no cache holds it.
//!
//! What a migration shares with the others is time, and estimates of what pages and connections are like. Nobody holds a turn while waiting for a peer, so one that fails,
//! is refused or hangs does not touch the rest.

mod allotment;
mod berths;
mod line;
mod turns;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};

pub(super) use allotment::{Allotment, WorkTurn};
pub(super) use berths::Berth;
pub(super) use line::Urgency;
pub(super) use turns::Seat;

use crate::error::Error;
use crate::page::Chooser;
use crate::transport::Pacer;
use crate::units::{ByteCount, BytesPerSec};
use berths::Berths;
use line::MemberId;
use turns::Turns;

/// What migrations of one process share. Clones are the same fleet; hand it to each with
/// [`Migration::in_fleet`](super::Migration::in_fleet).
///
/// A guest that had to wait before it was stopped sends what it has written meanwhile in one round more, its limits
/// notwithstanding.
#[derive(Clone, Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    processors: Arc<Turns>,
    link: Arc<Turns>,
    /// The link's rate; used by whoever has the turn.
    pacer: Pacer,
    last_rounds: Arc<Berths>,
    senders: Arc<Berths>,
    /// Migrations that send.
    sending: AtomicUsize,
    /// The last one's that has sent its pages: the next one's are much like them, and so is its connection.
    chooser: Mutex<Option<Chooser>>,
    /// Migrations so far.
    enrolled: AtomicU64,
}

impl Fleet {
    /// For this host's processors, without a limit on bandwidth.
    #[must_use]
    pub fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            shared: Arc::new(Shared {
                processors: Turns::new(processors + SENDING_BESIDES),
                link: Turns::new(1),
                pacer: Pacer::new(None),
                last_rounds: Berths::new(STANDING, STANDING_FOR),
                senders: Berths::new(processors + SENDING_BESIDES, SENDING_FOR),
                sending: AtomicUsize::new(0),
                chooser: Mutex::new(None),
                enrolled: AtomicU64::new(0),
            }),
        }
    }

    /// Changes the rate of all migrations together from now on; `None` is unpaced. Each may have a limit of its own
    /// besides ([`Migration::bandwidth`](super::Migration::bandwidth)).
    pub fn set_bandwidth(&self, rate: Option<BytesPerSec>) {
        self.shared.pacer.set_rate(rate);
    }

    /// Runs `jobs`, one migration each, on threads of their own: started in this order, at most `at_a_time` under way.
    /// A job counts until it ends or drops its [`Place`]. What each came to, in the same order; an error where the system
    /// gave no thread.
    ///
    /// # Panics
    /// When a job does, after the others.
    pub fn run_all<J: Send, R: Send>(at_a_time: NonZeroUsize, jobs: Vec<J>, run: impl Fn(J, Place) -> R + Sync) -> Vec<Result<R, Error>> {
        let at_a_time = at_a_time.get().min(jobs.len());
        // As many words as places: giving one back never waits.
        let (free, places) = bounded(at_a_time);
        let place = || Place { free: free.clone() };
        (0..at_a_time).map(|_| place()).for_each(drop);
        let run = &run;
        std::thread::scope(|scope| {
            let start = |job| {
                places.recv().expect("the other end is here too");
                let place = place();
                Builder::new().name("pf-migration".into()).spawn_scoped(scope, move || run(job, place))
            };
            // All are started before any is waited for.
            let threads: Vec<_> = jobs.into_iter().map(start).collect();
            let ended = threads.into_iter().map(|thread| match thread {
                Ok(thread) => Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
                Err(source) => Err(Error::System { action: "start a thread", source }),
            });
            ended.collect()
        })
    }

    /// One more migration.
    pub(super) fn enrol(&self) -> Arc<Member> {
        // Relaxed: a number to tell members apart by.
        let id = self.shared.enrolled.fetch_add(1, Ordering::Relaxed);
        Arc::new(Member { fleet: Arc::clone(&self.shared), id, stands_still: AtomicBool::new(false) })
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

/// One of those that may be under way at a time; the next is started when it is dropped.
#[derive(Debug)]
pub struct Place {
    free: Sender<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // There is room: no more words than places.
        let _ = self.free.try_send(());
    }
}

/// A migration in a fleet, until the last of its threads lets go of it.
#[derive(Debug)]
pub(super) struct Member {
    fleet: Arc<Shared>,
    id: MemberId,
    stands_still: AtomicBool,
}

/// Among those of a fleet that send, until it is dropped.
#[derive(Debug)]
pub(super) struct Sending {
    fleet: Arc<Shared>,
    /// While it begins.
    berth: Option<Berth>,
}

impl Sending {
    /// The bulk is sent: the next one may begin, while this one mostly waits for its peer.
    pub(super) fn make_room(&mut self) {
        self.berth = None;
    }
}

impl Member {
    /// Asks to be one of the few who begin to send.
    pub(super) fn ask_to_send(&self) -> Berth {
        self.fleet.senders.ask(Instant::now())
    }

    /// From now on it sends, having asked for `berth` and waited for long enough.
    pub(super) fn begin_to_send(&self, berth: Berth) -> Sending {
        // Relaxed: a number to go by, here and below.
        self.fleet.sending.fetch_add(1, Ordering::Relaxed);
        Sending { fleet: Arc::clone(&self.fleet), berth: Some(berth) }
    }

    /// Asks to be one of the few whose guest stands still.
    pub(super) fn ask_for_last_round(&self) -> Berth {
        self.fleet.last_rounds.ask(Instant::now())
    }

    /// From now on its pages go first, or not any more.
    pub(super) fn set_urgent(&self, urgent: bool) {
        // Relaxed: a worker gets its round through a queue after this.
        self.stands_still.store(urgent, Ordering::Relaxed);
    }

    /// Channels to use where a migration by itself would use `alone`, for a guest of `memory`: other guests keep the processors
    /// as busy as other channels do, and a connection and its threads cost a small guest as much as a large one.
    pub(super) fn channels(&self, alone: u16, memory: ByteCount) -> u16 {
        alone.min(u16::try_from(memory.0 / CHANNEL_WORTH.0).unwrap_or(u16::MAX)).max(1)
    }

    /// How often to look at something that changes soon, if a migration by itself would after `alone`: so many threads
    /// that look often have no time for anything else.
    pub(super) fn look_every(&self, alone: Duration) -> Duration {
        let sending = u32::try_from(self.fleet.sending.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        alone.saturating_mul(sending.clamp(1, MOST_PATIENCE))
    }

    fn urgency(&self) -> Urgency {
        if self.stands_still.load(Ordering::Relaxed) { Urgency::Urgent } else { Urgency::Ordinary }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.fleet.processors.forget(self.id);
        self.fleet.link.forget(self.id);
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.fleet.sending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Guests that stand still at a time with pages to send: while one is being harvested the other's go.
const STANDING: usize = 2;
/// For how long one of them counts.
const STANDING_FOR: Duration = Duration::from_millis(500);
/// Guests that begin to send at a time, and threads that pack pages, beside one for each processor: some wait for their peers
/// or for a page meanwhile.
const SENDING_BESIDES: usize = 1;
/// For how long one of them counts: small guests are sent by then, and large ones share with those that come.
const SENDING_FOR: Duration = Duration::from_secs(10);
/// As much of a guest is worth a channel.
const CHANNEL_WORTH: ByteCount = ByteCount(64 << 20);
/// By this factor at most a migration looks less often.
const MOST_PATIENCE: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_start_in_order_and_no_more_than_so_many_at_a_time() {
        let (started, now, most) = (Mutex::new(Vec::new()), AtomicUsize::new(0), AtomicUsize::new(0));
        let run = |job: usize, _place: Place| {
            started.lock().unwrap().push(job);
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            now.fetch_sub(1, Ordering::SeqCst);
            job * 2
        };
        let one = |count| NonZeroUsize::new(count).unwrap();
        let ended: Vec<usize> = Fleet::run_all(one(1), (0..20).collect(), run).into_iter().map(Result::unwrap).collect();
        assert_eq!(ended, (0..20).map(|job| job * 2).collect::<Vec<_>>());
        assert_eq!(*started.lock().unwrap(), (0..20).collect::<Vec<_>>());
        assert_eq!(most.swap(0, Ordering::SeqCst), 1);
        assert_eq!(Fleet::run_all(one(4), (0..20).collect(), run).len(), 20);
        assert!(most.load(Ordering::SeqCst) <= 4);
        assert!(Fleet::run_all(one(usize::MAX), Vec::new(), run).is_empty());
    }

    #[test]
    fn few_begin_to_send_at_a_time_and_only_those_make_the_others_patient() {
        let fleet = Fleet::new();
        let members: Vec<_> = (0..1000).map(|_| fleet.enrol()).collect();
        let mut berths: Vec<_> = members.iter().map(|member| member.ask_to_send()).collect();
        let granted = |berths: &[Berth]| berths.iter().filter(|berth| berth.granted().try_recv().is_ok()).count();
        let few = granted(&berths);
        assert!((1..members.len()).contains(&few) && granted(&berths) == 0, "{few}");
        let mut sending: Vec<_> = members.iter().zip(berths.drain(..few)).map(|(member, berth)| member.begin_to_send(berth)).collect();
        let alone = Duration::from_micros(200);
        let patience = alone * u32::try_from(few).unwrap().min(MOST_PATIENCE);
        assert_eq!(members[few].look_every(alone), patience);
        sending[0].make_room();
        assert_eq!((granted(&berths), members[few].look_every(alone)), (1, patience), "one more begins, and all send");
        drop(sending);
        assert_eq!(members[few].look_every(alone), alone);
        assert_eq!(granted(&berths), few - 1, "the others have left");
    }

    #[test]
    fn a_small_guest_has_few_channels_and_one_at_least() {
        let member = Fleet::new().enrol();
        let channels = |alone, mebibytes: u64| member.channels(alone, ByteCount(mebibytes << 20));
        assert_eq!([channels(2, 1), channels(2, 127), channels(2, 128), channels(8, 1 << 20), channels(1, 4096)], [1, 1, 2, 8, 1]);
    }

    #[test]
    fn one_that_gives_its_place_up_lets_the_next_start() {
        let (tell, told) = bounded(1);
        let run = |is_first: bool, place: Place| {
            drop(place);
            if is_first { told.recv_timeout(Duration::from_secs(20)).is_ok() } else { tell.send(()).is_ok() }
        };
        let ended = Fleet::run_all(NonZeroUsize::MIN, vec![true, false], run);
        assert!(ended.into_iter().all(|ended| ended.unwrap()), "the first waits for the second");
    }
}
