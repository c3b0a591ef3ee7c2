//! QEMU's machine protocol: JSON, a line each way, over a Unix socket.
//!
//! Answers come in the order of the commands, events in between. Every wait is bounded.
//! See <https://www.qemu.org/docs/master/interop/qmp-spec.html>.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A connection to one QEMU.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    /// What has come of a line.
    line: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects to a QEMU that is about to listen, and greets it.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error).with_context(|| format!("{} does not answer", path.display())),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        Self::greet(stream)
    }

    fn greet(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self { stream: BufReader::new(stream), line: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.message(Instant::now() + PATIENCE)?.context("QEMU does not greet")?;
        ensure!(greeting.get("QMP").is_some(), "not QEMU: {greeting}");
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command; what it returned.
    ///
    /// # Errors
    /// With what QEMU answered.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).with_context(|| format!("{command}: QEMU is gone"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut message = self.message(deadline)?.with_context(|| format!("{command}: no answer within {PATIENCE:?}"))?;
            if let Some(error) = message.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or_default());
            }
            match message.get_mut("return") {
                Some(value) => return Ok(value.take()),
                None => self.events.push_back(message),
            }
        }
    }

    /// Waits for an event of this name: false when it has not come by `deadline`.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub(super) fn await_event(&mut self, name: &str, deadline: Instant) -> Result<bool> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => match self.message(deadline)? {
                    Some(message) => message,
                    None => return Ok(false),
                },
            };
            if event["event"] == name {
                return Ok(true);
            }
        }
    }

    /// Waits until a migration has the status `wanted`: false when it has not by `deadline`.
    ///
    /// # Errors
    /// When it has failed.
    pub(super) fn await_status(&mut self, wanted: &str, deadline: Instant) -> Result<bool> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => match self.message(deadline)? {
                    Some(message) => message,
                    None => return Ok(false),
                },
            };
            if event["event"] != "MIGRATION" {
                continue;
            }
            let status = event["data"]["status"].as_str().unwrap_or_default();
            if status == wanted {
                return Ok(true);
            }
            ensure!(!matches!(status, "failed" | "postcopy-paused"), "the migration {status}: {}", self.failure());
        }
    }

    fn failure(&mut self) -> String {
        let answer = self.execute("query-migrate", &json!({})).unwrap_or_default();
        answer["error-desc"].as_str().unwrap_or("QEMU does not say why").to_owned()
    }

    /// The next line; `None` when it has not come by `deadline`.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(0) => bail!("QEMU is gone"),
                Ok(_) => {
                    let message = serde_json::from_slice(&self.line).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.line)));
                    self.line.clear();
                    return message.map(Some);
                }
                // What has come so far stays in the line.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("QEMU is gone"),
            }
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that says these lines whatever it hears.
    fn qmp(lines: &str) -> Qmp {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(lines.as_bytes()).unwrap();
        let qmp = Qmp::greet(ours).unwrap();
        // Kept open, as a QEMU that is still there.
        std::mem::forget(theirs);
        qmp
    }

    const GREETING: &str = "{\"QMP\": {}}\r\n{\"return\": {}}\n";

    #[test]
    fn events_between_answers_are_kept() {
        let mut qmp = qmp(&format!(
            "{GREETING}{{\"event\": \"STOP\"}}\n{{\"event\": \"MIGRATION\", \"data\": {{\"status\": \"active\"}}}}\n{{\"return\": 7}}\n\
             {{\"event\": \"MIGRATION\", \"data\": {{\"status\": \"completed\"}}}}\n"
        ));
        assert_eq!(qmp.execute("x", &json!({})).unwrap(), 7);
        let soon = Instant::now() + Duration::from_secs(20);
        assert!(qmp.await_status("active", soon).unwrap());
        assert!(qmp.await_status("completed", soon).unwrap());
        assert!(!qmp.await_status("completed", Instant::now() + Duration::from_millis(50)).unwrap());
    }

    #[test]
    fn an_event_is_waited_for_by_its_name() {
        let mut qmp = qmp(&format!("{GREETING}{{\"event\": \"STOP\"}}\n{{\"event\": \"RESUME\"}}\n"));
        assert!(qmp.await_event("RESUME", Instant::now() + Duration::from_secs(20)).unwrap());
        assert!(!qmp.await_event("RESUME", Instant::now() + Duration::from_millis(50)).unwrap());
    }

    #[test]
    fn errors_are_passed_on() {
        let mut qmp = qmp(&format!("{GREETING}{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no such thing\"}}}}\n"));
        assert_eq!(qmp.execute("dance", &json!({})).unwrap_err().to_string(), "dance: no such thing");
    }

    #[test]
    fn a_failed_migration_says_why() {
        let mut qmp = qmp(&format!(
            "{GREETING}{{\"event\": \"MIGRATION\", \"data\": {{\"status\": \"failed\"}}}}\n{{\"return\": {{\"error-desc\": \"no route\"}}}}\n"
        ));
        let error = qmp.await_status("completed", Instant::now() + Duration::from_secs(20)).unwrap_err();
        assert_eq!(error.to_string(), "the migration failed: no route");
    }
}
