//! Many guests by one sender: what is said of them. Whether they arrive, a hundred at a time, is tested in `tests/batch`.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use pageferry::stats::{BatchReport, Outcome};

use crate::processes::{Listening, MOMENT, SEND, parse, run};

/// A file of this text.
fn file(text: &str) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(text.as_bytes())?;
    Ok(file)
}

#[test]
fn each_guest_has_a_line_of_its_own_and_the_batch_the_last_one() -> Result<()> {
    let mut receiver = Listening::start("127.0.0.1:0", "--max-sessions 3 --allow workload --max-memory 100MiB")?;
    let guests = file("workload:memory=20MiB,working-set=1MiB name=a\nworkload:memory=200MiB name=b\nworkload:memory=20MiB,working-set=1MiB name=c")?;
    let ended = run(SEND, &format!("--to {} --batch {} --json -", receiver.address, guests.path().display()))?.expect(3)?;
    let lines: Vec<&str> = ended.stdout.lines().collect();
    ensure!(lines.len() == 4, "{ended}");
    let mut outcomes = lines[..3].iter().map(|line| parse(line)).collect::<Result<Vec<_>>>()?;
    outcomes.sort_by(|one, other| one.guest.cmp(&other.guest));
    let outcomes: Vec<_> = outcomes.iter().map(|report| (report.guest.as_deref(), report.outcome)).collect();
    ensure!(outcomes == [(Some("a"), Outcome::Completed), (Some("b"), Outcome::Refused), (Some("c"), Outcome::Completed)], "{ended}");
    let batch: BatchReport = serde_json::from_str(lines[3])?;
    ensure!((batch.guests, batch.completed, batch.refused) == (3, 2, 1) && batch.total > Duration::ZERO, "{ended}");
    for line in ["a: moved in", "b: REFUSED: ", "c: moved in"] {
        ensure!(ended.stderr.lines().any(|said| said.starts_with(line)), "{line}: {ended}");
    }
    ensure!((0..3).all(|_| receiver.next_report(MOMENT).is_ok()), "three reports there, too");
    receiver.process.wait(MOMENT)?.expect(0)?;
    Ok(())
}

#[test]
fn a_file_that_makes_no_sense_is_refused_before_anything_starts() -> Result<()> {
    let bad = file("workload:memory=32MiB\ndisk:memory=1GiB\n")?;
    let ended = run(SEND, &format!("--to 127.0.0.1:1 --batch {}", bad.path().display()))?.expect(2)?;
    ensure!(ended.stderr.contains("line 2: there is no guest kind \"disk\""), "{ended}");
    let ended = run(SEND, "--to 127.0.0.1:1 --batch -")?.expect(2)?;
    ensure!(ended.stderr.starts_with("--batch -: no guest in it"), "{ended}");
    let ended = run(SEND, "--to 127.0.0.1:1 --batch /nonexistent")?.expect(1)?;
    ensure!(ended.stderr.contains("--batch /nonexistent: cannot be read"), "{ended}");
    Ok(())
}
