//! Processor time of a process without that of its vCPU.
//!
//! A vCPU of the test guests spins, so its time says nothing about the engine; what tracking costs the guest shows in
//! its writes a second instead. All other threads count, those that have ended too: the kernel keeps their sum. A vCPU
//! thread that ended is remembered by its last sample.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// One process, sampled from time to time.
#[derive(Debug)]
pub(super) struct Meter {
    pid: u32,
    /// The name of vCPU threads.
    vcpu: &'static str,
    /// Ticks of each vCPU thread there ever was.
    vcpu_ticks: BTreeMap<u32, u64>,
    /// Ticks of all threads.
    ticks: u64,
}

impl Meter {
    pub(super) fn new(pid: u32, vcpu: &'static str) -> Self {
        let mut meter = Self { pid, vcpu, vcpu_ticks: BTreeMap::new(), ticks: 0 };
        meter.sample();
        meter
    }

    /// Reads all clocks. Of a process that is gone the last sample stays.
    pub(super) fn sample(&mut self) {
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten() {
            let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some((name, ticks)) = read(&format!("/proc/{}/task/{thread}/stat", self.pid))
                && name == self.vcpu
            {
                self.vcpu_ticks.insert(thread, ticks);
            }
        }
        if let Some((_, ticks)) = read(&format!("/proc/{}/stat", self.pid)) {
            self.ticks = ticks;
        }
    }

    /// Reads the clocks of the vCPU threads that are known: cheap enough to be done often, so that little is missed of
    /// one that ends.
    pub(super) fn sample_vcpu(&mut self) {
        for (thread, known) in &mut self.vcpu_ticks {
            if let Some((_, ticks)) = read(&format!("/proc/{}/task/{thread}/stat", self.pid)) {
                *known = ticks;
            }
        }
    }

    /// All that was used until the last sample.
    pub(super) fn used(&self) -> Duration {
        let ticks = self.ticks.saturating_sub(self.vcpu_ticks.values().sum());
        Duration::from_secs_f64(ticks as f64 / ticks_per_s())
    }
}

/// Name and ticks, user and system, of a process or thread.
fn read(path: &str) -> Option<(String, u64)> {
    parse(&std::fs::read_to_string(path).ok()?)
}

fn parse(stat: &str) -> Option<(String, u64)> {
    // The name may hold anything, parentheses and spaces too.
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    let mut fields = after.split_whitespace().skip(USER_TICKS);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((name.to_owned(), user + system))
}

fn ticks_per_s() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100.0, |ticks| ticks as f64)
}

/// Position of the user time among the fields that come after the name.
const USER_TICKS: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_parentheses_are_read() {
        let stat = "4711 (CPU 0/KVM) x) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20 0 1";
        assert_eq!(parse(stat), Some(("CPU 0/KVM) x".to_owned(), 150)));
        assert_eq!(parse("4711 (short) S 1"), None);
    }

    #[test]
    fn time_of_the_vcpu_is_left_out() {
        let spin = |name: &str| {
            let work = || {
                let since = std::time::Instant::now();
                while since.elapsed() < Duration::from_millis(200) {
                    std::hint::spin_loop();
                }
                let mut all = Meter::new(std::process::id(), "no such thread");
                let mut meter = Meter::new(std::process::id(), "vcpu-of-test");
                all.sample();
                meter.sample();
                (all.used(), meter.used(), meter.vcpu_ticks.len())
            };
            std::thread::Builder::new().name(name.to_owned()).spawn(work).unwrap().join().unwrap()
        };
        let (all, other, threads) = spin("vcpu-of-test");
        assert_eq!(threads, 1);
        assert!(all > other, "{all:?} {other:?}");
    }
}
