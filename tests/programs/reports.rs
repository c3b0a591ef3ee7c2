//! The reports: the fields are an interface that other tools rely on.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::processes::{Ended, MOMENT, SEND, run};
use crate::{GUEST, receiver};

/// A field's name and whether a value fits.
type Field = (&'static str, fn(&Value) -> bool);

/// Of a completed migration, at both ends.
const BOTH: [Field; 17] = [
    ("schema", |value| value == 1),
    ("outcome", |value| value == "completed"),
    ("reason", Value::is_string),
    ("total_ms", is_time),
    ("preparation_ms", is_time),
    ("downtime_ms", is_time),
    ("resume_ms", is_time),
    ("pages_transferred", Value::is_u64),
    ("wire_bytes", Value::is_u64),
    ("rounds", |value| value.as_array().is_some_and(|rounds| !rounds.is_empty())),
    ("pages_by_encoding", |value| {
        let forms = ["zero", "uniform", "unchanged", "delta", "columns", "lz4", "zstd", "raw"];
        has_fields(value, &forms.map(|form| (form, Value::is_u64 as fn(&Value) -> bool)))
    }),
    ("tracker", |value| value.is_string() || value.is_null()),
    ("channels", |value| value == 2),
    ("predicted", |value| value.is_null() || has_fields(value, &[("total_ms", is_time), ("downtime_ms", is_time)])),
    ("stall_ms", is_time),
    ("guest_owner", |value| value == "destination"),
    ("downtime_parts_ms", |value| value.as_object().is_some_and(|parts| !parts.is_empty() && parts.values().all(is_time))),
];
/// What only the sender reports.
const SENDERS: [Field; 1] = [("prediction_error", |value| has_fields(value, &[("total", Value::is_f64), ("downtime", Value::is_f64)]))];
/// What only the receiver reports.
const RECEIVERS: [Field; 2] = [("guest_check", |value| value == "ok"), ("guest_gap_ms", is_time)];

const ROUND: [Field; 7] = [
    ("index", Value::is_u64),
    ("kind", |value| value == "pre-copy" || value == "stop-and-copy"),
    ("pages", Value::is_u64),
    ("wire_bytes", Value::is_u64),
    ("duration_ms", is_time),
    ("dirty_after", |value| value.is_u64() || value.is_null()),
    ("decision", |value| value.is_string() || value.is_null()),
];

fn is_time(value: &Value) -> bool {
    value.is_f64() && value.as_f64() >= Some(0.0)
}

/// Whether an object has these fields, fitting, and no others.
fn has_fields(value: &Value, fields: &[Field]) -> bool {
    value.as_object().is_some_and(|object| check(object, fields).is_ok())
}

fn check(object: &Map<String, Value>, fields: &[Field]) -> Result<()> {
    for (name, fits) in fields {
        let value = object.get(*name).with_context(|| format!("no {name}"))?;
        ensure!(fits(value), "{name}: {value}");
    }
    let unknown: Vec<_> = object.keys().filter(|key| !fields.iter().any(|(name, _)| name == key)).collect();
    ensure!(unknown.is_empty(), "beside what is documented: {unknown:?}");
    Ok(())
}

fn object(line: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(line).with_context(|| line.to_owned())
}

#[test]
fn both_reports_have_the_documented_fields_and_no_others() -> Result<()> {
    let receiver = receiver("--max-sessions 1")?;
    let sent = receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?;
    let received = receiver.process.wait(MOMENT)?.expect(0)?;
    check(&object(&sent.stdout)?, &[&BOTH[..], &SENDERS[..]].concat()).context("sender")?;
    check(&object(&received.stdout)?, &[&BOTH[..], &RECEIVERS[..]].concat()).context("receiver")?;
    for Ended { stdout, .. } in [&sent, &received] {
        for round in object(stdout)?["rounds"].as_array().context("rounds")? {
            ensure!(has_fields(round, &ROUND), "{round}");
        }
    }
    Ok(())
}

#[test]
fn the_numbers_add_up() -> Result<()> {
    let receiver = receiver("--max-sessions 1")?;
    let sent = receiver.send(GUEST, "--downtime-limit 1ms --dirty-threshold 0 --max-rounds 3 --compress lz4")?.wait(MOMENT)?.expect(0)?.report()?;
    let received = receiver.process.wait(MOMENT)?.expect(0)?.report()?;
    for report in [&sent, &received] {
        let pages: u64 = report.rounds.iter().map(|round| round.pages.0).sum();
        let bytes: u64 = report.rounds.iter().map(|round| round.wire_bytes.0).sum();
        let forms = &report.pages_by_encoding;
        let encoded: u64 = [forms.zero, forms.uniform, forms.unchanged, forms.delta, forms.columns, forms.lz4, forms.zstd, forms.raw]
            .iter()
            .map(|pages| pages.0)
            .sum();
        ensure!(report.pages_transferred.0 == pages && pages == encoded && report.wire_bytes.0 == bytes, "{}", report.to_json());
        ensure!(report.rounds.iter().zip(0..).all(|(round, index)| round.index == index), "{}", report.to_json());
        ensure!(report.total >= report.preparation + report.downtime + report.resume, "{}", report.to_json());
    }
    ensure!(sent.wire_bytes == received.wire_bytes && sent.pages_by_encoding == received.pages_by_encoding);
    // 16 MiB are filled, every other page with records.
    ensure!(sent.pages_by_encoding.columns.0 >= 2048 && sent.pages_by_encoding.raw.0 >= 2048, "{}", sent.to_json());
    ensure!(sent.rounds.iter().rev().skip(1).all(|round| round.decision.is_some()), "{}", sent.to_json());
    Ok(())
}

#[test]
fn a_sender_that_failed_reports_where_the_guest_is() -> Result<()> {
    let sent = run(SEND, &format!("--to 127.0.0.1:1 --guest {GUEST} --json -"))?.expect(1)?;
    let report = object(&sent.stdout)?;
    for (name, value) in [("outcome", "failed"), ("guest_owner", "source"), ("guest_check", "ok")] {
        ensure!(report[name] == value, "{sent}");
    }
    ensure!(report["reason"].as_str().is_some_and(|reason| reason.contains("127.0.0.1:1") && reason.contains("refused")), "{sent}");
    Ok(())
}

#[test]
fn a_receivers_file_has_one_line_for_each_migration() -> Result<()> {
    let directory = TempDir::new()?;
    let [received, sent] = ["received", "sent"].map(|name| directory.path().join(name));
    let mut receiver = receiver("--max-sessions 2")?; // Reports on standard output, to know when they are there.
    drop(receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?);
    receiver.next_report(MOMENT)?;
    drop(receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?);
    ensure!(receiver.process.wait(MOMENT)?.expect(0)?.stdout.lines().count() == 2);

    let address = format!("unix:{}", directory.path().join("socket").display());
    let flags = format!("--listen {address} --max-sessions 2 --json {}", received.display());
    let receiver = crate::processes::Listening::start_as(crate::processes::command(crate::processes::RECEIVE, &flags))?;
    for _ in 0..2 {
        run(SEND, &format!("--to {address} --guest {GUEST} --json {}", sent.display()))?.expect(0)?;
    }
    receiver.process.wait(MOMENT)?.expect(0)?;
    ensure!(std::fs::read_to_string(&received)?.lines().map(object).collect::<Result<Vec<_>>>()?.len() == 2);
    ensure!(std::fs::read_to_string(&sent)?.lines().count() == 1, "a sender reports one migration");
    Ok(())
}
