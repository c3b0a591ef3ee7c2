//! A process of one of the engines: started in a namespace, listened to with a limit, and killed when it is dropped.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::leftovers::Leftovers;

/// A running program.
pub(super) struct Process {
    child: Child,
    leftovers: Leftovers,
    pub(super) stdout: Lines,
    pub(super) stderr: Lines,
}

impl Process {
    /// Starts it with nothing to read.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(mut command: Command, leftovers: &Leftovers) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = leftovers.start(&mut command)?;
        let stdout = Lines::of(child.stdout.take().context("no standard output")?);
        let stderr = Lines::of(child.stderr.take().context("no standard error")?);
        Ok(Self { child, leftovers: leftovers.clone(), stdout, stderr })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended by itself.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.leftovers.end(&mut self.child);
    }
}

/// What a process says, line by line. The last lines are kept, to be shown when something goes wrong.
pub(super) struct Lines {
    incoming: Receiver<String>,
    last: VecDeque<String>,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let (tell, incoming) = channel();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                if tell.send(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned()).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Self { incoming, last: VecDeque::new() }
    }

    /// The next line that begins with `start`; `None` when it has not come by `deadline`.
    ///
    /// # Errors
    /// When the output ends without it.
    pub(super) fn next_with(&mut self, start: &str, deadline: Instant) -> Result<Option<String>> {
        loop {
            match self.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(start) => return Ok(Some(line)),
                Ok(line) => self.keep(line),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => bail!("ended without {start:?}"),
            }
        }
    }

    /// The last lines of all that was said until now.
    pub(super) fn last_words(&mut self) -> String {
        while let Ok(line) = self.incoming.recv_timeout(LAST_WORDS) {
            self.keep(line);
        }
        self.last.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    fn keep(&mut self, line: String) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

const KEPT: usize = 10;
const LAST_WORDS: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_waited_for_and_the_last_are_kept() {
        let leftovers = Leftovers::default();
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo one; echo listening on two; echo three; sleep 60"]);
        let mut process = Process::start(shell, &leftovers).unwrap();
        let soon = || Instant::now() + Duration::from_secs(20);
        assert_eq!(process.stdout.next_with("listening", soon()).unwrap().as_deref(), Some("listening on two"));
        assert_eq!(process.stdout.next_with("four", Instant::now() + Duration::from_millis(200)).unwrap(), None);
        assert_eq!(process.stdout.last_words(), "one\nthree");
        assert!(process.is_running());
        drop(process);
        let mut brief = Process::start(Command::new("true"), &leftovers).unwrap();
        assert!(brief.stdout.next_with("x", soon()).is_err());
    }
}
