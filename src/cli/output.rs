//! Where reports and images go.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;

use super::args::Output;
use crate::stats::Report;

/// A place for reports, one line of JSON each.
pub struct ReportSink {
    file: Option<Mutex<Box<dyn Write + Send>>>,
}

impl ReportSink {
    /// Opens the output, empty; `None` takes reports nowhere.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(output: Option<&Output>) -> anyhow::Result<Self> {
        let file: Option<Box<dyn Write + Send>> = match output {
            None => None,
            Some(Output::Stdout) => Some(Box::new(std::io::stdout())),
            Some(Output::File(path)) => Some(Box::new(create("--json", path)?)),
        };
        Ok(Self { file: file.map(Mutex::new) })
    }

    /// Writes one report. A report that cannot be written is said on stderr and changes nothing else: the migration is
    /// over.
    pub fn write(&self, report: &Report) {
        self.write_line(&report.to_json());
    }

    /// Writes a line that is JSON already.
    pub fn write_line(&self, json: &str) {
        let Some(file) = &self.file else { return };
        let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = writeln!(file, "{json}").and_then(|()| file.flush()) {
            eprintln!("the report could not be written: {error}");
        }
    }
}

/// Makes the file named by a flag.
///
/// # Errors
/// With the flag and the path.
pub fn create(flag: &str, path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("{flag} {}: cannot be written", path.display()))
}
