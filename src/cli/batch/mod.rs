//! `pageferry-send --batch`: many guests, moved by one process.
//!
//! All of them run from the beginning, and are moved in their order, some at a time, as one [`Fleet`]. Whatever happens to
//! one is reported and changes nothing for the others. What has moved is let go of when no other guest is on its way, or
//! after a while; a guest that stays runs on here until all are done.
//!
//! A guest that went ahead of its memory in post-copy, and whose destination went away, is stranded. It has a line when that
//! is known, and another when it is settled: its last line counts. As long as its destination may come back its memory is
//! kept and the batch is not over, though the others are. The second interrupt gives it up, and the batch ends as any other
//! does: with a line for each guest and the sum.

mod file;
mod guest;
mod progress;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

pub use file::{Batch, BatchError, BatchGuest, LineError};
use guest::{Boarding, Ended, Office};
use progress::Progress;

use super::args::{Input, Output, SendSettings, UsageError};
use super::exit::Exit;
use super::interrupts::Interrupts;
use super::output::ReportSink;
use super::road::Road;
use super::send;
use crate::source::Fleet;
use crate::stats::{BatchReport, Outcome, Report};
use crate::units::{ByteCount, BytesPerSec, HumanTime};

/// Runs the sender for the guests of a file.
///
/// # Errors
/// What kept it from beginning; how the migrations went is the exit code.
pub fn run(settings: &SendSettings, input: &Input) -> anyhow::Result<Exit> {
    let batch = read(input)?;
    let sink = ReportSink::open(settings.json.as_ref())?;
    let fleet = Fleet::new();
    fleet.set_bandwidth(settings.bandwidth);
    let migrations: Vec<_> = batch.guests.iter().map(|_| send::migration(settings).in_fleet(&fleet)).collect();
    let interrupts = Interrupts::watch(migrations.iter().map(crate::source::Migration::steering))?;
    let progress = Progress::new(batch.guests.len());
    let road = Arc::<Road>::default();
    let office = Office { interrupts: &interrupts, progress: &progress, sink: &sink };

    let boarding = (0..).zip(&batch.guests).zip(migrations);
    let boarding = boarding.map(|((index, guest), migration)| Boarding::board(settings, index, guest, migration, road.begin())).collect();
    std::thread::sleep(settings.warm_up);
    let began = Instant::now();
    let ended = Fleet::run_all(batch.concurrency, boarding, |boarding, place| {
        let mut ended = boarding.depart(place, &office);
        if let Some(remains) = ended.remains.take() {
            road.give_way();
            drop(remains);
        }
        ended
    });
    progress.finish();

    let (mut reports, mut stayed) = (Vec::new(), Vec::new());
    let mut last = began;
    for (about, ended) in batch.guests.iter().zip(ended) {
        let Ended { report, at, guest, .. } = ended.unwrap_or_else(|error| {
            let ended = Ended { at: began, ..Ended::not_begun(&about.name, error.in_full()) };
            sink.write(&ended.report);
            ended
        });
        reports.push(report);
        stayed.extend(guest);
        last = last.max(at);
    }
    let report = BatchReport::of(&reports, last - began);
    if settings.json != Some(Output::Stdout) {
        eprintln!("{}", in_words(&report));
    }
    sink.write_line(&report.to_json());
    Ok(worst(&reports))
}

fn read(input: &Input) -> anyhow::Result<Batch> {
    let mut text = String::new();
    let mut read_from = |from: &mut dyn Read| from.take(file::MAX_BYTES as u64 + 1).read_to_string(&mut text);
    let (name, read) = match input {
        Input::Stdin => ("-".to_owned(), read_from(&mut std::io::stdin())),
        Input::File(path) => (path.display().to_string(), std::fs::File::open(path).and_then(|mut file| read_from(&mut file))),
    };
    read.with_context(|| format!("--batch {name}: cannot be read"))?;
    Batch::parse(&text).map_err(|error| UsageError { flag: "--batch", value: name, problem: error.to_string() }.into())
}

/// The exit code for them all: that of whoever fared worst, the doubtful before the refused and these before the failed.
fn worst(reports: &[Report]) -> Exit {
    reports.iter().map(|report| Exit::from(report.outcome)).max_by_key(|exit| *exit as u8).unwrap_or(Exit::Completed)
}

fn in_words(report: &BatchReport) -> String {
    let counts = [
        (Outcome::Aborted, report.aborted),
        (Outcome::Refused, report.refused),
        (Outcome::InDoubt, report.in_doubt),
        (Outcome::Failed, report.failed),
    ];
    let mut text = format!("{} of {} guests moved in {}", report.completed, report.guests, HumanTime(report.total));
    for (outcome, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        text.push_str(&format!(", {count} {}", name(outcome)));
    }
    let rate = |bytes: u64| BytesPerSec(bytes as f64);
    let memory = ByteCount(report.pages_transferred.bytes().0);
    text.push_str(&format!("; {memory} of memory, {} on the wire ({})", report.wire_bytes, rate(report.wire_bytes_per_second)));
    if let (Some(downtime), Some(guest)) = (report.longest_downtime, &report.longest_downtime_guest) {
        text.push_str(&format!("; the longest downtime was {} ({guest})", HumanTime(downtime)));
    }
    text
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Aborted => "aborted",
        Outcome::Refused => "refused",
        Outcome::InDoubt => "in doubt",
        Outcome::Failed => "failed",
    }
}

/// How long a line says what it is about before the next is shown, on a terminal.
const SHOW_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(outcomes: &[Outcome]) -> Vec<Report> {
        outcomes.iter().map(|&outcome| Report { outcome, ..Report::new() }).collect()
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst() {
        use Outcome::{Aborted, Completed, Failed, InDoubt, Refused};
        assert_eq!(worst(&reports(&[Completed, Completed])), Exit::Completed);
        assert_eq!(worst(&reports(&[Completed, Aborted])), Exit::Failed);
        assert_eq!(worst(&reports(&[Failed, Refused, Completed])), Exit::Refused);
        assert_eq!(worst(&reports(&[InDoubt, Failed, Refused])), Exit::InDoubt);
    }

    #[test]
    fn the_last_line_counts_and_names_the_longest_downtime() {
        use Outcome::{Completed, Refused};
        let mut reports = reports(&[Completed, Completed, Refused]);
        reports[1].downtime = Duration::from_millis(12);
        reports[1].guest = Some("web".to_owned());
        reports[0].wire_bytes = ByteCount(2 << 20);
        let text = in_words(&BatchReport::of(&reports, Duration::from_secs(1)));
        assert_eq!(
            text,
            "2 of 3 guests moved in 1.000 s, 1 refused; 0 B of memory, 2 MiB on the wire (16.8 Mbit/s); the longest downtime was 12.0 ms (web)"
        );
    }
}
