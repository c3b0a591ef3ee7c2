//! Runs a test guest on this host and moves it to a receiver.

use std::process::ExitCode;

use clap::Parser;
use pageferry::cli::{args::SendArgs, send, start};

fn main() -> ExitCode {
    let args = SendArgs::parse();
    start::program(|| send::run(&args.settings()?))
}
