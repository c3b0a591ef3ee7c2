//! Flags and what is wrong with them.

use anyhow::{Result, ensure};

use crate::processes::{Listening, PAGEFERRY, RECEIVE, SEND, run};

/// Flags enough for a sender and a receiver, on loopback. Nothing listens there; it does not come to that.
const TO: &str = "--to 127.0.0.1:1";
const GUEST: &str = "--guest workload:memory=64MiB";
const LISTEN: &str = "--listen 127.0.0.1:0";

/// Fails unless the program ends with 2 before it does anything, and says each of `words`.
fn is_wrong(program: &str, flags: &str, words: &[&str]) -> Result<()> {
    let ended = run(program, flags)?.expect(2)?;
    for word in words {
        ensure!(ended.stderr.contains(word), "{flags}: nothing of {word:?} in: {ended}");
    }
    ensure!(ended.stdout.is_empty(), "{flags}: standard output is for data: {ended}");
    Ok(())
}

#[test]
fn a_sender_says_which_flag_is_wrong_and_what_is_accepted() -> Result<()> {
    for (flags, words) in [
        ("--to nowhere --guest workload:", ["--to", "nowhere", "host:port"]),
        (&format!("{TO} {GUEST} --channels 0"), ["--channels", "\"0\"", "1 to 64"]),
        (&format!("{TO} {GUEST} --channels two"), ["--channels", "two", "1 to 64"]),
        (&format!("{TO} {GUEST} --tracker magic"), ["--tracker", "magic", "write-protect"]),
        (&format!("{TO} {GUEST} --compress gzip"), ["--compress", "gzip", "lz4"]),
        (&format!("{TO} {GUEST} --bandwidth 1Gbps"), ["--bandwidth", "1Gbps", "1Gbit/s"]),
        (&format!("{TO} {GUEST} --downtime-limit 300"), ["--downtime-limit", "300", "300ms"]),
        (&format!("{TO} {GUEST} --timeout soon"), ["--timeout", "soon", "2m"]),
        (&format!("{TO} {GUEST} --max-volume lots"), ["--max-volume", "lots", "10x"]),
        (&format!("{TO} {GUEST} --max-rounds=-1"), ["--max-rounds", "-1", "0 to"]),
        (&format!("{TO} {GUEST} --dirty-threshold few"), ["--dirty-threshold", "few", "0 to"]),
        (&format!("{TO} {GUEST} --on-limit pray"), ["--on-limit", "pray", "abort"]),
        (&format!("{TO} {GUEST} --post-copy maybe"), ["--post-copy", "maybe", "never"]),
        (&format!("{TO} {GUEST} --post-copy 5 --max-rounds 3"), ["--post-copy", "5", "--max-rounds allows 3"]),
        (&format!("{TO} {GUEST} --post-copy never --on-limit post-copy"), ["--on-limit", "post-copy", "--post-copy never"]),
        (&format!("{TO} {GUEST} --post-copy auto --on-limit throttle"), ["--on-limit", "throttle", "--post-copy auto"]),
        (&format!("{TO} {GUEST} --recover-for ever"), ["--recover-for", "ever", "2m"]),
        (&format!("{TO} {GUEST} --backing paper"), ["--backing", "paper", "memfd"]),
        (&format!("{TO} {GUEST} --warm-up 5"), ["--warm-up", "5", "300ms"]),
        (&format!("{TO} {GUEST} --delta off --delta-cache 1GiB"), ["--delta-cache", "1GiB", "no differences"]),
        (&format!("{TO} {GUEST} --faster"), ["--faster", "unexpected", "--help"]),
        (&format!("{TO} {GUEST} --insecure --tls /keys"), ["--insecure", "--tls", "cannot be used with"]),
        (TO, ["--guest", "required", "--help"]),
        (GUEST, ["--to", "required", "--help"]),
    ] {
        is_wrong(SEND, flags, &words)?;
    }
    Ok(())
}

#[test]
fn a_guest_that_makes_no_sense_is_named() -> Result<()> {
    for (guest, words) in [
        ("disk:memory=64MiB", ["disk", "workload"]),
        ("workload:colour=red", ["colour", "pattern"]),
        ("workload:memory=64M", ["memory", "64M"]),
        ("workload:memory=64MiB,fill=1GiB", ["fill", "0 to 48MiB"]),
        ("workload:pattern=zigzag", ["pattern", "hot-cold"]),
        ("workload:rate=fast", ["rate", "max"]),
        ("workload:memory=64MiB,memory=64MiB", ["memory", "twice"]),
    ] {
        is_wrong(SEND, &format!("{TO} --guest {guest}"), &[&["--guest"], words.as_slice()].concat())?;
    }
    Ok(())
}

#[test]
fn a_receiver_says_which_flag_is_wrong_and_what_is_accepted() -> Result<()> {
    for (flags, words) in [
        ("--listen here", ["--listen", "here", "host:port"]),
        (&format!("{LISTEN} --max-sessions 0"), ["--max-sessions", "\"0\"", "1 to"]),
        (&format!("{LISTEN} --max-memory much"), ["--max-memory", "much", "64MiB"]),
        (&format!("{LISTEN} --allow workload,disk"), ["--allow", "disk", "kvm"]),
        (&format!("{LISTEN} --recover-for 5"), ["--recover-for", "\"5\"", "2m"]),
        (&format!("{LISTEN} --backing paper"), ["--backing", "paper", "memfd"]),
        ("--hold", ["--listen", "required", "--help"]),
    ] {
        is_wrong(RECEIVE, flags, &words)?;
    }
    Ok(())
}

#[test]
fn what_is_not_built_in_is_said() -> Result<()> {
    if cfg!(not(feature = "tls")) {
        is_wrong(SEND, &format!("{TO} {GUEST} --tls /keys"), &["--tls /keys", "not built in"])?;
        is_wrong(RECEIVE, &format!("{LISTEN} --tls /keys"), &["--tls /keys", "not built in"])?;
    }
    if cfg!(not(feature = "keys")) {
        is_wrong(PAGEFERRY, "keys", &["keys", "not built in"])?;
    }
    Ok(())
}

#[test]
fn plain_text_beyond_loopback_must_be_said_aloud_on_both_sides() -> Result<()> {
    is_wrong(SEND, &format!("--to 192.0.2.1:7000 {GUEST}"), &["--to", "192.0.2.1:7000", "--insecure"])?;
    is_wrong(RECEIVE, "--listen 0.0.0.0:0", &["--listen", "0.0.0.0:0", "--insecure"])?;
    let receiver = Listening::start("0.0.0.0:0", "--insecure")?;
    ensure!(receiver.address.starts_with("0.0.0.0:") && !receiver.address.ends_with(":0"), "listens on {}", receiver.address);
    Ok(())
}

#[test]
fn a_tracker_that_does_not_fit_the_guest_is_a_usage_error() -> Result<()> {
    is_wrong(SEND, &format!("{TO} {GUEST} --tracker kvm-log"), &["--tracker", "kvm-log", "not usable"])
}

#[test]
fn help_goes_to_standard_output() -> Result<()> {
    for (program, flags) in [
        (SEND, vec!["--to", "--guest", "--channels", "--downtime-limit", "--post-copy", "--recover-for", "--json", "Exit codes"]),
        (RECEIVE, vec!["--listen", "--max-memory", "--hold", "--recover-for", "--dump"]),
        (PAGEFERRY, vec!["demo", "plan", "probe", "bench", "report"]),
    ] {
        let ended = run(program, "--help")?.expect(0)?;
        for flag in flags {
            ensure!(ended.stdout.contains(flag), "{program}: nothing of {flag:?} in: {ended}");
        }
        let version = run(program, "--version")?.expect(0)?;
        ensure!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version}");
    }
    Ok(())
}
