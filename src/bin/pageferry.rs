//! Shows, predicts and probes: the commands around a migration.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pageferry::cli::args::{ReceiveArgs, SendArgs};
use pageferry::cli::bench::{self, BenchArgs};
use pageferry::cli::exit::Exit;
use pageferry::cli::plan::{self, PlanArgs};
use pageferry::cli::report::{self, ReportArgs};
use pageferry::cli::{demo, probe, receive, send, start};

/// Live migration of guest memory.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Moves a busy guest between two processes on this machine, and shows it.
    Demo(demo::DemoArgs),
    /// Predicts rounds, total time and downtime from memory, dirty rate and bandwidth.
    Plan(PlanArgs),
    /// Says what this host can do, and what to do about what it lacks.
    Probe,
    /// `pageferry-send` under another name, for the demo.
    #[command(hide = true)]
    Send(SendArgs),
    /// `pageferry-receive` under another name, for the demo.
    #[command(hide = true)]
    Receive(ReceiveArgs),
    /// Measures migrations of several guests on several links, and QEMU's beside them.
    Bench(BenchArgs),
    /// Turns the JSON of migrations and benches into one HTML page with pictures.
    Report(ReportArgs),
    /// Makes certificates for hosts that have none, for --tls.
    #[cfg(feature = "keys")]
    Keys(pageferry::cli::keys::KeysArgs),
    /// Makes certificates for hosts that have none, for --tls.
    #[cfg(not(feature = "keys"))]
    #[command(hide = true)]
    Keys,
}

fn main() -> ExitCode {
    let command = Args::parse().command;
    start::program(|| {
        let mut out = std::io::stdout();
        match command {
            Commands::Demo(args) => demo::run(&args),
            Commands::Plan(args) => Ok(plan::run(&args, &mut out).map(|()| Exit::Completed)?),
            Commands::Probe => Ok(probe::run(&mut out).map(|()| Exit::Completed)?),
            Commands::Send(args) => send::run(&args.settings()?),
            Commands::Receive(args) => receive::run(&args.settings()?),
            Commands::Bench(args) => bench::run(&args),
            Commands::Report(args) => report::run(&args).map(|()| Exit::Completed),
            #[cfg(feature = "keys")]
            Commands::Keys(args) => pageferry::cli::keys::run(&args, &mut out).map(|()| Exit::Completed),
            #[cfg(not(feature = "keys"))]
            Commands::Keys => Ok(not_built_in("keys")),
        }
    })
}

#[cfg(not(feature = "keys"))]
fn not_built_in(command: &str) -> Exit {
    eprintln!("{command}: not built in");
    Exit::Usage
}
