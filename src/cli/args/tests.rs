use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::*;
use crate::dirty::TrackerKind;
use crate::page::{Compression, DeltaCache};
use crate::policy::{DirtyThreshold, Limits, OnLimit, PostCopy, VolumeLimit};
use crate::units::{ByteCount, BytesPerSec, PageCount};

/// Flags that are enough, on loopback.
const SEND: &str = "--to 127.0.0.1:7000 --guest workload:memory=1GiB";
const RECEIVE: &str = "--listen 127.0.0.1:0";

fn parse<T: Parser>(flags: &str) -> Result<T, clap::Error> {
    T::try_parse_from(["program"].into_iter().chain(flags.split_whitespace()))
}

fn send(flags: &str) -> SendSettings {
    parse::<SendArgs>(&format!("{SEND} {flags}")).unwrap().settings().unwrap()
}

fn receive(flags: &str) -> ReceiveSettings {
    parse::<ReceiveArgs>(&format!("{RECEIVE} {flags}")).unwrap().settings().unwrap()
}

#[test]
fn the_definitions_are_sound() {
    SendArgs::command().debug_assert();
    ReceiveArgs::command().debug_assert();
}

#[test]
fn a_sender_needs_only_an_address_and_a_guest() {
    let settings = send("");
    assert_eq!(settings.endpoint.to_string(), "127.0.0.1:7000");
    assert_eq!(settings.guests, Guests::One("workload:memory=1GiB".to_owned()));
    assert_eq!((settings.tracker, settings.channels, settings.compression), (None, 2, Compression::Auto));
    assert_eq!(settings.limits, Limits::default(), "the flags' defaults are the policy's");
    assert_eq!(settings.delta_cache, DeltaCache::Auto);
    assert_eq!((settings.bandwidth, settings.backing, settings.warm_up), (None, Backing::Anonymous, Duration::ZERO));
    assert_eq!((settings.json, settings.dump), (None, None));
}

#[test]
fn every_flag_of_the_sender_arrives() {
    let settings = send(
        "--tracker soft-dirty --channels 4 --compress none --delta auto --delta-cache 64MiB --max-rounds 5 --max-volume 3.5x --dirty-threshold 7 \
         --downtime-limit 1.5s --timeout 2m --on-limit abort --post-copy never --bandwidth 1Gbit/s --backing memfd --warm-up 3s \
         --json - --dump /tmp/image",
    );
    let limits = Limits {
        max_rounds: 5,
        max_volume: VolumeLimit::Times(3.5),
        dirty_threshold: DirtyThreshold::Pages(PageCount(7)),
        downtime_limit: Duration::from_millis(1500),
        timeout: Some(Duration::from_secs(120)),
        on_limit: OnLimit::Abort,
        ..Limits::default()
    };
    assert_eq!(settings.limits, limits);
    assert_eq!((settings.tracker, settings.channels, settings.compression), (Some(TrackerKind::SoftDirty), 4, Compression::None));
    assert_eq!((settings.delta_cache, send("--delta off").delta_cache), (DeltaCache::Bytes(ByteCount(64 << 20)), DeltaCache::Off));
    assert_eq!((settings.bandwidth, settings.backing, settings.warm_up), (Some(BytesPerSec(125e6)), Backing::Memfd, Duration::from_secs(3)));
    assert_eq!((settings.json, settings.dump), (Some(Output::Stdout), Some("/tmp/image".into())));
    assert_eq!(send("--json report").json, Some(Output::File("report".into())));
    assert_eq!(send("--max-volume 64GiB").limits.max_volume, VolumeLimit::Bytes(ByteCount(64 << 30)));
}

#[test]
fn tracker_flags_are_the_trackers_names() {
    for kind in TrackerKind::ALL {
        assert_eq!(send(&format!("--tracker {kind}")).tracker, Some(kind));
    }
    assert_eq!(send("--tracker auto").tracker, None);
}

#[test]
fn backing_flags_are_the_backings_names() {
    for backing in [Backing::Anonymous, Backing::Memfd, Backing::HugeTlb] {
        assert_eq!(send(&format!("--backing {backing}")).backing, backing);
        assert_eq!(receive(&format!("--backing {backing}")).backing, backing);
    }
}

#[test]
fn a_receiver_needs_only_an_address() {
    let settings = receive("");
    assert_eq!(settings.endpoint.to_string(), "127.0.0.1:0");
    assert_eq!((settings.max_memory, settings.allow, settings.max_sessions, settings.hold), (None, None, None, false));
    assert_eq!((settings.json, settings.dump, settings.backing), (None, None, Backing::Anonymous));
}

#[test]
fn every_flag_of_the_receiver_arrives() {
    let settings = receive("--json - --dump image --hold --max-memory 2GiB --allow kvm,workload --max-sessions 3 --backing hugetlb");
    assert_eq!((settings.json, settings.dump, settings.hold), (Some(Output::Stdout), Some("image".into()), true));
    assert_eq!(settings.max_memory, Some(ByteCount(2 << 30)));
    assert_eq!(settings.allow, Some(vec!["kvm".to_owned(), "workload".to_owned()]));
    assert_eq!(settings.max_sessions, Some(3));
    assert_eq!(settings.backing, Backing::HugeTlb);
}

#[test]
fn many_guests_come_from_a_file_and_leave_no_place_for_one() {
    let batch = |flags: &str| parse::<SendArgs>(&format!("--to 127.0.0.1:1 {flags}"));
    assert_eq!(batch("--batch guests").unwrap().settings().unwrap().guests, Guests::Batch(Input::File("guests".into())));
    assert_eq!(batch("--batch -").unwrap().settings().unwrap().guests, Guests::Batch(Input::Stdin));
    assert!(batch("--batch guests --guest kvm:").is_err() && batch("").is_err() && parse::<SendArgs>("--batch guests").is_err());
    let error = batch("--batch guests --dump image").unwrap().settings().unwrap_err();
    assert_eq!(error.to_string(), "--dump image: that is one image, and --batch moves many guests; leave one of them out");
}

#[test]
fn post_copy_flags_arrive_and_those_that_rule_each_other_out_are_refused() {
    let limits = |flags: &str| send(flags).limits;
    assert!(!limits("").allow_post_copy());
    for (flags, post_copy, on_limit) in [
        ("--post-copy never", PostCopy::Never, OnLimit::Stop),
        ("--post-copy auto", PostCopy::Auto, OnLimit::Stop),
        ("--post-copy 0", PostCopy::After(0), OnLimit::Stop),
        ("--post-copy 30 --on-limit abort", PostCopy::After(30), OnLimit::Abort),
        ("--on-limit post-copy", PostCopy::Never, OnLimit::PostCopy),
        ("--post-copy auto --on-limit post-copy", PostCopy::Auto, OnLimit::PostCopy),
        ("--post-copy 0 --max-rounds 0", PostCopy::After(0), OnLimit::Stop),
    ] {
        assert_eq!((limits(flags).post_copy, limits(flags).on_limit), (post_copy, on_limit), "{flags}");
    }
    for (flags, message) in [
        ("--post-copy never --on-limit post-copy", "--on-limit post-copy: --post-copy never rules it out; leave one of them out"),
        ("--post-copy auto --on-limit throttle", "--on-limit throttle: --post-copy auto runs the guest at the destination instead"),
        ("--post-copy auto --on-limit abort", "--on-limit abort: --post-copy auto runs the guest at the destination instead"),
        ("--post-copy 31", "--post-copy 31: --max-rounds allows 30 before that"),
        ("--post-copy 3 --max-rounds 2", "--post-copy 3: --max-rounds allows 2 before that"),
    ] {
        let error = parse::<SendArgs>(&format!("{SEND} {flags}")).unwrap().settings().unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    assert_eq!((send("").recover_for, receive("").recover_for), (Duration::from_secs(60), Duration::from_secs(60)));
    assert_eq!(send("--recover-for 5s").recover_for, Duration::from_secs(5));
    assert_eq!(receive("--recover-for 2m").recover_for, Duration::from_secs(120));
}

#[test]
fn an_image_has_a_file_of_its_own() {
    for (flags, expected) in [("--dump -", "--dump -: an image goes to a file"), ("--dump out --json out", "--dump out: --json goes there already")] {
        let sender = parse::<SendArgs>(&format!("{SEND} {flags}")).unwrap().settings().map(drop);
        let receiver = parse::<ReceiveArgs>(&format!("{RECEIVE} {flags}")).unwrap().settings().map(drop);
        for error in [sender.unwrap_err(), receiver.unwrap_err()] {
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }
    assert!(parse::<SendArgs>(&format!("{SEND} --dump /dev/null --json /dev/null")).unwrap().settings().is_ok());
}

#[test]
fn errors_name_the_flag_the_value_and_what_is_accepted() {
    let table = [
        ("--channels 0", "--channels", "0", "1 to 64"),
        ("--channels 65", "--channels", "65", "1 to 64"),
        ("--max-rounds 65001", "--max-rounds", "65001", "0 to 65000"),
        ("--channels two", "--channels", "two", "1 to 64"),
        ("--max-volume 10y", "--max-volume", "10y", "10x"),
        ("--dirty-threshold many", "--dirty-threshold", "many", "expected 0 to"),
        ("--downtime-limit 300", "--downtime-limit", "300", "300ms"),
        ("--bandwidth 1Gb", "--bandwidth", "1Gb", "1Gbit/s"),
        ("--bandwidth 0bit/s", "--bandwidth", "0bit/s", "above zero"),
        ("--tracker magic", "--tracker", "magic", "write-protect"),
        ("--compress gzip", "--compress", "gzip", "lz4"),
        ("--post-copy soon", "--post-copy", "soon", "never, auto or a number"),
        ("--backing disk", "--backing", "disk", "hugetlb"),
    ];
    for (flags, flag, value, accepted) in table {
        let error = parse::<SendArgs>(&format!("{SEND} {flags}")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(flag) && text.contains(value) && text.contains(accepted), "{text}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn errors_of_the_receiver_say_as_much() {
    let table = [
        ("--max-memory 2G", "--max-memory", "2G", "64MiB"),
        ("--allow qemu", "--allow", "qemu", "workload, kvm"),
        ("--max-sessions 0", "--max-sessions", "0", "1 to"),
    ];
    for (flags, flag, value, accepted) in table {
        let text = parse::<ReceiveArgs>(&format!("{RECEIVE} {flags}")).unwrap_err().to_string();
        assert!(text.contains(flag) && text.contains(value) && text.contains(accepted), "{text}");
    }
    let text = parse::<ReceiveArgs>("--listen nowhere").unwrap_err().to_string();
    assert!(text.contains("--listen") && text.contains("nowhere") && text.contains("host:port"), "{text}");
}

#[test]
fn what_is_needed_is_asked_for() {
    for flags in ["", "--to 127.0.0.1:1", "--guest kvm:"] {
        assert_eq!(parse::<SendArgs>(flags).unwrap_err().exit_code(), 2, "{flags}");
    }
    assert!(parse::<ReceiveArgs>("").is_err());
    assert!(parse::<SendArgs>(&format!("{SEND} --tls keys --insecure")).is_err(), "one or the other");
}

#[test]
fn plain_text_beyond_loopback_must_be_said_aloud() {
    let address = |text: &str| text.parse::<Endpoint>().unwrap();
    for local in ["127.0.0.1:1", "[::1]:1", "unix:/run/pageferry"] {
        assert_eq!(check_plain_text("--to", &address(local), false), Ok(()), "{local}");
    }
    for far in ["192.0.2.1:1", "0.0.0.0:1", "[::]:1"] {
        let error = check_plain_text("--to", &address(far), false).unwrap_err().to_string();
        assert!(error.starts_with(&format!("--to {far}: ")) && error.contains("--insecure"), "{error}");
        assert_eq!(check_plain_text("--to", &address(far), true), Ok(()), "{far}");
    }
    let settings = parse::<SendArgs>("--to 192.0.2.1:1 --guest kvm:").unwrap().settings();
    assert!(settings.is_err_and(|error| error.flag == "--to"));
    let settings = parse::<ReceiveArgs>("--listen 0.0.0.0:0").unwrap().settings();
    assert!(settings.is_err_and(|error| error.flag == "--listen"));
    assert!(parse::<ReceiveArgs>("--listen 0.0.0.0:0 --insecure").unwrap().settings().is_ok());
}

#[test]
fn keys_that_cannot_be_used_are_said_with_flag_and_value() {
    let errors = [
        parse::<SendArgs>(&format!("{SEND} --tls /nonexistent")).unwrap().settings().unwrap_err(),
        parse::<ReceiveArgs>(&format!("{RECEIVE} --tls /nonexistent")).unwrap().settings().unwrap_err(),
    ];
    let problem = if cfg!(feature = "tls") { "/nonexistent/ca-cert.pem cannot be read: No such file" } else { "not built in" };
    for error in errors {
        let text = error.to_string();
        assert!(text.starts_with("--tls /nonexistent: ") && text.contains(problem), "{text}");
    }
}
