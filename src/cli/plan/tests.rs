//! Plans as they are printed.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    plan: PlanArgs,
}

fn plan(flags: &str) -> String {
    let command = Command::try_parse_from(["plan"].into_iter().chain(flags.split_whitespace())).unwrap();
    let mut out = Vec::new();
    run(&command.plan, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_table_lines_up_and_says_why() {
    let text = plan("--memory 1GiB --dirty-rate 10000 --bandwidth 1Gbit/s --working-set 64MiB");
    let expected = "        round   pages     memory      time  dirty after  decision
            0  262144      1 GiB   8.590 s        16384  round: converging
            1   16384     64 MiB  536.9 ms         5369  round: tightening
            2    5369  20.97 MiB  175.9 ms         1760  round: tightening
            3    1760   6.88 MiB   57.7 ms          577  round: tightening
            4     577   2.25 MiB   18.9 ms          190  round: tightening
            5     190    760 KiB    6.2 ms           63  round: tightening
            6      63    252 KiB    2.1 ms           21  stop-and-copy: dirty-threshold
stop-and-copy      21     84 KiB    0.7 ms

rounds             7  stops because at most 50 pages are dirty
moved         286508  pages, 1.09 GiB of guest memory
total        9.388 s  whatever the guest does: 8.590 s to 103.1 s
downtime      0.7 ms  whatever the guest does: 0.0 ms to 8.590 s
";
    assert_eq!(text, expected);
}

#[test]
fn the_cold_migration_is_one_row() {
    let text = plan("--memory 1GiB --dirty-rate 10000 --bandwidth 1Gbit/s --max-rounds 0");
    assert!(text.contains(" cold  262144   1 GiB  8.590 s"), "{text}");
    assert!(text.contains("stops because no rounds are allowed"), "{text}");
}

#[test]
fn json_has_the_numbers_of_the_table() {
    let text = plan("--memory 1GiB --dirty-rate 4096 --bandwidth 160MiB/s --downtime-limit 10ms --fixed-cost 1ms --json");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["rounds"].as_array().unwrap().len(), 4);
    assert_eq!(json["rounds"][0]["pages"], 262_144);
    assert_eq!(json["rounds"][2]["decision"], "round: tightening");
    assert_eq!((&json["decision"], &json["stopped_by"]), (&"stop-and-copy".into(), &"dirty-threshold".into()));
    assert_eq!(json["remainder_pages"], 27);
    assert!((json["downtime_ms"].as_f64().unwrap() - (27.0 / 40.96 + 1.0)).abs() < 1e-2, "{text}");
    assert_eq!(json["bounds"]["downtime_ms"][0], 1.0);
}

#[test]
fn the_plain_algorithm_goes_on_to_its_thresholds() {
    let busy = "--memory 64MiB --dirty-rate 1000000 --bandwidth 1Gbit/s --downtime-limit 0 --max-rounds 7";
    assert!(plan(busy).contains("more rounds would not leave less"));
    assert!(plan(&format!("{busy} --plateau ignore")).contains("no more than 7 rounds are allowed"));
    assert!(plan(&format!("{busy} --plateau ignore --on-limit abort")).contains("aborts because no more than 7 rounds"));
}

/// 64 MiB written all over every 164 ms, on a link that takes 537 ms for them.
const BUSY: &str = "--memory 1GiB --dirty-rate 100000 --bandwidth 1Gbit/s --working-set 64MiB --fixed-cost 5ms";

#[test]
fn post_copy_is_a_row_and_its_downtime_the_fixed_cost() {
    let text = plan(&format!("{BUSY} --post-copy auto"));
    let expected = "    round   pages  memory      time  dirty after  decision
        0  262144   1 GiB   8.590 s        16384  round: sampling
        1     512   2 MiB   16.8 ms        15872  post-copy: not-converging
post-copy   15872  62 MiB  520.1 ms

rounds             2  switches to post-copy because no number of rounds would meet the downtime limit of 300ms
moved         278528  pages, 1.06 GiB of guest memory
total        9.132 s  whatever the guest does: 8.595 s to 103.1 s
downtime      5.0 ms  whatever the guest does: 5.0 ms to 300.0 ms
";
    assert_eq!(text, expected);
    let text = plan(&format!("{BUSY} --post-copy 0"));
    assert!(text.contains("post-copy  262144   1 GiB  8.590 s") && text.contains("because no more rounds were asked for"), "{text}");
    assert!(plan(&format!("{BUSY} --on-limit post-copy")).contains("switches to post-copy because more rounds would not leave less"));
}

#[test]
fn json_tells_how_long_the_rest_follows() {
    let json: serde_json::Value = serde_json::from_str(&plan(&format!("{BUSY} --post-copy 1 --json"))).unwrap();
    assert_eq!((&json["decision"], &json["stopped_by"]), (&"post-copy".into(), &"as-asked".into()));
    assert_eq!((&json["downtime_ms"], &json["remainder_pages"]), (&5.0.into(), &16_384.into()));
    assert_eq!(json["resume_ms"], 536.87);
    let total = json["total_ms"].as_f64().unwrap();
    assert!((total - (8589.934 + 5.0 + 536.87)).abs() < 0.01, "{json}");
}

#[test]
fn flags_that_contradict_each_other_are_a_usage_error() {
    let words = format!("plan {BUSY} --post-copy auto --on-limit abort");
    let error = run(&Command::try_parse_from(words.split_whitespace()).unwrap().plan, &mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "--on-limit abort: --post-copy auto runs the guest at the destination instead");
}

#[test]
fn a_guest_that_runs_is_measured_instead_of_described() {
    let guest = "--measure workload:memory=64MiB,fill=32MiB,working-set=4MiB,rate=20000 --measure-for 300ms --bandwidth 1Gbit/s";
    let json: serde_json::Value = serde_json::from_str(&plan(&format!("{guest} --json"))).unwrap();
    let measured = &json["measured"];
    let pages = measured["pages"].as_u64().unwrap();
    assert!((8192..8400).contains(&pages), "32 MiB of fill and the guest's own: {json}");
    assert_eq!(measured["distinct_dirty_pages"].as_u64().map(|pages| pages.div_ceil(8)), Some(1025_u64.div_ceil(8)), "{json}");
    let (first, again) = (measured["first_bytes_per_page"].as_f64().unwrap(), measured["again_bytes_per_page"].as_f64().unwrap());
    assert!((2000.0..4096.0).contains(&first), "half of it cannot be compressed: {json}");
    assert!(again < 200.0, "one word a page: {json}");
    assert!(json["total_ms"].as_f64().unwrap() > 100.0, "{json}");
    let text = plan(guest);
    assert!(text.starts_with("measured with the ") && text.contains("\ntotal "), "{text}");
}

#[test]
fn a_plan_needs_a_description_or_a_guest() {
    let parse = |flags: &str| Command::try_parse_from(["plan"].into_iter().chain(flags.split_whitespace())).map(|command| command.plan);
    assert!(parse("--bandwidth 1Gbit/s").is_err());
    assert!(parse("--bandwidth 1Gbit/s --memory 1GiB").is_err());
    assert!(parse("--bandwidth 1Gbit/s --memory 1GiB --measure workload:").is_err(), "not both");
    let wrong = parse("--bandwidth 1Gbit/s --measure toaster:").unwrap();
    assert!(run(&wrong, &mut Vec::new()).unwrap_err().to_string().starts_with("--measure toaster:: "));
}
