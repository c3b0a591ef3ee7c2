//! The five metrics of a migration as a table for people.

use std::fmt;

use super::Report;
use crate::units::HumanTime;

/// Displays the five metrics, one a line, figures aligned.
#[derive(Clone, Copy, Debug)]
pub struct Metrics<'a> {
    report: &'a Report,
}

impl<'a> Metrics<'a> {
    pub(super) fn new(report: &'a Report) -> Self {
        Self { report }
    }
}

impl fmt::Display for Metrics<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let pages = report.pages_transferred;
        let rows = [
            ("preparation time", HumanTime(report.preparation).to_string(), "the guest runs at the source".to_owned()),
            ("downtime", HumanTime(report.downtime).to_string(), "the guest runs nowhere".to_owned()),
            ("resume time", HumanTime(report.resume).to_string(), "until nothing depends on the source".to_owned()),
            ("pages transferred", pages.0.to_string(), format!("{} of memory, {} on the wire", pages.bytes(), report.wire_bytes)),
            ("total migration time", HumanTime(report.total).to_string(), format!("{} rounds", report.rounds.len())),
        ];
        for (index, (name, figure, note)) in rows.iter().enumerate() {
            let end = if index + 1 < rows.len() { "\n" } else { "" };
            write!(f, "{name:<20}  {figure:>12}  {note}{end}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
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
}
