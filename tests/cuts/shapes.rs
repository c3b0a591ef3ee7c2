//! Ways for a network to fail in post-copy, and the migrations that meet them.

use std::ops::Range;
use std::time::Duration;

use crate::network::Directions::{Both, ToReceiver, ToSender};
use crate::network::Failure::{Down, LoseAndReset, Nothing, PassAndEnd, Reset, Silence, Speak};
use crate::network::Moment::{Bytes, Later, Message};
use crate::network::Reach::{All, Old};
use crate::network::Step;
use crate::processes::kvm;
use crate::processes::random::Random;

/// One migration and what happens to it.
pub(crate) struct Case {
    pub(crate) seed: u64,
    shape: Shape,
    kind: &'static str,
    pattern: &'static str,
    rounds: u32,
    channels: u32,
    pub(crate) steps: Vec<Step>,
    pub(crate) end: End,
    /// Whether a connection must have been made again.
    pub(crate) recovers: bool,
}

/// How it has to end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    /// The guest arrives.
    Arrives,
    /// It arrives after the sender has given up trying for the time being.
    Stranded,
    /// It stays at the source: Commit was lost.
    Stays,
    /// One or the other: nobody can say whether Commit was lost.
    Either,
}

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    Nothing,
    ResetInTheMiddle,
    EndInTheMiddle,
    ResetTwice,
    ResetAtResume,
    LostResume,
    ResetAtResumed,
    LostResumed,
    ResetAtAttach,
    ThreeAttemptsToAttach,
    ResetAtCommit,
    LostCommit,
    EndAtCommit,
    LostRunning,
    ResetAtComplete,
    LostComplete,
    LostReleased,
    Unreachable,
    ShortSilence,
    SilentConnections,
    LongSilence,
    SilenceThenReset,
    NothingArrives,
    NothingComesBack,
    SilenceInRecovery,
}

/// All of them. Case I of a run has the Ith, modulo.
pub(crate) const SHAPES: [Shape; 25] = [
    Shape::Nothing,
    Shape::ResetInTheMiddle,
    Shape::SilentConnections,
    Shape::EndInTheMiddle,
    Shape::ResetTwice,
    Shape::ResetAtResume,
    Shape::LongSilence,
    Shape::LostResume,
    Shape::ResetAtResumed,
    Shape::LostResumed,
    Shape::NothingComesBack,
    Shape::ResetAtAttach,
    Shape::ThreeAttemptsToAttach,
    Shape::ResetAtCommit,
    Shape::LostCommit,
    Shape::NothingArrives,
    Shape::EndAtCommit,
    Shape::LostRunning,
    Shape::ShortSilence,
    Shape::ResetAtComplete,
    Shape::LostComplete,
    Shape::SilenceThenReset,
    Shape::LostReleased,
    Shape::Unreachable,
    Shape::SilenceInRecovery,
];

impl Case {
    /// What `seed` stands for: its remainder the shape, the rest the details.
    pub(crate) fn new(seed: u64) -> Self {
        let shape = SHAPES[usize::try_from(seed % SHAPES.len() as u64).expect("an index")];
        let mut random = Random(seed);
        let mut case = Self {
            seed,
            shape,
            kind: random.of(&["workload", "kvm"]),
            pattern: random.of(&["sweep", "random", "rewrite", "hot-cold"]),
            rounds: random.of(&[0, 2]),
            channels: random.of(&[1, 4]),
            steps: Vec::new(),
            end: End::Arrives,
            recovers: false,
        };
        case.steps = case.steps(&mut random);
        if let Some((Bytes(_), _)) = case.steps.first() {
            // Bytes of post-copy are meant.
            case.steps.insert(0, (Message("Commit", 1), Nothing));
        }
        case.end = match shape {
            Shape::LostCommit => End::Stays,
            Shape::ResetAtCommit | Shape::EndAtCommit => End::Either,
            Shape::Unreachable => End::Stranded,
            _ => End::Arrives,
        };
        case.recovers = !matches!(
            shape,
            Shape::Nothing
                | Shape::ResetAtCommit
                | Shape::EndAtCommit
                | Shape::LostCommit
                | Shape::NothingComesBack
                | Shape::ResetAtComplete
                | Shape::LostComplete
                | Shape::LostReleased
                | Shape::ShortSilence
                | Shape::SilenceInRecovery
        );
        case
    }

    fn steps(&self, random: &mut Random) -> Vec<Step> {
        // Without compression that is how much there is to send. At least a fifth comes after the last moment.
        let all = u64::from(if self.rounds == 0 { FILL_MIB } else { WORKING_SET_MIB }) << 20;
        let mut within = |percent: Range<u64>| Bytes(random.within(all * percent.start / 100..all * percent.end / 100));
        let (early, late, middle) = (within(2..30), within(2..30), within(2..70));
        let lanes = self.channels + 1;
        let nth = 1 + u32::try_from(random.next() % u64::from(lanes)).expect("a lane");
        match self.shape {
            Shape::Nothing => vec![],
            Shape::ResetInTheMiddle => vec![(middle, Reset)],
            Shape::EndInTheMiddle => vec![(middle, PassAndEnd)],
            Shape::ResetTwice => vec![(early, Reset), (late, Reset)],
            Shape::ResetAtResume => vec![(middle, Reset), (Message("Resume", 1), Reset)],
            Shape::LostResume => vec![(middle, Reset), (Message("Resume", 1), LoseAndReset)],
            Shape::ResetAtResumed => vec![(middle, Reset), (Message("Resumed", 1), Reset)],
            Shape::LostResumed => vec![(middle, PassAndEnd), (Message("Resumed", 1), LoseAndReset)],
            Shape::ResetAtAttach => vec![(middle, Reset), (Message("Attach", nth), random.of(&[Reset, LoseAndReset, PassAndEnd]))],
            Shape::ThreeAttemptsToAttach => {
                let mut steps = vec![(middle, Reset)];
                for _ in 0..3 {
                    steps.push((Message("Attach", nth), random.of(&[Reset, LoseAndReset, PassAndEnd])));
                }
                steps
            }
            Shape::ResetAtCommit => vec![(Message("Commit", 1), Reset)],
            Shape::LostCommit => vec![(Message("Commit", 1), LoseAndReset)],
            Shape::EndAtCommit => vec![(Message("Commit", 1), PassAndEnd)],
            Shape::LostRunning => vec![(Message("Running", 1), LoseAndReset)],
            Shape::ResetAtComplete => vec![(Message("Complete", 1), Reset)],
            Shape::LostComplete => vec![(Message("Complete", 1), LoseAndReset)],
            Shape::LostReleased => vec![(Message("Released", 1), LoseAndReset)],
            Shape::Unreachable => vec![(middle, Down)],
            Shape::ShortSilence => vec![(middle, Silence(random.of(&[Both, ToReceiver, ToSender]), All)), (Later(SHORT), Speak)],
            Shape::SilentConnections => vec![(middle, Silence(Both, Old))],
            Shape::LongSilence => vec![(middle, Silence(random.of(&[Both, ToReceiver]), All)), (Later(LONG), Speak)],
            Shape::SilenceThenReset => {
                let reach = random.of(&[Old, All]);
                let mut steps = vec![(middle, Silence(Both, reach)), (Later(SHORT), Reset)];
                if reach == All {
                    steps.push((Later(SHORT), Speak));
                }
                steps
            }
            Shape::NothingArrives => vec![(middle, Silence(ToReceiver, Old))],
            Shape::NothingComesBack => vec![(middle, Silence(ToSender, Old))],
            Shape::SilenceInRecovery => {
                let reach = random.of(&[Old, All]);
                let mut steps = vec![(middle, Reset), (Message("Resume", 1), Silence(Both, reach))];
                if reach == All {
                    steps.push((Later(LONG), Speak));
                }
                steps
            }
        }
    }

    /// Whether it waits most of the time.
    pub(crate) fn is_slow(&self) -> bool {
        self.steps.iter().any(|(_, failure)| matches!(failure, Silence(..)))
    }

    /// Whether any connection breaks before it has to: pages that were under way are sent again then.
    pub(crate) fn is_interrupted(&self) -> bool {
        !matches!(self.shape, Shape::Nothing | Shape::ShortSilence)
    }

    /// Whether the receiver cannot know that the sender knows.
    pub(crate) fn ends_unconfirmed(&self) -> bool {
        matches!(self.shape, Shape::ResetAtComplete | Shape::LostReleased)
    }

    /// Why this one cannot be run here.
    pub(crate) fn unusable(&self) -> Option<String> {
        if self.kind == "kvm" { kvm().err() } else { None }
    }

    pub(crate) fn guest(&self) -> String {
        let Self { kind, pattern, seed, .. } = self;
        format!("{kind}:memory=64MiB,fill={FILL_MIB}MiB,working-set={WORKING_SET_MIB}MiB,rate=100000,pattern={pattern},seed={}", seed % 1000 + 1)
    }

    pub(crate) fn flags(&self) -> String {
        let Self { channels, rounds, .. } = self;
        let patience = if self.end == End::Stranded { "2s" } else { "60s" };
        format!("--post-copy {rounds} --channels {channels} --compress none --bandwidth 200Mbit/s --recover-for {patience}")
    }

    pub(crate) fn name(&self) -> String {
        let Self { shape, kind, pattern, rounds, channels, .. } = self;
        format!("{shape:?} {kind} {pattern} post-copy {rounds} x{channels}")
    }
}

const FILL_MIB: u32 = 32;
const WORKING_SET_MIB: u32 = 24;
/// Shorter than a peer may be silent.
const SHORT: Duration = Duration::from_secs(3);
/// Longer than that.
const LONG: Duration = Duration::from_secs(14);
