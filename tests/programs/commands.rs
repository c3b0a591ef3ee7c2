//! The commands of `pageferry`.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::GUEST;
use crate::processes::{PAGEFERRY, RECEIVE, SEND, kvm, run};

#[test]
fn the_demo_moves_a_guest_and_shows_the_five_metrics() -> Result<()> {
    let ended = run(PAGEFERRY, &format!("demo --guest {GUEST}"))?.expect(0)?;
    for metric in ["preparation time", "downtime", "resume time", "pages transferred", "total migration time"] {
        ensure!(ended.stdout.matches(metric).count() == 1, "{metric}: {ended}");
    }
    let check = ended.stdout.lines().find(|line| line.starts_with("guest check"));
    ensure!(check.is_some_and(|line| line.split_whitespace().any(|word| word == "ok")), "{ended}");
    ensure!(ended.stderr.contains("round 0"), "it shows nothing of what happens: {ended}");
    Ok(())
}

#[test]
fn the_demo_says_what_is_wrong_with_a_guest() -> Result<()> {
    let ended = run(PAGEFERRY, "demo --guest disk:memory=1GiB")?;
    ensure!(matches!(ended.code, Some(1 | 2)) && ended.stderr.contains("disk"), "{ended}");
    Ok(())
}

#[test]
fn the_demo_leaves_no_process_behind() -> Result<()> {
    run(PAGEFERRY, &format!("demo --guest {GUEST},seed=4711"))?.expect(0)?;
    run(PAGEFERRY, "demo --guest workload:seed=4711,colour=red")?;
    for process in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        ensure!(!line.contains("seed=4711"), "still there: {line}");
    }
    Ok(())
}

#[test]
fn nobody_need_listen_to_what_a_command_prints() -> Result<()> {
    for arguments in ["bench --list", "plan --memory 1GiB --dirty-rate 0 --bandwidth 1Gbit/s", "probe", "demo --guest workload:memory=32MiB"] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let ended = Command::new(PAGEFERRY).args(arguments.split_whitespace()).stdout(writer).output()?;
        let stderr = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.code() == Some(1) && stderr.contains("Broken pipe") && !stderr.contains("panicked"), "{arguments}: {ended:?}");
    }
    Ok(())
}

#[test]
fn a_plan_has_a_row_for_each_round_and_what_it_comes_to() -> Result<()> {
    let ended = run(PAGEFERRY, "plan --memory 1GiB --dirty-rate 10000 --bandwidth 1Gbit/s --working-set 64MiB")?.expect(0)?;
    for word in ["round", "stop-and-copy: dirty-threshold", "total", "downtime"] {
        ensure!(ended.stdout.contains(word), "{word}: {ended}");
    }
    Ok(())
}

#[test]
fn a_plan_can_be_read_by_programs() -> Result<()> {
    let ended = run(PAGEFERRY, "plan --memory 1GiB --dirty-rate 0 --bandwidth 100MB/s --json")?.expect(0)?;
    let plan: serde_json::Value = serde_json::from_str(&ended.stdout)?;
    let total = plan["total_ms"].as_f64().unwrap_or_default();
    // An idle guest takes as long as its memory takes on the wire.
    ensure!((total - 10_737.0).abs() < 1.0, "{plan}");
    Ok(())
}

#[test]
fn a_plan_needs_its_numbers() -> Result<()> {
    for (flags, words) in [
        ("plan", ["--memory", "--dirty-rate"]),
        ("plan --memory 1G --dirty-rate 1 --bandwidth 1Gbit/s", ["--memory", "1G"]),
        ("plan --memory 1GiB --dirty-rate 1 --bandwidth 0", ["--bandwidth", "above zero"]),
        ("dance", ["dance", "--help"]),
        ("", ["demo", "probe"]),
    ] {
        let ended = run(PAGEFERRY, flags)?.expect(2)?;
        for word in words {
            ensure!(ended.stderr.contains(word), "{flags}: {ended}");
        }
    }
    Ok(())
}

#[test]
fn a_probe_says_for_each_tracker_whether_it_is_usable() -> Result<()> {
    let ended = run(PAGEFERRY, "probe")?.expect(0)?;
    for name in ["write-protect tracker", "soft-dirty tracker", "kvm-log tracker", "memory available"] {
        let line = ended.stdout.lines().find(|line| line.contains(name));
        ensure!(line.is_some_and(|line| line.starts_with("yes ") || line.starts_with("no ")), "{name}: {ended}");
    }
    let says_kvm = ended.stdout.lines().any(|line| line.starts_with("yes") && line.contains("/dev/kvm"));
    ensure!(says_kvm == kvm().is_ok(), "{ended}");
    Ok(())
}

#[test]
fn the_sender_and_the_receiver_are_commands_as_well() -> Result<()> {
    for (command, program) in [("send", SEND), ("receive", RECEIVE)] {
        let [one, other] = [run(PAGEFERRY, &format!("{command} --nonsense"))?, run(program, "--nonsense")?];
        ensure!(one.code == other.code && one.stderr.lines().next() == other.stderr.lines().next(), "{one}\n{other}");
    }
    Ok(())
}
