//! `pageferry report`: JSON of migrations and benches as a page.
//!
//! All files are read before the page is opened: a mistake in one of them leaves an older page as it was.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::args::{Output, UsageError};
use crate::report;

/// Turn the JSON of migrations and benches into one HTML page with pictures
#[derive(Clone, Debug, clap::Args)]
pub struct ReportArgs {
    /// What `--json` wrote; the sender's and the receiver's report of a migration become one. `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the page goes; `-` is standard output
    #[arg(long, value_name = "FILE.html", default_value = "-")]
    output: PathBuf,
}

/// Writes the page.
///
/// # Errors
/// When a file cannot be read or is no report, or when the page cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    check(args)?;
    let mut documents = Vec::new();
    for path in &args.files {
        let name = if is_standard(path) { "standard input".to_owned() } else { path.display().to_string() };
        let bytes = content(path).with_context(|| format!("{name}: cannot be read"))?;
        documents.append(&mut report::read(&name, &bytes)?);
    }
    let page = report::page(&documents);
    match Output::from(args.output.clone()) {
        Output::Stdout => write(&mut std::io::stdout(), &page).context("standard output: the page cannot be written"),
        Output::File(path) => {
            let mut file = super::output::create("--output", &path)?;
            write(&mut file, &page).with_context(|| format!("--output {}: the page cannot be written", path.display()))
        }
    }
}

/// Keeps a page from taking the place of what it is made from.
fn check(args: &ReportArgs) -> Result<(), UsageError> {
    let wrong = |value: &Path, flag, problem: &str| UsageError { flag, value: value.display().to_string(), problem: problem.to_owned() };
    if args.files.iter().filter(|path| is_standard(path)).count() > 1 {
        return Err(wrong(Path::new("-"), "FILE", "standard input can be read only once"));
    }
    let output = args.output.canonicalize();
    let reads_it = |path: &&PathBuf| matches!((path.canonicalize(), &output), (Ok(input), Ok(output)) if input == *output);
    match args.files.iter().filter(|path| !is_standard(path)).find(reads_it) {
        Some(path) if !is_standard(&args.output) => Err(wrong(path, "--output", "is one of the files that are read")),
        _ => Ok(()),
    }
}

fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if is_standard(path) {
        std::io::stdin().read_to_end(&mut bytes)?
    } else {
        File::open(path)?.read_to_end(&mut bytes)?
    };
    Ok(bytes)
}

fn write(out: &mut impl Write, page: &str) -> std::io::Result<()> {
    out.write_all(page.as_bytes())?;
    out.flush()
}
