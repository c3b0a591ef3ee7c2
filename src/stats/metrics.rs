//! The five metrics of a migration as a table for people, and what goes with them.

use std::fmt;
use std::time::Duration;

use super::{DowntimeParts, Report};
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
    use crate::stats::{Predicted, PredictionError};
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
