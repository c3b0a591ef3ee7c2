use super::*;

const MIGRATION: &str = concat!(
    r#"{"schema":1,"outcome":"completed","reason":"","total_ms":3.0,"preparation_ms":1,"downtime_ms":1.5,"resume_ms":0.5,"#,
    r#""pages_transferred":7,"wire_bytes":99,"rounds":[]}"#
);

fn error(text: &str) -> String {
    read("file.json", text.as_bytes()).unwrap_err().to_string()
}

/// The one migration in `text`.
fn migration(text: &str) -> Migration {
    match read("file.json", text.as_bytes()).unwrap().remove(0).content {
        Content::Migration(migration) => *migration,
        Content::Bench(_) => panic!("a bench"),
    }
}

#[test]
fn each_object_knows_where_it_came_from() {
    let text = format!("\n{MIGRATION}\n\n{MIGRATION}{MIGRATION}\n");
    let origins: Vec<_> = read("file.json", text.as_bytes()).unwrap().into_iter().map(|document| document.origin).collect();
    assert_eq!(origins, ["file.json, line 2", "file.json, line 4", "file.json, line 4"]);
}

#[test]
fn an_object_may_take_many_lines() {
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(MIGRATION).unwrap()).unwrap();
    assert_eq!(read("file.json", format!("{pretty}\n{pretty}").as_bytes()).unwrap().len(), 2);
}

#[test]
fn what_the_engine_writes_is_read() {
    let report = crate::stats::Report { tracker: Some("kvm-log".into()), ..crate::stats::Report::new() };
    assert_eq!(migration(&report.to_json()).tracker.as_deref(), Some("kvm-log"));
}

#[test]
fn the_sum_of_a_batch_is_passed_over() {
    let batch = crate::stats::BatchReport::of(&[], std::time::Duration::ZERO).to_json();
    assert_eq!(read("file.json", format!("{MIGRATION}\n{MIGRATION}\n{batch}\n").as_bytes()).unwrap().len(), 2);
}

#[test]
fn what_is_not_known_is_passed_over_and_names_are_open() {
    let later = MIGRATION.replacen('{', r#"{"later":{"a":[1,{}]},"pages_by_encoding":{"zip":3,"raw":4,"none":null},"#, 1);
    let encodings = migration(&later).pages_by_encoding;
    assert_eq!(encodings.0, [("zip".to_owned(), 3.0), ("raw".to_owned(), 4.0)], "in the order of the file");
    migration(&MIGRATION.replace("completed", "evaporated"));
}

#[test]
fn an_error_says_where_and_what() {
    for (text, words) in [
        ("", "file.json: is empty; expected the JSON of a migration or a bench"),
        (" \n ", "file.json: is empty"),
        ("{", "file.json, line 1, column 1: EOF while parsing an object"),
        ("{}\n", "file.json, line 1: schema null is not known; expected 1"),
        ("\n\n[1]", "file.json, line 3, column 1: expected an object"),
        ("  7", "file.json, line 1, column 3: expected an object"),
        ("total 7", "file.json, line 1, column 2: expected ident"),
        (&MIGRATION.replace("\"schema\":1", "\"schema\":2"), "line 1: schema 2 is not known; expected 1"),
        (&MIGRATION.replace("\"schema\":1", "\"schema\":\"1\""), "line 1: schema \"1\" is not known; expected 1"),
        (&format!("{MIGRATION}\n{}", MIGRATION.replace("99", "-1")), "file.json, line 2, column 151: -1 is not a figure: expected 0 to 1e15"),
        (&MIGRATION.replace("99", "1e16"), "10000000000000000 is not a figure"),
        (&MIGRATION.replace("99", "1e999"), "number out of range"),
        (&MIGRATION.replace("99", "\"99\""), "invalid type: string \"99\""),
        (&MIGRATION.replace(r#","rounds":[]"#, ""), "missing field `rounds`"),
        (r#"{"schema":1,"kind":"plan"}"#, "line 1: kind \"plan\" is not known; expected \"bench\", or none for a migration"),
        (r#"{"schema":1,"kind":7}"#, "line 1: kind 7 is not known"),
        (r#"{"schema":9,"kind":"bench"}"#, "line 1: schema 9 is not known; expected 1"),
        (r#"{"schema":1,"kind":"bench","machine":7}"#, "invalid type: integer `7`, expected a string"),
    ] {
        let error = error(text);
        assert!(error.contains(words), "{error}\n  lacks: {words}");
    }
}

#[test]
fn a_wrong_value_is_not_repeated_at_length() {
    let long = error(&format!(r#"{{"schema":1,"kind":"{}"}}"#, "x".repeat(100_000)));
    assert!(long.len() < 200 && long.contains("xx…"), "{long}");
}

#[test]
fn bytes_that_are_no_text_are_located() {
    let error = read("file.json", b"{}\n\xff").unwrap_err();
    assert_eq!(error.to_string(), "file.json, line 2: is not UTF-8 text");
}

#[test]
fn nesting_without_end_is_an_error() {
    for open in ["[", "{\"a\":"] {
        assert!(error(&open.repeat(200_000)).contains("line 1"));
        error(&format!("{{\"later\":{}}}", open.repeat(200_000)));
    }
}
