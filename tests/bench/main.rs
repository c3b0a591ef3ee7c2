//! `pageferry bench` as a user runs it: what it measures, what it says when something is missing, and what it leaves
//! behind, which is nothing.
//!
//! The guests are those of `--quick`, so no figure means anything here. Needs root, `ip`, `tc` and KVM, QEMU for one of
//! the tests, and says so where it is skipped.
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod processes;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pageferry::bench::results::{BenchResults, COMPLETED, EngineResults, PAGEFERRY as OURS, QEMU, ScenarioResults};
use processes::{Ended, PAGEFERRY, Process, command, run};

/// For a bench of small guests.
const LIMIT: Duration = Duration::from_secs(180);
/// Marks the processes of one bench, which inherit it.
const MARK: &str = "PAGEFERRY_BENCH_UNDER_TEST";

/// A bench whose processes can be told from others.
struct Marked {
    mark: String,
}

impl Marked {
    fn new(name: &str) -> Self {
        Self { mark: format!("{name}-{}", std::process::id()) }
    }

    fn command(&self, flags: &str) -> Command {
        let mut command = command(PAGEFERRY, flags);
        command.env(MARK, &self.mark);
        command
    }

    /// Its processes.
    fn processes(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for process in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
            let read = |name| std::fs::read(process.path().join(name)).unwrap_or_default();
            let wanted = format!("{MARK}={}", self.mark);
            if read("environ").split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
                found.push(String::from_utf8_lossy(&read("cmdline")).replace('\0', " "));
            }
        }
        Ok(found)
    }

    /// Fails if anything of the bench with process id `pid` is still there.
    fn has_left_nothing(&self, pid: u32) -> Result<()> {
        // A killed process takes a moment to go.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.processes()?.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = self.processes()?;
        ensure!(left.is_empty(), "still running: {left:?}");
        let prefix = format!("pageferry-bench-{pid}");
        for directory in [Path::new("/run/netns"), &std::env::temp_dir()] {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                ensure!(!entry.file_name().to_string_lossy().starts_with(&prefix), "left behind: {}", entry.path().display());
            }
        }
        Ok(())
    }
}

/// What is missing to run a bench here, if anything.
fn missing(tools: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, for network namespaces".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |tool: &&str| std::env::split_paths(&path).any(|directory| directory.join(tool).is_file());
    let lacking: Vec<_> = ["ip", "tc"].iter().chain(tools).filter(|tool| !found(tool)).copied().collect();
    if !lacking.is_empty() {
        return Some(format!("needs {}", lacking.join(" and ")));
    }
    processes::kvm().err()
}

/// Whether to go on; if not, says why.
fn possible(tools: &[&str]) -> bool {
    let missing = missing(tools);
    if let Some(reason) = &missing {
        eprintln!("skipped: {reason}");
    }
    missing.is_none()
}

/// Runs it to its end, and makes sure that nothing is left.
fn bench(name: &str, flags: &str) -> Result<Ended> {
    let marked = Marked::new(name);
    let process = Process::start(marked.command(flags))?;
    let pid = process.pid();
    let ended = process.wait(LIMIT)?;
    marked.has_left_nothing(pid)?;
    Ok(ended)
}

fn results(ended: &Ended) -> Result<BenchResults> {
    serde_json::from_str(&ended.stdout).with_context(|| ended.to_string())
}

/// Fails unless the engine moved the guest, with figures that can be.
fn is_plausible(engine: &EngineResults, scenario: &ScenarioResults) -> Result<()> {
    let median = engine.median.with_context(|| format!("no figures: {engine:?}"))?;
    let gap = median.guest_gap_ms.context("no gap")?;
    ensure!(engine.outcome == COMPLETED && engine.runs.len() == 1 && median == engine.runs[0].figures, "{engine:?}");
    ensure!(median.total_ms >= median.downtime_ms && gap > 0.0 && median.guest_writes_per_s.is_some_and(|rate| rate > 0.0), "{engine:?}");
    // Random pages do not get smaller, and nothing is sent many times.
    ensure!(median.wire_bytes > scenario.floor.bytes / 2 && median.wire_bytes < scenario.floor.bytes * 20, "{engine:?}");
    Ok(())
}

#[test]
fn a_quick_bench_measures_this_engine_and_leaves_nothing_behind() -> Result<()> {
    if !possible(&[]) {
        return Ok(());
    }
    let results = results(&bench("quick", "bench --quick --ours default --scenario idle-1gbit,rewrite-1gbit,busy-unshaped --json -")?.expect(0)?)?;
    let names: Vec<_> = results.scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
    ensure!(names == ["idle-1gbit", "busy-unshaped", "rewrite-1gbit"], "{names:?}");
    ensure!(results.kind == "bench" && results.versions.qemu.is_none() && results.command.contains("--quick"), "{results:?}");
    for scenario in &results.scenarios {
        let [engine] = scenario.engines.as_slice() else { anyhow::bail!("{:?}", scenario.engines) };
        is_plausible(engine, scenario)?;
        ensure!(engine.engine == OURS && engine.runs[0].report.is_some() && scenario.ratios.is_none(), "{engine:?}");
        let shaped = scenario.link.rate_bits_per_s == Some(1e9);
        ensure!(shaped != scenario.link.measured_bytes_per_s.is_some_and(|rate| rate > 1e6), "{:?}", scenario.link);
    }
    Ok(())
}

#[test]
fn a_guest_of_ones_own_is_measured_on_a_link_of_ones_own() -> Result<()> {
    if !possible(&["qemu-system-x86_64"]) {
        return Ok(());
    }
    let guest = "kvm:memory=96MiB,fill=32MiB,working-set=4MiB,rate=3000,content=text";
    let flags = format!("bench --guest {guest} --link 300Mbit/s --warm-up 500ms --pairs 1 --ours default --qemu --modes multifd --json -");
    let results = results(&bench("own", &flags)?.expect(0)?)?;
    let [scenario] = results.scenarios.as_slice() else { anyhow::bail!("{results:?}") };
    ensure!(scenario.guest.starts_with("kvm:memory=96MiB,fill=32MiB") && scenario.guest.contains("content=text"), "{scenario:?}");
    ensure!(scenario.link.rate_bits_per_s == Some(3e8) && scenario.link.measured_bytes_per_s.is_none(), "{:?}", scenario.link);
    let modes: Vec<_> = scenario.engines.iter().map(|engine| (engine.engine.as_str(), engine.mode.as_str())).collect();
    ensure!(modes == [(OURS, "default"), (QEMU, "multifd")], "{modes:?}");
    scenario.engines.iter().try_for_each(|engine| is_plausible(engine, scenario))?;
    ensure!(scenario.bars.iter().any(|bar| bar.what == "wire_bytes" && bar.value.is_some()), "{:?}", scenario.bars);
    Ok(())
}

#[test]
fn post_copy_is_measured_beside_pre_copy_and_against_post_copy() -> Result<()> {
    if !possible(&["qemu-system-x86_64"]) {
        return Ok(());
    }
    if !cfg!(feature = "userfaultfd") {
        eprintln!("skipped: built without userfaultfd, and so without post-copy at the destination");
        return Ok(());
    }
    let results = results(&bench("post-copy", "bench --quick --qemu --modes post-copy --scenario heavy-1gbit --json -")?.expect(0)?)?;
    let [scenario] = results.scenarios.as_slice() else { anyhow::bail!("{results:?}") };
    let modes: Vec<_> = scenario.engines.iter().map(|engine| (engine.engine.as_str(), engine.mode.as_str(), engine.post_copy)).collect();
    ensure!(modes == [(OURS, "default", false), (OURS, "post-copy", true), (QEMU, "post-copy", true)], "{modes:?}");
    for engine in &scenario.engines[1..] {
        let median = engine.median.with_context(|| format!("no figures: {engine:?}"))?;
        ensure!(engine.outcome == COMPLETED && median.guest_writes_after_per_s.is_some_and(|rate| rate > 0.0), "{engine:?}");
    }
    let ours = &scenario.engines[1];
    let received = ours.runs[0].received.as_ref().context("nothing from the receiver")?;
    ensure!(received.post_copy.as_ref().is_some_and(|post_copy| post_copy.pages.0 > 0), "{ours:?}");
    ensure!(ours.median.is_some_and(|median| median.fault_p50_us <= median.fault_p99_us && median.fault_p50_us.is_some()), "{ours:?}");
    ensure!(scenario.post_copy_ratios.is_some_and(|ratios| ratios.total.is_some() && ratios.guest_writes_after.is_some()), "{scenario:?}");
    Ok(())
}

#[test]
fn qemu_moves_the_same_guest_in_every_mode() -> Result<()> {
    if !possible(&["qemu-system-x86_64"]) {
        return Ok(());
    }
    let results = results(&bench("qemu", "bench --quick --qemu --scenario busy-1gbit --json -")?.expect(0)?)?;
    let [scenario] = results.scenarios.as_slice() else { anyhow::bail!("{results:?}") };
    let modes: Vec<_> = scenario.engines.iter().map(|engine| (engine.engine.as_str(), engine.mode.as_str())).collect();
    let theirs = ["pre-copy", "multifd", "multifd-zstd", "xbzrle", "post-copy"].map(|mode| (QEMU, mode));
    ensure!(modes[..] == [&[(OURS, "default")][..], &theirs[..]].concat()[..], "{modes:?}");
    scenario.engines.iter().try_for_each(|engine| is_plausible(engine, scenario))?;
    let ratios = scenario.ratios.context("no ratios")?;
    ensure!(ratios.total.is_some() && ratios.guest_gap.is_some() && ratios.cpu.is_some(), "{ratios:?}");
    ensure!(results.versions.qemu.is_some(), "{:?}", results.versions);
    Ok(())
}

#[test]
fn an_interrupted_bench_leaves_nothing_behind() -> Result<()> {
    if !possible(&[]) {
        return Ok(());
    }
    let marked = Marked::new("interrupted");
    let process = Process::start(marked.command("bench --scenario idle-1gbit"))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while marked.processes()?.len() < 3 {
        ensure!(Instant::now() < deadline, "neither sender nor receiver within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = process.pid();
    process.signal(Signal::SIGINT)?;
    process.wait(Duration::from_secs(20))?.expect(130)?;
    marked.has_left_nothing(pid)
}

#[test]
fn an_interrupted_bench_keeps_the_scenarios_that_it_has_measured() -> Result<()> {
    if !possible(&[]) {
        return Ok(());
    }
    let marked = Marked::new("half");
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("results.json");
    let process = Process::start(marked.command(&format!("bench --quick --ours default --json {}", file.display())))?;
    let kept = || serde_json::from_str::<BenchResults>(&std::fs::read_to_string(&file).unwrap_or_default()).ok();
    let deadline = Instant::now() + Duration::from_secs(60);
    while kept().is_none() || marked.processes()?.len() < 3 {
        ensure!(Instant::now() < deadline, "no scenario within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    process.signal(Signal::SIGINT)?;
    process.wait(Duration::from_secs(20))?.expect(130)?;
    let scenarios = kept().context("what was there is lost")?.scenarios;
    ensure!((1..7).contains(&scenarios.len()) && scenarios[0].name == "idle-1gbit", "{scenarios:?}");
    is_plausible(&scenarios[0].engines[0], &scenarios[0])
}

#[test]
fn without_qemu_it_says_how_to_get_it() -> Result<()> {
    let mut command = command(PAGEFERRY, "bench --quick --qemu");
    let ended = Process::start({
        command.env("PATH", "/nowhere");
        command
    })?;
    let ended = ended.wait(LIMIT)?.expect(1)?;
    for words in ["qemu-system-x86_64 on PATH", "bookworm-backports", "apt-get install", "iproute2"] {
        ensure!(ended.stderr.contains(words), "{words}: {ended}");
    }
    ensure!(ended.stdout.is_empty(), "{ended}");
    Ok(())
}

#[test]
fn flags_that_make_no_sense_are_named() -> Result<()> {
    for (flags, words) in [
        ("bench --scenario lazy", ["--scenario lazy", "busy-1gbit"]),
        ("bench --ours teleport", ["--ours teleport", "default, post-copy"]),
        ("bench --qemu --modes teleport", ["--modes teleport", "multifd-zstd"]),
        ("bench --modes multifd", ["--qemu", "required"]),
        ("bench --pairs 0", ["--pairs", "1 to 1000"]),
        ("bench --guest workload", ["--guest workload", "KVM only"]),
        ("bench --guest kvm:working-set=1", ["--guest kvm:working-set=1", "whole pages"]),
        ("bench --guest kvm --scenario busy-1gbit", ["--guest", "cannot be used with"]),
        ("bench --link 1Gbit/s", ["--guest", "required"]),
    ] {
        let ended = run(PAGEFERRY, flags)?.expect(2)?;
        for word in words {
            ensure!(ended.stderr.contains(word), "{flags}: {ended}");
        }
    }
    let ended = run(PAGEFERRY, "bench --list")?.expect(0)?;
    ensure!(ended.stdout.lines().count() >= 6 && ended.stdout.contains("heavy-1gbit"), "{ended}");
    Ok(())
}
