//! What the bench runs on, and what it needs there.

use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

use super::qemu;
use super::results::Versions;
use super::tool;

/// What keeps the bench from running here, each with what to do about it.
#[must_use]
pub fn missing(with_qemu: bool) -> Vec<String> {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root, to make network namespaces: run it with sudo".to_owned());
    }
    let tools: Vec<_> = ["ip", "tc"].into_iter().filter(|tool| tool::find(tool).is_none()).collect();
    if !tools.is_empty() {
        missing.push(format!("{}: apt-get install -y iproute2", tools.join(" and ")));
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        missing.push(format!("/dev/kvm ({error}): `pageferry probe` says more"));
    }
    if with_qemu && tool::find(qemu::PROGRAM).is_none() {
        missing.push(format!("{} on PATH. {INSTALL_QEMU}", qemu::PROGRAM));
    }
    missing
}

/// Processors, memory and kernel.
pub(super) fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let models: Vec<_> = cpus.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, model)| model.trim()).collect();
    let memory = read("/proc/meminfo");
    let kib: Option<f64> = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let memory = kib.map_or_else(String::new, |kib| format!(", {:.0} GiB", kib / f64::from(1 << 20)));
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{} x {}{memory}, Linux {}", models.len().max(1), models.first().unwrap_or(&"unknown processor"), kernel.trim())
}

pub(super) fn versions(with_qemu: bool) -> Versions {
    let qemu = with_qemu.then(|| tool::version(qemu::PROGRAM)).flatten();
    Versions {
        pageferry: env!("CARGO_PKG_VERSION").to_owned(),
        qemu: qemu.map(|line| qemu_version(&line)),
        rustc: tool::version("rustc").map(|line| line.trim_start_matches("rustc ").to_owned()),
    }
}

/// `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)` is 10.0.2.
fn qemu_version(line: &str) -> String {
    let version = line.split_whitespace().skip_while(|word| *word != "version").nth(1);
    version.unwrap_or(line).to_owned()
}

/// The time now, UTC.
pub(super) fn date() -> String {
    timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Seconds since 1970 as `2026-01-31T12:00:00Z`. The year begins in March, so that the leap day is its last.
fn timestamp(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

const INSTALL_QEMU: &str = "On Debian 12:\n    \
    echo 'deb http://deb.debian.org/debian bookworm-backports main' > /etc/apt/sources.list.d/backports.list\n    \
    apt-get update && apt-get install -y -t bookworm-backports --no-install-recommends qemu-system-x86";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn the_version_is_taken_from_the_line() {
        assert_eq!(qemu_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), "10.0.2");
        assert_eq!(qemu_version("something else"), "something else");
    }

    #[test]
    fn this_machine_has_a_description() {
        let machine = machine();
        assert!(machine.contains(" x ") && machine.contains("Linux "), "{machine}");
    }
}
