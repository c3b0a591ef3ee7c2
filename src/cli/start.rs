//! How each program begins and ends.

use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use super::args::UsageError;
use super::exit::Exit;

/// Allows as many descriptors as the system lets this process have: each guest takes about ten, and a shell gives 1024.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of descriptors stays as it is");
    }
}

/// Runs a program's body: log to stderr as `PAGEFERRY_LOG` says, errors in full, exit codes as documented.
pub fn program(body: impl FnOnce() -> anyhow::Result<Exit>) -> ExitCode {
    let filter = EnvFilter::try_from_env("PAGEFERRY_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    raise_file_limit();
    match body() {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("{error:#}");
            let exit = if error.is::<UsageError>() { Exit::Usage } else { Exit::Failed };
            exit.into()
        }
    }
}
