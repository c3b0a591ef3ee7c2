//! The five metrics of a migration as a table for people, and what goes with them.

use std::fmt;
use std::time::Duration;

use super::{DowntimeParts, PostCopyReport, Report};
use crate::units::HumanTime;

/// Displays the five metrics, one a line, figures aligned; downtime with its parts, and the prediction if there was one.
#[derive(Clone, Copy, Debug)]
pub struct Metrics<'a> {
    report: &'a Report,
}

impl<'a> Metrics<'a> {
    pub(super) fn new(report: &'a Report) -> Self {
        Self { report }
    }
}

impl Metrics<'_> {
    /// The parts of downtime that can be seen at this scale.
    fn downtime(&self) -> String {
        let mut note = "the guest runs nowhere".to_owned();
        let parts = self.report.downtime_parts.iter().flat_map(DowntimeParts::iter).filter(|(_, time)| *time >= Duration::from_micros(50));
        for (index, (name, time)) in parts.enumerate() {
            note.push_str(if index == 0 { ": " } else { ", " });
            note.push_str(&format!("{name} {}", HumanTime(time)));
        }
        note
    }
}

/// What the rows on post-copy are: name, figure, what it is.
fn post_copy(report: &PostCopyReport) -> Vec<(&'static str, String, String)> {
    let requests = report.requests.map_or_else(String::new, |requests| format!(" for {requests} requests"));
    let note = format!("pages followed the guest: {} urgent{requests}, {} pushed", report.urgent_pages.0, report.bulk_pages.0);
    let mut rows = vec![("post-copy", report.pages.0.to_string(), note)];
    if let (Some(faults), Some(times)) = (report.faults, report.fault_us) {
        let [p50, p90, p99, max] = [times.p50, times.p90, times.p99, times.max].map(|micros| HumanTime(Duration::from_micros(micros)));
        rows.push(("faults", faults.to_string(), format!("half took {p50} at most, 90 % {p90}, 99 % {p99}, the longest {max}")));
    }
    if let Some(lost) = report.lost.filter(|lost| !lost.is_zero()) {
        rows.push(("guest waited", HumanTime(lost).to_string(), format!("for missing pages, {} of its threads together", report.threads.len())));
    }
    if report.recoveries > 0 {
        rows.push((
            "interrupted",
            HumanTime(report.interrupted).to_string(),
            format!("without a connection, made again {} times", report.recoveries),
        ));
    }
    rows
}

impl fmt::Display for Metrics<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let pages = report.pages_transferred;
        let mut rows = vec![
            ("preparation time", HumanTime(report.preparation).to_string(), "the guest runs at the source".to_owned()),
            ("downtime", HumanTime(report.downtime).to_string(), self.downtime()),
            ("resume time", HumanTime(report.resume).to_string(), "until nothing depends on the source".to_owned()),
            ("pages transferred", pages.0.to_string(), format!("{} of memory, {} on the wire", pages.bytes(), report.wire_bytes)),
            ("total migration time", HumanTime(report.total).to_string(), format!("{} rounds", report.rounds.len())),
        ];
        if let (Some(predicted), Some(error)) = (report.predicted, report.prediction_error) {
            let note = format!("{:+.1} % in fact; {} of it with the guest stopped", error.total * 100.0, HumanTime(predicted.downtime));
            rows.push(("predicted total", HumanTime(predicted.total).to_string(), note));
        }
        if let Some(throttle) = report.throttle {
            let note = format!("of its time for the guest at least, for {}", HumanTime(throttle.time));
            rows.push(("throttled to", throttle.lowest_share.to_string(), note));
        }
        rows.extend(report.post_copy.iter().flat_map(post_copy));
        for (index, (name, figure, note)) in rows.iter().enumerate() {
            let end = if index + 1 < rows.len() { "\n" } else { "" };
            write!(f, "{name:<20}  {figure:>12}  {note}{end}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{FaultTimes, Predicted, PredictionError, ThreadLoss};
    use crate::units::{ByteCount, PageCount};

    #[test]
    fn the_table_lines_up() {
        let report = Report {
            preparation: Duration::from_millis(2200),
            downtime: Duration::from_micros(145_078),
            resume: Duration::from_micros(600),
            total: Duration::from_micros(2_345_678),
            pages_transferred: PageCount(70_000),
            wire_bytes: ByteCount(200 << 20),
            ..Report::new()
        };
        let expected = "\
preparation time           2.200 s  the guest runs at the source
downtime                  145.1 ms  the guest runs nowhere
resume time                 0.6 ms  until nothing depends on the source
pages transferred            70000  273.44 MiB of memory, 200 MiB on the wire
total migration time       2.346 s  0 rounds";
        assert_eq!(report.metrics().to_string(), expected);
    }

    #[test]
    fn post_copy_is_told_by_what_the_guest_waited_for() {
        let lost = Duration::from_millis(45);
        let report = Report {
            post_copy: Some(PostCopyReport {
                faults: Some(150),
                fault_us: Some(FaultTimes { p50: 210, p90: 480, p99: 1200, max: 3400 }),
                urgent_pages: PageCount(120),
                bulk_pages: PageCount(9880),
                requests: Some(150),
                lost: Some(lost),
                threads: vec![ThreadLoss { thread: 1, faults: 150, lost }],
                recoveries: 1,
                interrupted: Duration::from_secs(2),
                ..PostCopyReport::of(PageCount(10_000))
            }),
            ..Report::new()
        };
        let text = report.metrics().to_string();
        let rows: Vec<&str> = text.lines().skip(5).collect();
        let expected = [
            "post-copy                    10000  pages followed the guest: 120 urgent for 150 requests, 9880 pushed",
            "faults                         150  half took 0.2 ms at most, 90 % 0.5 ms, 99 % 1.2 ms, the longest 3.4 ms",
            "guest waited               45.0 ms  for missing pages, 1 of its threads together",
            "interrupted                2.000 s  without a connection, made again 1 times",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn what_goes_with_the_metrics_is_told_where_it_is_known() {
        let parts = DowntimeParts { pause: Some(Duration::from_micros(200)), run: Some(Duration::from_micros(4900)), ..DowntimeParts::default() };
        let report = Report {
            downtime: Duration::from_micros(5100),
            downtime_parts: Some(DowntimeParts { plan: Some(Duration::from_micros(3)), ..parts }),
            predicted: Some(Predicted { total: Duration::from_secs(2), downtime: Duration::from_millis(5) }),
            prediction_error: Some(PredictionError { total: -0.012, downtime: 0.02 }),
            ..Report::new()
        };
        let text = report.metrics().to_string();
        assert!(text.contains("downtime                    5.1 ms  the guest runs nowhere: pause 0.2 ms, run 4.9 ms\n"), "{text}");
        assert!(text.ends_with("predicted total            2.000 s  -1.2 % in fact; 5.0 ms of it with the guest stopped"), "{text}");
    }
}
