//! What a person sees: a live line on a terminal, plain lines elsewhere.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::processes::{MOMENT, Process, SEND};
use crate::{GUEST, receiver};

/// Enough for a few updates of the line.
const FOR_A_WHILE: &str = "--bandwidth 100Mbit/s";

#[test]
fn on_a_terminal_the_line_is_alive() -> Result<()> {
    // `script` gives the program a terminal.
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: there is no script(1)");
        return Ok(());
    }
    let receiver = receiver("--max-sessions 1")?;
    let line = format!("{SEND} --to {} --guest {GUEST} {FOR_A_WHILE}", receiver.address);
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm").env("COLUMNS", "120");
    let ended = Process::start(script)?.wait(MOMENT)?.expect(0)?;
    for word in ["round 0", "%", "bit/s", "\r", "preparation time"] {
        ensure!(ended.stdout.contains(word), "{word:?}: {ended}");
    }
    ensure!(ended.stdout.matches(" %").count() > 1, "the line does not move: {ended}");
    Ok(())
}

#[test]
fn elsewhere_there_are_plain_lines_and_standard_output_is_for_data() -> Result<()> {
    let receiver = receiver("--max-sessions 1")?;
    let ended = receiver.send(GUEST, FOR_A_WHILE)?.wait(MOMENT)?.expect(0)?;
    ensure!(ended.stdout.lines().count() == 1 && ended.stdout.starts_with('{'), "{ended}");
    ensure!(!ended.stderr.contains(['\r', '\u{1b}']), "control characters: {ended}");
    for line in ["connecting", "copying while the guest runs", "round 0: ", "the guest is paused", "handing the guest over"] {
        ensure!(ended.stderr.lines().any(|said| said.starts_with(line)), "{line:?}: {ended}");
    }
    Ok(())
}
