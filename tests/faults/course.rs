//! One case from beginning to end, each wait of it bounded.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::case::{Case, Fault, Side};
use crate::confines::{Confines, ControlGroup};
use crate::judge::{Last, Outcome, Slow, Strike, expect, judge};
use crate::network::Link;
use crate::processes::tally::Verdict;
use crate::processes::{Hand, Listening, Process, RECEIVE, SEND, kvm, userfaultfd};
use crate::standstill;

/// What a failure that is not the network's does, and to whom.
struct Blow {
    case: Case,
    confines: [Confines; 2],
    hands: [OnceLock<Hand>; 2],
    is_struck: AtomicBool,
}

/// What a program has said so far.
#[derive(Default)]
struct Heard {
    comes_in: AtomicBool,
    is_stranded: AtomicBool,
    has_ended: AtomicBool,
}

impl Heard {
    fn line(&self, line: &str) {
        let marks = [
            (&self.comes_in, "is coming in"),
            (&self.is_stranded, "STRANDED"),
            (&self.has_ended, "the guest has "),
            (&self.has_ended, "was refused"),
        ];
        for (mark, _) in marks.iter().filter(|(_, words)| line.contains(words)) {
            mark.store(true, Ordering::SeqCst);
        }
    }
}

fn is(mark: &AtomicBool) -> bool {
    mark.load(Ordering::SeqCst)
}

/// What became of the guest of this seed, or why it could not be tried.
///
/// A host that stands still makes everything late, and two seconds are not much for a busy one: what was only late then, or
/// failed before anything had happened to it, is tried again. Whatever hangs is not.
///
/// # Errors
/// When it went wrong, with all that both sides said.
pub(crate) fn run(seed: u64, keys: &Path) -> Result<Result<Outcome, Verdict>> {
    let mut attempts = 1;
    loop {
        let case = Case::new(seed);
        if let Some(reason) = unusable(&case) {
            return Ok(Err(Verdict::Skipped(reason)));
        }
        let (name, steps, stood) = (case.name(), case.steps.clone(), standstill::count());
        let confines = [Confines::new(&case, Side::Sender)?, Confines::new(&case, Side::Receiver)?];
        let blow = Arc::new(Blow { case, confines, hands: [OnceLock::new(), OnceLock::new()], is_struck: AtomicBool::new(false) });
        let error = match Blow::run(&blow, keys) {
            Ok(outcome) => return Ok(Ok(outcome)),
            Err(error) => error.context(format!("{name}, {steps:?}")),
        };
        let is_excused = standstill::count() > stood || blow.case.failures == 0 || !blow.is_struck.load(Ordering::SeqCst);
        if attempts == ATTEMPTS || !is_excused || error.downcast_ref::<Slow>().is_none() {
            return Err(error);
        }
        println!("again    --only {seed}: {}", error.root_cause().to_string().lines().next().unwrap_or_default());
        attempts += 1;
    }
}

fn unusable(case: &Case) -> Option<String> {
    (case.kind == "kvm").then(kvm).and_then(Result::err).or_else(|| userfaultfd().err()).or_else(|| Confines::unusable(case))
}

impl Blow {
    fn run(self: &Arc<Self>, keys: &Path) -> Result<Outcome> {
        let Self { case, confines: [here, there], hands, .. } = &**self;
        let (sent, received) = (Arc::new(Heard::default()), Arc::new(Heard::default()));
        let hear = Arc::clone(&received);
        let tls = if case.has_tls { format!("--tls {}", keys.display()) } else { String::new() };
        let receiver = there.command(RECEIVE, &format!("--listen 127.0.0.1:0 {tls} {}", case.receiver_flags()));
        let receiver = Listening::start_heard(receiver, move |line| hear.line(line))?;
        hands[1].set(receiver.process.hand()).ok();
        let striking = Arc::clone(self);
        let link = Link::start(&receiver.address, &case.steps, move || striking.strike())?;
        let (tell, hear) = (link.listener(), Arc::clone(&sent));
        let flags = format!("--to {} --guest {} {tls} {}", link.address, case.guest(), case.sender_flags());
        let sender = Process::start_heard(here.command(SEND, &flags), move |line| {
            hear.line(line);
            tell(line);
        })?;
        hands[0].set(sender.hand()).ok();
        let sender = self.end(Side::Sender, sender, |since| is(&sent.is_stranded) && (case.is_final() || since > STRANDED))?;
        let not_coming = if case.fault == Fault::Overtaken { OVERTAKEN } else { NOT_COMING };
        let receiver = self.end(Side::Receiver, receiver.process, |since| {
            let waits = is(&received.is_stranded) && sender.ended.code != Some(0);
            is(&received.has_ended) || waits || (!is(&received.comes_in) && since > not_coming)
        });
        let receiver = receiver.with_context(|| format!("sender: {}", sender.ended))?;
        let is_due = case.failures == 0 || (link.left() < case.failures && !link.has_a_bit_to_flip());
        let strike = match is_due {
            true if self.has_struck([&sender, &receiver]) => Strike::Hit,
            true => Strike::Missed,
            false => Strike::Late,
        };
        self.is_struck.store(strike == Strike::Hit, Ordering::SeqCst);
        let judged = judge(case, &sender, &receiver, &link).and_then(|outcome| expect(case, outcome, strike));
        judged.with_context(|| format!("sender: {}\nreceiver: {}", sender.ended, receiver.ended))
    }

    /// Waits until a side has ended or, as that says, will not end by itself.
    fn end(&self, side: Side, mut process: Process, is_over: impl Fn(Duration) -> bool) -> Result<Last> {
        let (since, mut ticks) = (Instant::now(), 0);
        while process.is_running()? && !is_over(since.elapsed()) {
            ticks += 1;
            // Counted, for a host that stands still; more than that on a busy one.
            if ticks > LIMIT.as_millis() / TICK.as_millis() {
                let threads = threads(process.pid());
                let said = process.kill()?;
                bail!("{side:?} HANGS: {said}\n{threads}");
            }
            std::thread::sleep(TICK);
        }
        // The report comes right behind the words.
        let grace = Instant::now();
        while process.is_running()? && grace.elapsed() < LAST_WORDS {
            std::thread::sleep(TICK);
        }
        let was_there = process.is_running()?;
        let ended = if was_there { process.kill()? } else { process.wait(LIMIT)? };
        let was_killed = !was_there
            && match self.group(side) {
                Some(group) => group.has_killed(),
                // A receiver that is told a second time ends where it is.
                None if self.case.fault == Fault::ToldTwice(Side::Receiver) => side == Side::Receiver && ended.code == Some(1),
                None => self.case.fault == Fault::Killed(side),
            };
        Ok(Last { ended, was_there, was_killed })
    }

    /// Whether a fault that was there came into effect: a disk or a memory may have room for all that is wanted of it.
    fn has_struck(&self, [sender, receiver]: [&Last; 2]) -> bool {
        let last = |side| if side == Side::Sender { sender } else { receiver };
        match self.case.fault {
            Fault::DumpFull(side) => last(side).said("No space left"),
            Fault::JsonFull(side) => last(side).said("the report could not be written"),
            Fault::OutOfMemory(side) => {
                let was_refused = ["Cannot allocate memory", "control group leaves"].iter().any(|words| last(side).said(words));
                was_refused || self.group(side).is_some_and(ControlGroup::has_killed)
            }
            _ => true,
        }
    }

    fn group(&self, side: Side) -> Option<&ControlGroup> {
        match &self.confines[usize::from(side == Side::Receiver)] {
            Confines::Memory(group) => Some(group),
            _ => None,
        }
    }

    /// The moment has come.
    fn strike(self: &Arc<Self>) {
        let (side, signal) = match self.case.fault {
            Fault::Killed(side) => (side, Some(Signal::SIGKILL)),
            Fault::ShortStop(side) | Fault::LongStop(side) => (side, Some(Signal::SIGSTOP)),
            Fault::ToldToEnd(side) | Fault::ToldTwice(side) => (side, Some(self.case.signal)),
            Fault::OutOfMemory(side) | Fault::ClockJump(side) => (side, None),
            _ => return,
        };
        let index = usize::from(side == Side::Receiver);
        let Some(signal) = signal else {
            // Memory that cannot be had back is no failure: the limit does not hold then, and nothing happens.
            if let Err(error) = self.confines[index].fail(&self.case) {
                eprintln!("--only {}: {error:#}", self.case.seed);
            }
            return;
        };
        // The sender says its first words before this knows it.
        let hand = self.hands[index].wait().clone();
        // One that has just ended cannot be struck any more.
        let _ = hand.signal(signal);
        let (later, next) = match self.case.fault {
            Fault::ShortStop(_) | Fault::LongStop(_) => (self.case.stop, Signal::SIGCONT),
            Fault::ToldTwice(_) => (self.case.again, signal),
            _ => return,
        };
        std::thread::spawn(move || {
            std::thread::sleep(later);
            let _ = hand.signal(next);
        });
    }
}

/// What each thread of a process waits for in the kernel, as far as this user may know.
fn threads(pid: u32) -> String {
    let read = |path: &Path, file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| task.path()).map(|task| format!("{}{}", read(&task, "comm"), read(&task, "stack"))).collect()
}

const ATTEMPTS: u32 = 4;
const TICK: Duration = Duration::from_millis(10);
/// How long one side may take after the other has ended.
const LIMIT: Duration = Duration::from_secs(60);
/// For a sender that has given up for the time being to come back to it.
const STRANDED: Duration = Duration::from_secs(30);
/// For an offer that is under way.
const NOT_COMING: Duration = Duration::from_secs(1);
/// For the rest of an old connection to arrive.
const OVERTAKEN: Duration = Duration::from_secs(5);
/// From the last words on the terminal to the end, or to the report at least.
const LAST_WORDS: Duration = Duration::from_millis(300);
