//! Working on where many others do.
//!
//! A host with dozens of busy guests for each processor gives a thread that copies one guest's memory as much time as each
//! of their vCPUs: a round that takes milliseconds takes seconds, guests write more in it than it sends, and the migration
//! that would relieve such a host never ends. There, and only there, the thread weighs more: it goes by how long it waited
//! for a processor and how long it had one, and by its own weight. It takes a share, not the processors: see [`MOST`]. Only a
//! thread that may lower its nice value can do so (`CAP_SYS_NICE`, or `RLIMIT_NICE`); another goes on as it did.
//!
//! The same times tell whether the thread has any company, which is what [`beat`](super::beat) is for.
//!
//! - <https://docs.kernel.org/scheduler/sched-stats.html> (`/proc/<pid>/schedstat`: nanoseconds run, nanoseconds waited)
//! - <https://man7.org/linux/man-pages/man7/sched.7.html> (each nice value weighs 1.25 times the next one)

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::priority;

/// The share of a thread that works.
#[derive(Debug)]
pub(super) struct Share {
    looked: Option<Instant>,
    /// From when it has worked for a while.
    times: Option<(File, Times)>,
    /// The nice value without a crowd.
    alone: i32,
    nice: i32,
    /// The system gives no other share.
    is_fixed: bool,
    /// It gives no times.
    is_unknown: bool,
}

/// Of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    run: Duration,
    waited: Duration,
}

impl Share {
    /// The calling thread's.
    pub(super) fn own() -> Self {
        let nice = priority::nice();
        Self { looked: None, times: None, alone: nice, nice, is_fixed: false, is_unknown: false }
    }

    /// To be called often, by the same thread: now and then it looks how crowded the processors are. Then also whether the
    /// thread has some company there.
    pub(super) fn look(&mut self) -> Option<Company> {
        let now = Instant::now();
        if self.is_unknown || now - *self.looked.get_or_insert(now) < EVERY {
            return None;
        }
        self.looked = Some(now);
        match self.since() {
            Ok(since) => since.map(|since| {
                self.adapt(since);
                since.company(self.alone, self.nice)
            }),
            Err(error) => {
                tracing::debug!(%error, "not known how long this thread waits for a processor");
                self.is_unknown = true;
                Some(Company::None)
            }
        }
    }

    /// The thread's times since this was last asked.
    fn since(&mut self) -> std::io::Result<Option<Times>> {
        let Some((file, before)) = &mut self.times else {
            let file = File::open("/proc/thread-self/schedstat")?;
            let times = Times::read(&file)?;
            self.times = Some((file, times));
            return Ok(None);
        };
        let times = Times::read(file)?;
        let since = Times { run: times.run.saturating_sub(before.run), waited: times.waited.saturating_sub(before.waited) };
        *before = times;
        Ok(Some(since))
    }

    fn adapt(&mut self, since: Times) {
        let nice = since.nice(self.alone, self.nice);
        if self.is_fixed || nice == self.nice {
            return;
        }
        if priority::set_nice(nice) {
            tracing::debug!(from = self.nice, to = nice, "a crowd at the processors");
            self.nice = nice;
        } else {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, nice = self.nice, "this thread's share stays what it is");
            self.is_fixed = true;
        }
    }
}

/// Who else wants the processor of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Nobody to speak of, or the thread does not want it much.
    None,
    /// A few.
    Some,
    /// More than are common.
    Crowd,
}

impl Times {
    fn read(file: &File) -> std::io::Result<Self> {
        let mut line = [0; 96];
        let bytes = file.read_at(&mut line, 0)?;
        Self::parse(&line[..bytes]).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut numbers = std::str::from_utf8(line).ok()?.split_ascii_whitespace().map_while(|number| number.parse().ok());
        Some(Self { run: Duration::from_nanos(numbers.next()?), waited: Duration::from_nanos(numbers.next()?) })
    }

    /// How many others wanted the processor of a thread that had these times with the value `nice`, of the weight that it has
    /// with `alone`. None if mostly it waited for something else.
    fn others(self, alone: i32, nice: i32) -> Option<f64> {
        let others = self.waited.as_secs_f64() / self.run.max(LEAST).as_secs_f64() * STEP.powi(alone - nice);
        (self.run + self.waited >= EVERY / 4).then_some(others)
    }

    fn company(self, alone: i32, nice: i32) -> Company {
        match self.others(alone, nice) {
            Some(others) if others > ORDINARY => Company::Crowd,
            Some(others) if others > FEW => Company::Some,
            _ => Company::None,
        }
    }

    /// The nice value for a thread that had these times with the value `nice`, and has `alone` without a crowd.
    fn nice(self, alone: i32, nice: i32) -> i32 {
        let Some(others) = self.others(alone, nice) else { return nice };
        let weight = (others / ORDINARY).clamp(1.0, MOST);
        #[expect(clippy::cast_possible_truncation, reason = "a few steps")]
        let steps = weight.log(STEP).round() as i32;
        // Half of the way: the times are of a moment.
        let towards = alone - steps;
        (if (towards - nice).abs() > 1 { nice + (towards - nice) / 2 } else { towards }).max(NICEST)
    }
}

/// How often to look.
const EVERY: Duration = Duration::from_millis(20);
/// A thread runs for as long at least before it is stopped.
const LEAST: Duration = Duration::from_micros(10);
/// What a nice value weighs more than the next one.
const STEP: f64 = 1.25;
/// Less than so many others are none: the system's own threads.
const FEW: f64 = 0.1;
/// So many others at a processor are no crowd: a busy vCPU, the other end on the same host, the other channels.
const ORDINARY: f64 = 4.0;
/// A thread weighs as much as so many others at most. With fifty busy vCPUs for each processor, the three or four threads
/// that copy at a time have half of it.
const MOST: f64 = 16.0;
const NICEST: i32 = -20;

#[cfg(test)]
mod tests {
    use super::*;

    fn times(run: u64, waited: u64) -> Times {
        Times { run: Duration::from_millis(run), waited: Duration::from_millis(waited) }
    }

    /// What a thread comes to among `others` that always run, at one processor.
    fn settled(others: f64) -> i32 {
        (0..20).fold(0, |nice, _| {
            let share = STEP.powi(-nice) / (STEP.powi(-nice) + others);
            let second = Duration::from_secs(1);
            Times { run: second.mul_f64(share), waited: second.mul_f64(1.0 - share) }.nice(0, nice)
        })
    }

    #[test]
    fn a_thread_weighs_more_in_a_crowd_only_and_not_without_bounds() {
        assert_eq!([settled(0.0), settled(1.0), settled(4.0)], [0, 0, 0]);
        assert_eq!([settled(8.0), settled(50.0), settled(1e6)], [-3, -11, -12]);
    }

    #[test]
    fn company_is_what_a_thread_waits_for_while_it_has_something_to_do() {
        let company = |run, waited| times(run, waited).company(0, 0);
        assert_eq!([company(20, 1), company(1, 1), company(10, 10), company(2, 18)], [Company::None, Company::None, Company::Some, Company::Crowd]);
        assert_eq!(times(10, 10).company(0, -12), Company::Crowd, "though it weighs more");
    }

    #[test]
    fn it_weighs_what_it_did_once_the_crowd_has_gone_and_stays_while_it_has_nothing_to_do() {
        assert_eq!((0..20).fold(-12, |nice, _| times(20, 0).nice(0, nice)), 0);
        assert_eq!((0..20).fold(-12, |nice, _| times(1, 0).nice(0, nice)), -12);
        assert_eq!(times(0, 1000).nice(10, 10), 4, "from what it was told to be, and not at once");
    }

    #[test]
    fn the_kernel_tells_a_threads_times() {
        assert_eq!(Times::parse(b"2000000 3000000 17\n"), Some(times(2, 3)));
        assert_eq!([Times::parse(b"2000000\n"), Times::parse(b"x y z"), Times::parse(b"")], [None; 3]);
        let Ok(file) = File::open("/proc/thread-self/schedstat") else {
            eprintln!("skipped: this kernel does not tell how long a thread has run and waited");
            return;
        };
        let before = Times::read(&file).unwrap();
        if before.run.is_zero() {
            eprintln!("skipped: this kernel does not count how long a thread has run and waited");
            return;
        }
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        let after = Times::read(&file).unwrap();
        assert!(after.run > before.run && after.waited >= before.waited, "{before:?} {after:?}");
    }
}
