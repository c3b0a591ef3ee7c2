//! How each program begins and ends.

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use super::args::UsageError;
use super::exit::Exit;

/// Runs a program's body: log to stderr as `PAGEFERRY_LOG` says, errors in full, exit codes as documented.
pub fn program(body: impl FnOnce() -> anyhow::Result<Exit>) -> ExitCode {
    let filter = EnvFilter::try_from_env("PAGEFERRY_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match body() {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("{error:#}");
            let exit = if error.is::<UsageError>() { Exit::Usage } else { Exit::Failed };
            exit.into()
        }
    }
}
