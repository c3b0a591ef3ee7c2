//! One migration by QEMU, of the same guest: the same program at the same pace on the same memory contents.
//!
//! Total and downtime are QEMU's own. The guest's longest gap is the one that the guest itself has seen, as long as its
//! clock went on by the real time from one machine to the other; where that is not so it is what the watching thread saw.
//! In post-copy the destination's memory is not looked at before the guest runs there: the look itself would make pages.

mod machine;
mod mode;
mod qmp;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

pub(crate) use machine::PROGRAM;
pub use mode::Mode;

use super::ballast::Ballast;
use super::first_second::FirstSecond;
use super::measure::{Ended, Job, await_write, lead, ms, warm_up};
use super::network::End;
use super::results::{Figures, Run};
use super::watch::{Seen, Subject, Watch};
use super::window::Window;
use crate::guests::ControlWord;
use machine::{Machine, VCPU};

/// Moves the guest once. The ballast is given back shortly before.
///
/// # Errors
/// When something else than the cap ended it.
pub(super) fn run(job: &Job<'_>, mode: Mode, directory: &Path, ballast: Option<Ballast>) -> Result<Ended> {
    let mut source = Machine::start(job, End::Source, directory)?;
    let mut destination = Machine::start(job, End::Destination, directory)?;
    let result = migrate(job, mode, ballast, &mut source, &mut destination);
    result.map_err(|error| {
        let (here, there) = (source.process.stderr.last_words(), destination.process.stderr.last_words());
        anyhow!("{error:#}\nthe source said:\n{here}\nthe destination said:\n{there}")
    })
}

fn migrate(job: &Job<'_>, mode: Mode, ballast: Option<Ballast>, source: &mut Machine, destination: &mut Machine) -> Result<Ended> {
    let open = |machine: &Machine| Window::of_size(machine.process.pid(), job.guest.memory());
    let (here, there) = (open(source)?, open(destination)?);
    here.build(job.image).context("the guest cannot be put into QEMU's memory")?;
    for machine in [&mut *source, &mut *destination] {
        machine.qmp.execute("migrate-set-capabilities", &mode.capabilities())?;
        machine.qmp.execute("migrate-set-parameters", &mode.parameters(job.guest.memory()))?;
    }
    destination.qmp.execute("migrate-incoming", &json!({ "uri": URI }))?;
    source.qmp.execute("cont", &json!({}))?;
    await_write(&here, 0, FIRST_WRITE)?;
    let before = warm_up(job, &here, ballast)?;
    thread::sleep(lead(job.warm_up));

    here.forget_gap()?;
    let clock = Clock::of(&here)?;
    let mut windows = vec![open(source)?];
    if !mode.is_post_copy() {
        windows.push(open(destination)?);
    }
    let watch = Watch::start(Subject { pids: [source.process.pid(), destination.process.pid()], vcpu: VCPU, windows })?;
    let start = Instant::now();
    source.qmp.execute("migrate", &json!({ "uri": URI }))?;
    let mut first_second = None;
    if mode.is_post_copy() && source.qmp.await_status("active", start + job.cap)? {
        source.qmp.execute("migrate-start-postcopy", &json!({}))?;
        if destination.qmp.await_event("RESUME", start + job.cap)? {
            first_second = Some(FirstSecond::start(&here, open(destination)?)?);
        }
    }
    let completed = source.qmp.await_status("completed", start + job.cap)?;
    let seen = watch.stop()?;
    if !completed {
        return Ok(Ended::NotDone);
    }
    let answer = source.qmp.execute("query-migrate", &json!({}))?;
    let gap = look_after(job, [&here, &there], &clock)?.or((!mode.is_post_copy()).then_some(seen.longest_gap));
    tracing::debug!(?gap, watched = ?seen.longest_gap, "the guest's longest gap");
    let figures = Figures {
        guest_writes_after_per_s: first_second.and_then(|first_second| first_second.writes_per_s(None)),
        ..figures(&answer, &seen, start, gap, before)?
    };
    Ok(Ended::Completed(Run { figures, report: None, received: None }))
}

/// Lets the guest run for a while, as our receiver does, and sees that it is whole. Its longest gap, when its clock went on.
fn look_after(job: &Job<'_>, [here, there]: [&Window; 2], clock: &Clock) -> Result<Option<Duration>> {
    thread::sleep(PROOF);
    await_write(there, here.word(ControlWord::Writes)?, FIRST_WRITE).context("at the destination")?;
    let gap = Duration::from_nanos(there.word(ControlWord::LongestGap)?);
    there.check(job.image)?;
    await_write(there, there.word(ControlWord::Writes)?, FIRST_WRITE).context("at the destination")?;
    Ok(clock.went_on(&Clock::of(there)?).then_some(gap))
}

fn figures(answer: &Value, seen: &Seen, start: Instant, gap: Option<Duration>, before: Option<f64>) -> Result<Figures> {
    let number = |value: &Value, name: &str| value[name].as_u64().with_context(|| format!("query-migrate says no {name}: {answer}"));
    Ok(Figures {
        total_ms: number(answer, "total-time")? as f64,
        downtime_ms: number(answer, "downtime")? as f64,
        guest_gap_ms: gap.map(ms),
        machine_stopped_ms: Some(ms(seen.machine_stopped)),
        wire_bytes: seen.wire_bytes,
        engine_bytes: number(&answer["ram"], "transferred")?,
        cpu_source_s: seen.cpu_s[0],
        cpu_destination_s: seen.cpu_s[1],
        guest_writes_per_s: seen.writes_per_s(start),
        guest_writes_before_per_s: before,
        guest_writes_after_per_s: None,
        fault_p50_us: None,
        fault_p99_us: None,
    })
}

/// What the guest's clock said, and when.
struct Clock {
    host: Instant,
    guest: Duration,
}

impl Clock {
    /// Of a guest that runs: of the looks at several writes the one that came soonest after its write.
    fn of(window: &Window) -> Result<Self> {
        let look = || Ok::<_, std::io::Error>(Self { guest: Duration::from_nanos(window.word(ControlWord::LastWrite)?), host: Instant::now() });
        let first = look()?;
        let (mut best, mut last, mut seen) = (Self { ..first }, first.guest, 0);
        while seen < CLOCK_WRITES && first.host.elapsed() < CLOCK_LOOKS {
            let now = look()?;
            seen += u32::from(now.guest != last);
            last = now.guest;
            // Later by the guest's clock than by the host's: less time has passed since that write.
            if now.guest.saturating_sub(best.guest) > now.host - best.host {
                best = now;
            }
        }
        Ok(best)
    }

    /// Whether the guest's time went on by the host's until `later`.
    fn went_on(&self, later: &Self) -> bool {
        let (host, guest) = (later.host - self.host, later.guest.saturating_sub(self.guest));
        host.abs_diff(guest) < CLOCK_SLACK
    }
}

const URI: &str = "tcp:192.0.2.2:4444";

/// How many writes are looked at to read the clock once, and for how long at most.
const CLOCK_WRITES: u32 = 30;
const CLOCK_LOOKS: Duration = Duration::from_secs(2);
const FIRST_WRITE: Duration = Duration::from_secs(20);
/// How long the guest runs at the destination before it is looked at.
const PROOF: Duration = Duration::from_millis(300);
/// By how much two readings of the same clock may differ on a busy machine.
const CLOCK_SLACK: Duration = Duration::from_millis(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::network::DESTINATION;

    #[test]
    fn the_destination_is_where_the_network_has_it() {
        assert_eq!(URI, format!("tcp:{DESTINATION}:4444"));
    }

    #[test]
    fn a_clock_that_stood_still_is_found_out() {
        let host = Instant::now();
        let at = |host_ms, guest_ms| Clock { host: host + Duration::from_millis(host_ms), guest: Duration::from_millis(guest_ms) };
        assert!(at(0, 700).went_on(&at(1000, 1701)));
        assert!(!at(0, 700).went_on(&at(1000, 1600)), "without the downtime");
        assert!(!at(0, 700).went_on(&at(1000, 5)), "began anew");
    }
}
