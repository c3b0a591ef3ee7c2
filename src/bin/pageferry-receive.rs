//! Takes in the guests that senders move here.

use std::process::ExitCode;

use clap::Parser;
use pageferry::cli::{args::ReceiveArgs, receive, start};

fn main() -> ExitCode {
    let args = ReceiveArgs::parse();
    start::program(|| receive::run(&args.settings()?))
}
