//! A migration's settings, drawn by lot: as the flags of `pageferry-send`, so that one that failed can be run by hand.

use crate::processes;
use crate::processes::random::Random;

/// What this machine can do.
pub(crate) struct Able {
    trackers: Vec<(&'static str, &'static str)>,
    post_copy: bool,
    tls: bool,
}

/// Settings of one migration.
pub(crate) struct Settings {
    /// All flags but `--to` and `--tls`.
    pub(crate) flags: String,
    /// Of the receiver's guest memory.
    pub(crate) memfd: bool,
    pub(crate) tls: bool,
}

impl Able {
    /// Asks, and says what is left out and why.
    pub(crate) fn probe() -> Self {
        let kvm = processes::kvm();
        if let Err(reason) = &kvm {
            println!("skipped  guests of KVM: {reason}");
        }
        let post_copy = processes::userfaultfd();
        if let Err(reason) = &post_copy {
            println!("skipped  post-copy: {reason}");
        }
        if cfg!(not(feature = "tls")) {
            println!("skipped  TLS: built without the feature `tls`");
        }
        let mut trackers = Vec::new();
        for (guest, tracker) in TRACKERS {
            if guest == "kvm" && kvm.is_err() {
                continue;
            }
            match super::lottery::usable(guest, tracker) {
                Ok(()) => trackers.push((guest, tracker)),
                Err(error) => println!("skipped  {tracker} of {guest}: {error:#}"),
            }
        }
        Self { trackers, post_copy: post_copy.is_ok(), tls: cfg!(feature = "tls") }
    }
}

impl Settings {
    pub(crate) fn draw(random: &mut Random, able: &Able) -> Self {
        let (guest, tracker) = random.of(&able.trackers);
        // From 20 to 64 MiB, of which the first 16 are the guest's program's.
        let memory = random.within(5..17) * 4;
        let room = memory - 16;
        let guest = format!(
            "{guest}:memory={memory}MiB,fill={}MiB,working-set={}KiB,random-every={},content={},pattern={},rate={},seed={}",
            random.within(0..room + 1),
            random.within(1..room * 1024 / 4 + 1) * 4,
            random.within(0..5),
            random.of(&["records", "text", "sparse"]),
            random.of(&["sweep", "random", "rewrite", "hot-cold"]),
            random.of(&["1000", "20000", "100000", "max"]),
            random.next(),
        );
        let post_copy = random.of(if able.post_copy { &["", "", "auto", "0", "1", "2"] } else { &[""] });
        // As many as go before post-copy, at least.
        let least = post_copy.parse().unwrap_or(0);
        let mut flags = format!(
            "--guest {guest} --tracker {tracker} --channels {} --compress {} {} --backing {} --max-rounds {} --downtime-limit {}ms --on-limit {}",
            random.within(1..9),
            random.of(if cfg!(feature = "zstd") { &["auto", "none", "lz4", "zstd"] } else { &["auto", "none", "lz4"] }),
            random.of(&["--delta auto", "--delta auto --delta-cache 256KiB", "--delta off"]),
            random.of(&["anonymous", "memfd"]),
            random.within(least..12),
            random.of(&[1, 20, 300]),
            random.of(match post_copy {
                "auto" => &["stop", "post-copy"],
                _ if able.post_copy => &["stop", "throttle", "abort", "post-copy"],
                _ => &["stop", "throttle", "abort"],
            }),
        );
        if !post_copy.is_empty() {
            flags += &format!(" --post-copy {post_copy}");
        }
        flags += random.of(&["", "", "", " --bandwidth 400Mbit/s", " --bandwidth 4Gbit/s"]);
        flags += random.of(&["", "", "", " --timeout 200ms"]);
        Self { flags, memfd: random.of(&[false, true]), tls: able.tls && random.of(&[false, true]) }
    }
}

const TRACKERS: [(&str, &str); 8] = [
    ("workload", "auto"),
    ("workload", "write-protect"),
    ("workload", "soft-dirty"),
    ("workload", "marked"),
    ("kvm", "auto"),
    ("kvm", "write-protect"),
    ("kvm", "soft-dirty"),
    ("kvm", "kvm-log"),
];
