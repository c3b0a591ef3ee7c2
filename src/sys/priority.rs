//! Being run at once when there is something to do, for moments at a time, or only when nobody else is.
//!
//! For threads that a guest waits for and that do little: each microsecond until they run is one in which the guest
//! stands still. Those that do much at a time get out of their way. And a guest that shares its processors with those
//! who copy its memory does not stand still for some ticks of the scheduler (4 ms each, commonly) at a time.
//!
//! Coming soon is for everyone to ask. Coming before others (a lower nice value, a real-time class) takes `CAP_SYS_NICE` or
//! `RLIMIT_NICE`, and is left out without; what it does for threads that work is in [`crowd`](super::crowd). What keeps the turns
//! of others short is in [`beat`](super::beat).
//!
//! <https://man7.org/linux/man-pages/man7/sched.7.html>,
//! <https://man7.org/linux/man-pages/man2/sched_setattr.2.html> (on Linux the nice value is each thread's own),
//! <https://docs.kernel.org/scheduler/sched-eevdf.html> (the slice; Linux 6.12).

use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use super::beat::Beat;
use super::crowd::{Company, Share};

/// Puts the calling thread before all ordinary ones, as far as the system allows it to. Threads that it starts are
/// ordinary ones again.
pub(crate) fn raise() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: sets how this thread (0) is scheduled; the kernel only reads the parameters.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if result != 0 {
        let refused = io::Error::last_os_error();
        tracing::debug!(error = %refused, nice = set_nice(FIRST), "no real-time priority");
    }
}

/// Puts the calling thread behind those that do not do this.
pub(crate) fn lower() {
    schedule(BEHIND, Duration::ZERO, 0);
}

/// Has the calling thread, which does little at a time, run soon after it is woken: before those that run for longer, and as
/// often as it needs to, if the system lets it. Threads that it starts are ordinary ones again.
#[must_use = "as long as this lives"]
pub(crate) fn be_prompt() -> Prompt {
    Prompt::begin(libc::SCHED_FLAG_RESET_ON_FORK)
}

/// A thread that does little at a time, as long as this lives there.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// What the thread was like.
    nice: i32,
    slice: Duration,
    flags: libc::c_int,
    _of_this_thread: PhantomData<*const ()>,
}

impl Prompt {
    /// Makes someone else's thread one. Threads that it starts meanwhile are like it, unless it starts them
    /// [aside](Self::aside) or for [short turns](Self::for_short_turns).
    pub(crate) fn take() -> Self {
        Self::begin(0)
    }

    fn begin(flags: libc::c_int) -> Self {
        // A negative nice value was given on purpose, and threads that this one starts would lose it.
        let flags = if nice() < 0 { 0 } else { flags };
        let before = Self { nice: nice(), slice: slice(), flags, _of_this_thread: PhantomData };
        if !before.apply() {
            tracing::debug!(nice = before.nice, "a thread that others wait for weighs no more than they do");
        }
        before
    }

    /// Whether it comes before others.
    fn apply(&self) -> bool {
        // Among dozens of busy vCPUs to a processor even a moment is more than a fair share, and is to be waited for. A nice
        // value that was given on purpose stays: the flag would have threads that this one starts begin at 0.
        let ahead = self.nice == 0 && schedule(AHEAD, MOMENT, self.flags) == Scheduled::Whole;
        if !ahead {
            schedule(self.nice, MOMENT, self.flags);
        }
        ahead
    }

    /// Does `work` as the thread that this was before.
    pub(crate) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.with_slice(self.slice, work)
    }

    /// Starts threads that take [short turns](ShortTurns), in `work`. They begin like that: one that has long turns when it is
    /// started waits until whoever runs on its processor is through with its own.
    pub(crate) fn for_short_turns<T>(&self, work: impl FnOnce() -> T) -> T {
        self.with_slice(MOMENT, work)
    }

    fn with_slice<T>(&self, slice: Duration, work: impl FnOnce() -> T) -> T {
        schedule(self.nice, slice, 0);
        let done = work();
        self.apply();
        done
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        schedule(self.nice, self.slice, 0);
    }
}

/// A thread that runs for moments at a time, no less and no more in all than others; in a crowd it is not left behind.
#[derive(Debug)]
pub(crate) struct ShortTurns {
    chunks: u32,
    share: Share,
    /// So that the turns of others are short, too.
    beat: Beats,
    /// Who shares its processor: some, until more is known.
    company: Company,
}

/// Whether others' turns are to be short.
#[derive(Debug)]
enum Beats {
    /// No, or it could not be had.
    Unwanted,
    /// Once there is work: threads that a migration cannot do without are started first.
    Wanted,
    Begun(Beat),
}

impl ShortTurns {
    /// Makes the calling thread one.
    pub(crate) fn take() -> Self {
        schedule(nice(), MOMENT, 0);
        Self { chunks: 0, share: Share::own(), beat: Beats::Unwanted, company: Company::Some }
    }

    /// The same, and sees to it that those who share its processor have turns that are not much longer.
    pub(crate) fn take_with_beat() -> Self {
        Self { beat: Beats::Wanted, ..Self::take() }
    }

    /// To be called after each chunk: now and then it lets another thread run that waits for this processor and is due.
    pub(crate) fn give_way(&mut self) {
        self.chunks += 1;
        if self.chunks == CHUNKS {
            self.chunks = 0;
            self.company = self.share.look().unwrap_or(self.company);
            std::thread::yield_now();
        }
        // Where a crowd is, nobody's turn comes often, and what helps is a larger share.
        if self.company == Company::Some {
            self.beat();
        }
    }

    fn beat(&mut self) {
        match &self.beat {
            Beats::Unwanted => {}
            Beats::Begun(beat) => beat.go_on(),
            Beats::Wanted => {
                let begun = Beat::begin().inspect_err(|error| tracing::debug!(%error, "no beat"));
                self.beat = begun.map_or(Beats::Unwanted, Beats::Begun);
            }
        }
    }
}

/// Gives the calling thread this nice value and slice (zero: the system's own), unless whoever started the process chose
/// another class of scheduling than the ordinary one.
fn schedule(nice: i32, slice: Duration, flags: libc::c_int) -> Scheduled {
    // SAFETY: asks about this thread (0), touches no memory.
    let policy = unsafe { libc::sched_getscheduler(0) };
    if policy & !libc::SCHED_RESET_ON_FORK != libc::SCHED_OTHER {
        set_nice(nice.max(self::nice()));
        return Scheduled::Partly;
    }
    // Once it is set, only a privileged thread may clear this flag.
    let kept = if policy & libc::SCHED_RESET_ON_FORK == 0 { 0 } else { libc::SCHED_FLAG_RESET_ON_FORK };
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).expect("a small struct"),
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: u64::from((flags | kept).cast_unsigned()),
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: u64::try_from(slice.as_nanos()).expect("a moment"),
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: sets how this thread (0) is scheduled; the kernel only reads the attributes, which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 {
        return Scheduled::Whole;
    }
    // A lower nice value takes a privilege; else only a filter of system calls refuses this. A higher one is there to be had.
    set_nice(nice.max(self::nice()));
    Scheduled::Partly
}

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheduled {
    /// All of it.
    Whole,
    /// The nice value perhaps, if that is not lower than before.
    Partly,
}

/// The calling thread's nice value.
pub(super) fn nice() -> i32 {
    // SAFETY: takes two integers and touches no memory; 0 is the calling thread, which can always be asked about.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// The calling thread's slice; zero where the kernel does not know (before Linux 6.12).
fn slice() -> Duration {
    let size = u32::try_from(size_of::<libc::sched_attr>()).expect("a small struct");
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes this thread's attributes, as many bytes as it is told there are.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result == 0 { Duration::from_nanos(attributes.sched_runtime) } else { Duration::ZERO }
}

/// Whether the calling thread has this nice value now.
pub(super) fn set_nice(nice: i32) -> bool {
    // SAFETY: takes three integers and touches no memory; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

const FIRST: i32 = -20;
/// As much as nine ordinary threads.
const AHEAD: i32 = -10;
const BEHIND: i32 = 5;
/// What a turn is asked to last. The scheduler looks at its ticks only, or when another thread wakes, so it
/// is up to the thread to make it as short.
const MOMENT: Duration = Duration::from_micros(100);
/// Chunks of a turn: half a millisecond at most, commonly, and caches do not change hands more often than that.
const CHUNKS: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_steps_back_and_the_others_stay() {
        let before = nice();
        let there = std::thread::spawn(move || {
            lower();
            nice()
        });
        assert_eq!(there.join().unwrap(), BEHIND);
        assert_eq!(nice(), before);
    }

    #[test]
    fn a_prompt_thread_starts_ordinary_ones_and_a_borrowed_one_becomes_what_it_was() {
        let ordinary = slice();
        if ordinary.is_zero() {
            eprintln!("skipped: this kernel has no slices of threads' own");
            return;
        }
        let alike = || (nice(), slice());
        let before = alike();
        let there = std::thread::spawn(move || {
            let prompt = be_prompt();
            let (prompts, child, aside) = (alike(), std::thread::spawn(alike).join().unwrap(), prompt.aside(alike));
            drop(prompt);
            (prompts, child, aside, alike())
        });
        let (prompts, child, aside, afterwards) = there.join().unwrap();
        let is_allowed = std::thread::spawn(|| set_nice(AHEAD)).join().unwrap();
        assert_eq!(prompts, (if is_allowed && before.0 == 0 { AHEAD } else { before.0 }, MOMENT));
        assert_eq!((aside, afterwards), (before, before));
        // Whoever runs this before others keeps that.
        assert_eq!(child, if before.0 < 0 { prompts } else { before });
        let own = Duration::from_millis(7);
        schedule(before.0, own, 0);
        let prompt = Prompt::take();
        assert_eq!((slice(), prompt.aside(|| std::thread::spawn(alike).join().unwrap()), slice()), (MOMENT, (before.0, own), MOMENT));
        assert_eq!(prompt.for_short_turns(|| std::thread::spawn(alike).join().unwrap()), (before.0, MOMENT));
        drop(prompt);
        assert_eq!(alike(), (before.0, own));
    }

    #[test]
    fn short_turns_leave_the_nice_value_and_a_thread_can_still_step_back() {
        let before = nice();
        let there = std::thread::spawn(move || {
            ShortTurns::take();
            let short = nice();
            lower();
            (short, nice())
        });
        assert_eq!(there.join().unwrap(), (before, BEHIND));
    }
}
