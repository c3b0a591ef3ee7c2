//! One migration and what happens to it, drawn from a seed.
//!
//! What a seed means depends on the order of the draws here: seeds that are kept (`seeds.rs`) are checked against what they
//! are to mean.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::network::Directions::{self, Both, ToReceiver, ToSender};
use crate::network::Failure::{Elsewhere, ElsewhereAfter, Nothing, Reset};
use crate::network::Moment::{self, Later, Message, Said};
use crate::network::{Failure, Reach, Step};
use crate::processes::random::Random;

/// How far the migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Handshake,
    FirstRound,
    LaterRounds,
    Pause,
    /// Everything is sent, and Commit is not.
    Ready,
    /// From Commit to the answer.
    Commit,
    PostCopy,
    /// A connection of post-copy broke.
    Recovery,
    /// Only the last words are missing.
    End,
}

pub(crate) const PHASES: [Phase; 9] = [
    Phase::Handshake,
    Phase::FirstRound,
    Phase::LaterRounds,
    Phase::Pause,
    Phase::Ready,
    Phase::Commit,
    Phase::PostCopy,
    Phase::Recovery,
    Phase::End,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    PreCopy,
    /// Post-copy after so many rounds.
    Hybrid(u32),
    PostCopy,
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Sender,
    Receiver,
}

/// What happens, by its name in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    None,
    Reset,
    End,
    ResetOne,
    ShortStall,
    LongStall,
    StallOfOld,
    NothingArrives,
    NothingComesBack,
    Delay,
    Trickle,
    Flip,
    Overtaken,
    DownForAWhile,
    DownForGood,
    Killed(Side),
    ShortStop(Side),
    LongStop(Side),
    OutOfMemory(Side),
    DumpFull(Side),
    JsonFull(Side),
    ClockJump(Side),
    ToldToEnd(Side),
    ToldTwice(Side),
}

pub(crate) const FAULTS: [Fault; 33] = [
    Fault::None,
    Fault::Reset,
    Fault::End,
    Fault::ResetOne,
    Fault::ShortStall,
    Fault::LongStall,
    Fault::StallOfOld,
    Fault::NothingArrives,
    Fault::NothingComesBack,
    Fault::Delay,
    Fault::Trickle,
    Fault::Flip,
    Fault::Overtaken,
    Fault::DownForAWhile,
    Fault::DownForGood,
    Fault::Killed(Side::Sender),
    Fault::Killed(Side::Receiver),
    Fault::ShortStop(Side::Sender),
    Fault::ShortStop(Side::Receiver),
    Fault::LongStop(Side::Sender),
    Fault::LongStop(Side::Receiver),
    Fault::OutOfMemory(Side::Sender),
    Fault::OutOfMemory(Side::Receiver),
    Fault::DumpFull(Side::Sender),
    Fault::DumpFull(Side::Receiver),
    Fault::JsonFull(Side::Sender),
    Fault::JsonFull(Side::Receiver),
    Fault::ClockJump(Side::Sender),
    Fault::ClockJump(Side::Receiver),
    Fault::ToldToEnd(Side::Sender),
    Fault::ToldToEnd(Side::Receiver),
    Fault::ToldTwice(Side::Sender),
    Fault::ToldTwice(Side::Receiver),
];

pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) phase: Phase,
    pub(crate) fault: Fault,
    pub(crate) mode: Mode,
    pub(crate) kind: &'static str,
    pattern: &'static str,
    channels: u64,
    compress: &'static str,
    pub(crate) has_tls: bool,
    /// The sender's, the receiver's.
    pub(crate) backings: [&'static str; 2],
    pub(crate) steps: Vec<Step>,
    /// How many of the steps do not only lead to the moment.
    pub(crate) failures: usize,
    /// How long a stopped process stands still.
    pub(crate) stop: Duration,
    /// By how many seconds a clock jumps.
    pub(crate) jump: i64,
    /// By which signal a process is told to end, ...
    pub(crate) signal: Signal,
    /// ... and how soon again.
    pub(crate) again: Duration,
    /// Room on a full disk, or in a full memory, of as much as the guest's; it is scaled to what makes a fault.
    room_kib: u64,
}

impl Case {
    /// What `seed` stands for.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        // The seed itself goes through all faults, so that some successive ones have each.
        let fault = FAULTS[usize::try_from(seed % FAULTS.len() as u64).expect("an index")];
        let phase = match fault {
            Fault::DumpFull(_) => Phase::Pause,
            Fault::JsonFull(_) => Phase::End,
            _ => random.of(&PHASES),
        };
        let mode = random.of(match phase {
            Phase::FirstRound => &[Mode::PreCopy, Mode::Hybrid(1), Mode::Auto],
            Phase::LaterRounds => &[Mode::PreCopy, Mode::Hybrid(2), Mode::Auto],
            Phase::PostCopy | Phase::Recovery => &[Mode::Hybrid(1), Mode::Hybrid(2), Mode::PostCopy],
            _ => &[Mode::PreCopy, Mode::PreCopy, Mode::Hybrid(1), Mode::Hybrid(2), Mode::PostCopy, Mode::Auto],
        });
        let stop = match fault {
            Fault::ShortStop(_) => random.up_to(SHORT),
            _ => PATIENCE + PATIENCE / 4 + random.up_to(PATIENCE * 2),
        };
        let mut case = Self {
            seed,
            phase,
            fault,
            mode,
            kind: random.of(&["workload", "workload", "workload", "kvm"]),
            pattern: random.of(&["sweep", "random", "rewrite", "hot-cold"]),
            channels: random.within(1..5),
            compress: random.of(&["none", "none", "auto", "lz4", "zstd"]),
            has_tls: random.of(&[true, false, false, false]) && phase != Phase::End && cfg!(feature = "tls"),
            backings: [random.of(&BACKINGS), random.of(&BACKINGS)],
            steps: Vec::new(),
            failures: 0,
            stop,
            jump: random.of(&[-86_400, -3600, -2, 3, 3600, 86_400]),
            room_kib: random.within(0..(MEMORY_MIB << 10)),
            signal: Signal::SIGTERM,
            again: Duration::ZERO,
        };
        case.steps = case.moment(&mut random);
        let mut failures = case.failures(&mut random).into_iter();
        case.failures = failures.len();
        if let Some((_, failure)) = failures.next() {
            // To the very piece that makes the moment.
            case.steps.last_mut().expect("a moment").1 = failure;
        }
        case.steps.extend(failures);
        case.signal = random.of(&[Signal::SIGTERM, Signal::SIGINT]);
        case.again = random.up_to(SOON);
        case
    }

    /// Steps that lead to the moment; the last of them has nothing happen yet.
    fn moment(&self, random: &mut Random) -> Vec<Step> {
        let later = |random: &mut Random, line: &'static str, most: u64| {
            vec![(Said(line), Nothing), (Later(random.up_to(Duration::from_millis(most))), Nothing)]
        };
        let mut at = |messages: &[Moment]| vec![(random.of(messages), Nothing)];
        match self.phase {
            Phase::Handshake if self.has_tls => later(random, "connecting", 40),
            Phase::Handshake => {
                let lane = 1 + u32::try_from(self.channels / 2).expect("a few");
                at(&[Message("Hello", 1), Message("Accept", 1), Message("Attach", 1), Message("Attach", lane), Message("Attached", lane)])
            }
            Phase::FirstRound => later(random, "copying while", 400),
            Phase::LaterRounds => later(random, "round 0:", 200),
            Phase::Pause => later(random, "the guest is paused", 10),
            Phase::Ready | Phase::Commit if self.has_tls => later(random, "handing the guest over", 4),
            Phase::Ready => at(&[Message("Finish", 1), Message("Ready", 1)]),
            Phase::Commit => at(&[Message("Commit", 1), Message("Running", 1)]),
            Phase::PostCopy => later(random, FOLLOWS, 400),
            Phase::Recovery => {
                let mut steps = later(random, FOLLOWS, 150);
                steps.last_mut().expect("two steps").1 = Reset;
                let resume = if self.has_tls { Later(random.up_to(Duration::from_millis(200))) } else { self.in_recovery(random) };
                steps.push((resume, Nothing));
                steps
            }
            Phase::End if self.mode == Mode::PreCopy => at(&[Message("Running", 1), Message("Released", 1)]),
            Phase::End => at(&[Message("Complete", 1), Message("Released", 1)]),
        }
    }

    fn in_recovery(&self, random: &mut Random) -> Moment {
        let lane = 1 + u32::try_from(random.next() % (self.channels + 1)).expect("a lane");
        let soon = random.up_to(Duration::from_millis(300));
        random.of(&[Message("Resume", 1), Message("Arrived", 1), Message("Resumed", 1), Message("Attach", lane), Later(soon)])
    }

    /// What happens then. The first is due at once.
    fn failures(&self, random: &mut Random) -> Vec<Step> {
        let now = Later(Duration::ZERO);
        let long = Later(PATIENCE + PATIENCE / 4 + random.up_to(PATIENCE));
        let short = Later(random.up_to(SHORT));
        let way: Directions = random.of(&[Both, ToReceiver, ToSender]);
        let one_way = random.of(&[ToReceiver, ToSender]);
        match self.fault {
            Fault::None => vec![],
            Fault::Reset => vec![(now, random.of(&[Reset, Failure::LoseAndReset]))],
            Fault::End => vec![(now, Failure::PassAndEnd)],
            Fault::ResetOne => vec![(now, Failure::ResetOne(random.next()))],
            Fault::ShortStall => vec![(now, Failure::Silence(way, Reach::All)), (short, Failure::Speak)],
            Fault::LongStall => vec![(now, Failure::Silence(way, Reach::All)), (long, Failure::Speak)],
            Fault::StallOfOld => vec![(now, Failure::Silence(Both, Reach::Old))],
            Fault::NothingArrives => vec![(now, Failure::Silence(ToReceiver, Reach::Old))],
            Fault::NothingComesBack => vec![(now, Failure::Silence(ToSender, Reach::Old))],
            Fault::Delay => vec![(now, Failure::Delay(way, random.up_to(Duration::from_millis(200)))), (long, Failure::Flow)],
            Fault::Trickle => vec![(now, Failure::Trickle(way, random.of(&[500, 5_000, 50_000]))), (long, Failure::Flow)],
            Fault::Flip => {
                let reach = random.of(&[1 << 9, 1 << 10, 1 << 13, 1 << 20]);
                vec![(now, Failure::Flip(one_way, random.next() % reach))]
            }
            Fault::Overtaken => vec![(now, Failure::Overtake(random.up_to(Duration::from_millis(300))))],
            Fault::DownForAWhile => vec![(now, Failure::Down), (random.of(&[short, long]), Failure::Up)],
            Fault::DownForGood => vec![(now, Failure::Down)],
            Fault::Killed(_)
            | Fault::ShortStop(_)
            | Fault::LongStop(_)
            | Fault::OutOfMemory(_)
            | Fault::ClockJump(_)
            | Fault::ToldToEnd(_)
            | Fault::ToldTwice(_) => vec![(now, random.of(&[Elsewhere, ElsewhereAfter]))],
            // Full from the start.
            Fault::DumpFull(_) | Fault::JsonFull(_) => vec![],
        }
    }

    /// Whether both sides must come through it with the guest at the destination: nothing there is that lasts longer than
    /// the programs wait.
    pub(crate) fn must_arrive(&self) -> bool {
        let harmless = matches!(self.fault, Fault::None | Fault::ShortStop(_) | Fault::ClockJump(_) | Fault::JsonFull(_));
        let recovers = matches!(self.phase, Phase::PostCopy | Phase::Recovery) && !self.is_final();
        // Once the guest is given away it is too late to keep it, and one signal is not enough to give up what it lacks.
        let comes_late = match self.fault {
            Fault::ToldToEnd(Side::Sender) => self.phase == Phase::End || (self.phase == Phase::Commit && !self.has_tls),
            Fault::ToldToEnd(Side::Receiver) => self.phase == Phase::End,
            _ => false,
        };
        harmless || recovers || comes_late
    }

    /// Whether the guest cannot have gone yet when one side is told to end, so that it must not go.
    pub(crate) fn must_stay(&self) -> bool {
        let is_told = matches!(self.fault, Fault::ToldToEnd(_) | Fault::ToldTwice(_));
        is_told && self.phase == Phase::Handshake && self.mode == Mode::PreCopy
    }

    pub(crate) fn guest(&self) -> String {
        let Self { kind, pattern, seed, .. } = self;
        format!("{kind}:memory={MEMORY_MIB}MiB,fill={FILL_MIB}MiB,working-set=8MiB,rate=20000,pattern={pattern},seed={}", seed % 1000 + 1)
    }

    pub(crate) fn sender_flags(&self) -> String {
        let Self { channels, compress, backings: [backing, _], .. } = self;
        let mode = match self.mode {
            Mode::PreCopy => "--downtime-limit 20ms --max-rounds 4".to_owned(),
            Mode::Hybrid(rounds) => format!("--post-copy {rounds}"),
            Mode::PostCopy => "--post-copy 0".to_owned(),
            Mode::Auto => "--post-copy auto --downtime-limit 5ms".to_owned(),
        };
        format!("{mode} --channels {channels} --compress {compress} --backing {backing} --bandwidth 200Mbit/s --patience 2s {}", self.recover_for())
    }

    pub(crate) fn receiver_flags(&self) -> String {
        let [_, backing] = self.backings;
        let hold = if self.is_held() { "--hold" } else { "" };
        format!("--max-sessions 1 --backing {backing} --patience 2s {hold} {}", self.recover_for())
    }

    /// Whether the guest is not to run at the destination: there is an image of one that runs ahead of its memory only then.
    fn is_held(&self) -> bool {
        self.fault == Fault::DumpFull(Side::Receiver) && self.mode != Mode::PreCopy
    }

    /// For the fault of a disk that is full. Less than what the guest's memory is filled with, so that no image has room.
    pub(crate) fn disk_kib(&self) -> u64 {
        // None at all would be boundless.
        (self.room_kib * FILL_MIB / MEMORY_MIB).max(4)
    }

    /// For the fault of a memory that is full: what is left when the moment comes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.room_kib * LEFT_BYTES_EACH
    }

    /// Where it is in vain, not for long.
    fn recover_for(&self) -> &'static str {
        if self.is_final() { "--recover-for 2s" } else { "--recover-for 12s" }
    }

    /// Whether the two will never find each other again.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.fault, Fault::DownForGood | Fault::Killed(_) | Fault::OutOfMemory(_) | Fault::ToldTwice(_))
    }

    /// Whether `side` is told to end, once or twice.
    pub(crate) fn is_told(&self, side: Side) -> bool {
        matches!(self.fault, Fault::ToldToEnd(told) | Fault::ToldTwice(told) if told == side)
    }

    /// Whether the sender is told twice, in time, to give up a guest that it serves. (What is said sooner may be heard as one
    /// word.)
    pub(crate) fn is_insisted_on_in_post_copy(&self) -> bool {
        let is_served = matches!(self.phase, Phase::PostCopy | Phase::Recovery);
        self.fault == Fault::ToldTwice(Side::Sender) && is_served && self.again > Duration::from_millis(20)
    }

    /// Whether the host has to have some reserved.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.backings.contains(&"hugetlb")
    }

    pub(crate) fn name(&self) -> String {
        let Self { phase, fault, mode, kind, pattern, channels, compress, backings: [here, there], .. } = self;
        let tls = if self.has_tls { " tls" } else { "" };
        format!("{phase:?} {fault:?}: {mode:?} {kind} {pattern} x{channels} {compress} {here}-{there}{tls}")
    }
}

/// What the sender says when the guest has gone ahead.
const FOLLOWS: &str = "its pages follow";
const BACKINGS: [&str; 8] = ["anonymous", "anonymous", "anonymous", "anonymous", "memfd", "memfd", "memfd", "hugetlb"];
pub(crate) const MEMORY_MIB: u64 = 32;
const FILL_MIB: u64 = 14;
/// Bytes left in a full memory for each KiB drawn: up to 32 KiB, since a migration under way needs little more
/// than it has.
const LEFT_BYTES_EACH: u64 = 1;
/// As in the flags.
const PATIENCE: Duration = Duration::from_secs(2);
/// Well within it, for a machine under load.
const SHORT: Duration = Duration::from_millis(800);
/// From one signal to the next.
const SOON: Duration = Duration::from_millis(300);
