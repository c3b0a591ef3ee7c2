//! What pages show: every round, every part, every engine, and sizes that add up.

use std::collections::BTreeSet;

use roxmltree::{Document, Node};
use serde_json::{Value, json};

use crate::tree::{of_class, parse};
use crate::{BENCH, FOLLOWED, RECEIVER, SENDER, page};

fn value(file: &str) -> Value {
    serde_json::from_str(file).expect("a fixture")
}

/// A position or width in percent.
fn percent(node: &Node<'_, '_>, name: &str) -> f64 {
    let text = node.attribute(name).unwrap_or_else(|| panic!("no {name}: {node:?}"));
    text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{name}={text}"))
}

/// The picture whose identifier ends like this.
fn picture<'a>(document: &'a Document<'a>, end: &str) -> Node<'a, 'a> {
    let titled = |node: &Node<'_, '_>| node.attribute("aria-labelledby").is_some_and(|ids| ids.contains(&format!("{end}-title ")));
    document.descendants().find(titled).unwrap_or_else(|| panic!("no picture {end}"))
}

fn pieces<'a>(picture: Node<'a, 'a>) -> Vec<Node<'a, 'a>> {
    picture.descendants().filter(|node| node.attribute("class").is_some_and(|class| class.starts_with("piece"))).collect()
}

fn texts(node: Node<'_, '_>) -> String {
    node.descendants()
        .filter_map(|node| node.is_text().then(|| node.text()).flatten())
        .collect::<Vec<_>>()
        .join("|")
        .replace(['\u{a0}', '\u{202f}'], " ")
}

/// The table with this caption, row by row, as text.
fn table(document: &Document<'_>, caption: &str) -> Vec<Vec<String>> {
    let is_it = |node: &Node<'_, '_>| node.children().any(|child| child.tag_name().name() == "caption" && child.text() == Some(caption));
    let table = document.descendants().find(is_it).unwrap_or_else(|| panic!("no table {caption}"));
    let rows = table.descendants().filter(|node| node.tag_name().name() == "tr").skip(1);
    rows.map(|row| row.children().map(texts).collect()).collect()
}

#[test]
fn every_round_is_in_the_picture_and_in_the_table() {
    let page = page(&[SENDER]);
    let document = parse(&page);
    let report = value(SENDER);
    let rounds = report["rounds"].as_array().expect("rounds");
    let blocks = pieces(picture(&document, "timeline"));
    let rows = table(&document, "Rounds");
    assert_eq!((blocks.len(), rows.len()), (rounds.len(), rounds.len()));
    let total = report["total_ms"].as_f64().expect("a time");
    for ((round, block), row) in rounds.iter().zip(&blocks).zip(&rows) {
        let share = round["duration_ms"].as_f64().expect("a time") / total * 100.0;
        assert!((percent(block, "width") - share).abs() < 0.01, "{block:?}: {share}");
        assert_eq!(row[0], round["index"].to_string());
        assert_eq!(row[1], round["kind"].as_str().expect("a kind"));
        assert_eq!(row[8], round["decision"].as_str().unwrap_or("–"));
    }
    assert_eq!(rows[0][2..8], ["32 769", "96.7 MB", "1.557 s", "496.9 Mbit/s", "8193", "5263 pages/s"]);
    // No round begins before the one before it has ended, and the last begins with the pause.
    for pair in blocks.windows(2) {
        assert!(percent(&pair[1], "x") >= percent(&pair[0], "x") + percent(&pair[0], "width") - 0.01);
    }
    let pause = report["preparation_ms"].as_f64().expect("a time") / total * 100.0;
    assert!((percent(&blocks[4], "x") - pause).abs() < 0.01);
}

#[test]
fn what_a_round_left_over_was_not_dirtied_in_it() {
    let mut report = value(SENDER);
    report["rounds"][1]["pages"] = 193.into();
    report["rounds"][1]["dirty_after"] = 8100.into();
    let page = page(&[&report.to_string()]);
    // Of 8193 pages 8000 were left, so 100 were dirtied in 399.459 ms.
    assert_eq!(table(&parse(&page), "Rounds")[1][6..8], ["8100", "250 pages/s"]);
}

#[test]
fn parts_add_up_to_the_whole() {
    let page = page(&[SENDER]);
    let document = parse(&page);
    for (end, caption, count) in [("downtime", "Downtime in parts", 8), ("encodings", "Pages by encoding", 7)] {
        let blocks = pieces(picture(&document, end));
        let sum: f64 = blocks.iter().map(|block| percent(block, "width")).sum();
        assert!((sum - 100.0).abs() < 0.05, "{caption}: {sum}");
        let rows = table(&document, caption);
        assert_eq!(rows.len(), count, "{rows:?}");
    }
    // 388.692 ms were measured, 380.9 of them in parts.
    assert_eq!(table(&document, "Downtime in parts")[7], ["in no part", "7.79 ms", "2.0 %"]);
}

#[test]
fn what_the_destination_did_in_downtime_is_beside_it() {
    let mut report = value(RECEIVER);
    report["downtime_parts_ms"] = json!({"load": 3.0, "settle": 1.0});
    let page = page(&[SENDER, &report.to_string()]);
    let document = parse(&page);
    assert_eq!(table(&document, "The destination's own work in downtime"), [["load", "3.00 ms", "75.0 %"], ["settle", "1.00 ms", "25.0 %"]]);
    assert_eq!(table(&document, "Downtime in parts").len(), 8);
}

#[test]
fn parts_may_be_more_than_the_whole() {
    let mut report = value(SENDER);
    report["downtime_parts_ms"] = json!({"pages": 500.0, "state": 500.0});
    let page = page(&[&report.to_string()]);
    let document = parse(&page);
    assert_eq!(table(&document, "Downtime in parts"), [["pages", "500.0 ms", "50.0 %"], ["state", "500.0 ms", "50.0 %"]]);
}

#[test]
fn an_older_report_has_no_parts_and_no_picture_of_them() {
    let mut report = value(SENDER);
    for field in ["downtime_parts_ms", "predicted", "stall_ms"] {
        report.as_object_mut().expect("an object").remove(field);
    }
    let page = page(&[&report.to_string()]);
    assert!(!page.contains("Downtime in parts") && !page.contains("predicted") && page.contains("Pages by encoding"));
}

#[test]
fn predictions_stand_beside_what_came() {
    let page = page(&[SENDER]);
    let document = parse(&page);
    let bars = pieces(picture(&document, "predicted-total"));
    let ratio = percent(&bars[0], "width") / percent(&bars[1], "width");
    assert!((ratio - 2082.584 / 3132.403).abs() < 1e-3, "{ratio}");
    assert!(texts(document.root()).contains("It took 50.4 % longer than predicted."));
}

#[test]
fn both_ends_of_a_migration_are_one_section() {
    for files in [[SENDER, RECEIVER], [RECEIVER, SENDER]] {
        let page = page(&files);
        let document = parse(&page);
        assert_eq!(document.descendants().filter(|node| node.tag_name().name() == "section").count(), 1);
        let text = texts(document.root());
        assert!(text.contains("longest gap the guest saw|388.9 ms") && text.contains("stop-and-copy: plateau"), "{text}");
        let rows = table(&document, "Both ends in figures");
        assert!(rows.contains(&["Tracker", "write-protect", "–"].map(str::to_owned).to_vec()), "{rows:?}");
    }
}

#[test]
fn the_ends_need_not_agree_on_each_round() {
    let other = RECEIVER.replace("96700249", "96700250");
    assert_eq!(page(&[SENDER, &other]).matches("<section").count(), 1);
}

#[test]
fn reports_of_different_migrations_stay_apart() {
    let other = RECEIVER.replace("193409497", "193409498");
    for files in [[SENDER, &other], [SENDER, SENDER], [RECEIVER, RECEIVER]] {
        let page = page(&files);
        let document = parse(&page);
        assert_eq!(document.descendants().filter(|node| node.tag_name().name() == "section").count(), 2);
        assert_eq!(table(&document, "Contents").len(), 2);
    }
}

#[test]
fn post_copy_is_drawn_from_the_resume_on_and_faults_by_how_long_they_took() {
    let page = page(&FOLLOWED);
    let document = parse(&page);
    let report = value(FOLLOWED[0]);
    let ms = |name: &str| report[name].as_f64().expect("a time");
    assert_eq!(document.descendants().filter(|node| node.tag_name().name() == "section").count(), 1, "both ends are one");
    let blocks = pieces(picture(&document, "timeline"));
    let last = blocks.last().expect("a block");
    assert_eq!(last.attribute("class"), Some("piece post-copy"));
    assert!((percent(last, "x") - (ms("preparation_ms") + ms("downtime_ms")) / ms("total_ms") * 100.0).abs() < 0.01, "{last:?}");
    let faults = pieces(picture(&document, "faults"));
    let shares: Vec<f64> = faults.iter().map(|fault| percent(fault, "width") / percent(&faults[3], "width")).collect();
    for (share, micros) in shares.iter().zip([310.0, 940.0, 3870.0, 118_900.0]) {
        assert!((share - micros / 118_900.0).abs() < 1e-3, "{shares:?}");
    }
    assert_eq!(table(&document, "Pages that followed the guest"), [["pushed", "7981", "97.4 %"], ["sent at once for a fault", "212", "2.6 %"]]);
    assert_eq!(table(&document, "Time that threads waited for missing pages")[0], ["4711", "231", "208.1 ms"]);
    let text = texts(document.root());
    for words in [
        "Completed in 2.114 s in post-copy, downtime 4.85 ms",
        "until all memory was there|529.0 ms",
        "fault, 99th percentile|3.87 ms",
        "The guest touched missing memory 240 times and waited 214.3 ms for it.",
        "The connection broke and was made again once; for 118.4 ms there was none.",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let facts = table(&document, "Both ends in figures");
    assert!(facts.contains(&["Post-copy: pages asked for", "240", "–"].map(str::to_owned).to_vec()), "{facts:?}");
    assert!(!texts(parse(&crate::page(&[SENDER])).root()).contains("missing memory"));
}

#[test]
fn one_end_of_post_copy_is_shown_as_far_as_it_knows() {
    let sender = page(&FOLLOWED[..1]);
    assert!(sender.contains("Pages that followed the guest") && !sender.contains("How long the guest waited"));
    let mut other = value(FOLLOWED[1]);
    other["post_copy"]["pages"] = 8192.into();
    assert_eq!(page(&[FOLLOWED[0], &other.to_string()]).matches("<section").count(), 2, "not of one migration");
    let mut bare = value(FOLLOWED[1]);
    bare["post_copy"] = json!({});
    assert!(page(&[&bare.to_string()]).contains("Completed in 2.114"));
}

#[test]
fn post_copy_in_a_bench_is_compared_with_post_copy() {
    let mut bench = value(BENCH);
    assert!(!page(&[&bench.to_string()]).contains("Post-copy over"));
    let scenario = &mut bench["scenarios"][0];
    let mut ours = scenario["engines"][0].clone();
    ours["mode"] = "post-copy".into();
    ours["post_copy"] = true.into();
    ours["median"]["guest_writes_after_per_s"] = 8000.into();
    ours["median"]["fault_p99_us"] = 1500.into();
    for run in ours["runs"].as_array_mut().expect("runs") {
        run["report"] = value(FOLLOWED[0]);
        run["received"] = value(FOLLOWED[1]);
    }
    scenario["engines"].as_array_mut().expect("engines").insert(1, ours);
    scenario["post_copy_ratios"] = json!({"total": 0.5, "downtime": null, "guest_writes_after": 4.0});
    let page = page(&[&bench.to_string()]);
    let document = parse(&page);
    let ratios = table(&document, "Post-copy over QEMU's post-copy (of writes, more than 1 is better)");
    assert_eq!(ratios, [["64-10k-1g", "0.50 ×", "–", "–", "–", "–", "4.00 ×"]]);
    let rows = table(&document, "Post-copy: how the guest fared, faults within");
    assert_eq!(rows, [["pageferry post-copy", "9900 writes/s", "8000 writes/s", "–", "1.50 ms"]]);
    let text = texts(document.root());
    assert!(text.contains("This engine's run in post-copy closest to the median") && text.contains("This engine's run closest"), "{text}");
    assert!(text.contains("How long the guest waited for a missing page"));
}

#[test]
fn a_migration_that_failed_says_why() {
    let report = json!({"schema": 1, "outcome": "failed", "reason": "no route", "total_ms": 1, "preparation_ms": 0, "downtime_ms": 0, "resume_ms": 0,
        "pages_transferred": 0, "wire_bytes": 0, "rounds": [], "tracker": "soft-dirty", "guest_owner": "source"});
    let page = page(&[&report.to_string()]);
    let text = texts(parse(&page).root());
    assert!(text.contains("Not completed: failed, after 1.00 ms") && text.contains("Reason: |no route") && !text.contains("Rounds"), "{text}");
}

#[test]
fn a_migration_that_failed_is_not_compared_with_what_was_predicted() {
    let mut report = value(SENDER);
    report["outcome"] = "cancelled".into();
    assert!(!page(&[&report.to_string()]).contains("predicted"));
}

#[test]
fn a_guest_of_a_batch_that_never_began_is_the_senders_and_has_its_name() {
    let report = json!({"schema": 1, "outcome": "failed", "reason": "no such kind", "total_ms": 0, "preparation_ms": 0, "downtime_ms": 0, "resume_ms": 0,
        "pages_transferred": 0, "wire_bytes": 0, "rounds": [], "tracker": null, "guest_owner": "source", "guest": "web-3"});
    let page = page(&[&report.to_string()]);
    let text = texts(parse(&page).root());
    assert!(text.contains("web-3: Not completed: failed") && text.contains("|Sender|") && !text.contains("|Receiver|"), "{text}");
}

#[test]
fn each_encoding_has_a_colour_of_its_own() {
    let mut report = value(SENDER);
    let encodings = ["zero", "uniform", "unchanged", "delta", "columns", "lz4", "zstd", "raw"];
    report["pages_by_encoding"] = encodings.iter().map(|name| ((*name).to_owned(), json!(10))).collect();
    let page = page(&[&report.to_string()]);
    let document = parse(&page);
    let colours: BTreeSet<_> =
        pieces(picture(&document, "encodings")).iter().filter_map(|piece| piece.attribute("class")).map(str::to_owned).collect();
    assert!(colours.len() >= encodings.len(), "{colours:?}");
}

#[test]
fn figures_of_any_size_are_drawn() {
    let round = |index: u32, figure: f64| json!({"index": index, "kind": "pre-copy", "pages": figure, "wire_bytes": figure, "duration_ms": figure, "dirty_after": figure, "decision": "round"});
    for figure in [0.0, 1e-9, 1.0, 1e15] {
        let mut report = value(SENDER);
        report["rounds"] = (0..300).map(|index| round(index, if index % 2 == 0 { figure } else { 1.0 })).collect();
        for field in ["total_ms", "preparation_ms", "downtime_ms", "resume_ms", "pages_transferred", "wire_bytes", "stall_ms"] {
            report[field] = figure.into();
        }
        let page = page(&[&report.to_string()]);
        assert!(!page.contains("NaN") && !page.contains("inf"), "{figure}");
        let document = parse(&page);
        assert_eq!(pieces(picture(&document, "timeline")).len(), 300, "{figure}");
        for block in pieces(picture(&document, "timeline")) {
            assert!(percent(&block, "x") >= 0.0 && percent(&block, "x") + percent(&block, "width") <= 100.01, "{block:?}");
        }
    }
}

#[test]
fn a_bench_shows_every_engine_and_mode_of_every_scenario() {
    let page = page(&[BENCH]);
    let document = parse(&page);
    let bench = value(BENCH);
    let scenarios = bench["scenarios"].as_array().expect("scenarios");
    assert_eq!(of_class(&document, "scenario").len(), scenarios.len());
    for (scenario, section) in scenarios.iter().zip(of_class(&document, "scenario")) {
        let engines = scenario["engines"].as_array().expect("engines");
        for key in ["total", "guest_gap", "downtime", "wire_bytes", "cpu"] {
            let id = format!("{}-{key}", section.attribute("id").expect("an identifier"));
            let picture = picture(&document, &id);
            let named = picture.descendants().filter(|node| node.attribute("class") == Some("name")).count();
            assert_eq!(named, engines.len(), "{id}");
        }
        assert!(texts(section).contains(scenario["title"].as_str().expect("a title")));
    }
    let text = texts(document.root());
    for word in ["machine", "command", "date"].map(|field| bench[field].as_str().expect("text")) {
        assert!(text.contains(word), "{word}");
    }
    assert!(text.contains("qemu 10.0.2") && text.contains("not done after 40 s") && text.contains("Bench: 2 scenarios, 4 of 5 bars met"), "{text}");
}

#[test]
fn a_bench_shows_ratios_floors_and_bars() {
    let page = page(&[BENCH]);
    let document = parse(&page);
    assert_eq!(
        table(&document, "This engine over the best QEMU mode")[0],
        ["64-10k-1g", "0.70 ×", "0.56 ×", "0.64 ×", "0.85 ×", "0.54 ×", "✗|1 of 3 missed"]
    );
    let goals = table(&document, "Bars to be met");
    assert_eq!(goals[1], ["Guest's gap", "0.5 of the best pre-copy mode", "85.5 ms", "96.0 ms", "✗|missed"]);
    // The floor and the limit stand where bars of their length would end.
    let total = picture(&document, "r1-s1-total");
    let place =
        |class: &str| total.descendants().find(|node| node.attribute("class") == Some(class)).map(|node| percent(&node, "x1")).expect("a line");
    assert!((place("mark floor") / place("mark limit") - 1160.0 / 1276.0).abs() < 1e-3);
    let ours = pieces(total)[0];
    let median = value(BENCH)["scenarios"][0]["engines"][0]["median"]["total_ms"].as_f64().expect("a time");
    assert!((percent(&ours, "width") / place("mark floor") - median / 1160.0).abs() < 1e-3, "{ours:?}");
}

#[test]
fn a_bench_without_qemu_has_nothing_to_compare_with() {
    let mut bench = value(BENCH);
    for scenario in bench["scenarios"].as_array_mut().expect("scenarios") {
        scenario["ratios"] = Value::Null;
        scenario["bars"] = json!([]);
        scenario["engines"].as_array_mut().expect("engines").truncate(1);
    }
    bench["versions"]["qemu"] = Value::Null;
    let page = page(&[&bench.to_string()]);
    let text = texts(parse(&page).root());
    assert!(text.contains("qemu was not run") && !text.contains("Against the best") && !text.contains("Bars to be met"), "{text}");
}

#[test]
fn a_bench_with_a_receivers_report_alone_is_drawn() {
    let mut bench = value(BENCH);
    let run = &mut bench["scenarios"][0]["engines"][0]["runs"][0];
    assert!(run["report"].is_object(), "the fixture has another form");
    run["report"] = value(RECEIVER);
    run.as_object_mut().expect("a run").remove("received");
    let page = page(&[&bench.to_string()]);
    assert!(texts(parse(&page).root()).contains("closest to the median, round by round"));
}
