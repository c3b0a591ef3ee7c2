//! What the engine says in its log about sessions in post-copy, which do not end when something is wrong.

use std::fmt::Debug;
use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::talk::PATIENCE;

/// Listens from now on.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Log).expect("nobody else listens"));
}

/// So much was said so far.
pub(crate) fn length() -> usize {
    REASONS.lock().unwrap().len()
}

/// Waits for a reason with `words` among those said after the first `length`.
pub(crate) fn reason_after(length: usize, words: &str) -> String {
    let since = Instant::now();
    loop {
        let reasons = REASONS.lock().unwrap()[length..].to_vec();
        if let Some(reason) = reasons.iter().find(|reason| reason.contains(words)) {
            return reason.clone();
        }
        assert!(since.elapsed() < PATIENCE, "nothing of {words:?} in {reasons:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Keeps the reasons that are said in [`EVENTS`].
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.is_event() && metadata.target().starts_with("pageferry::destination")
    }

    fn event(&self, event: &Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        if EVENTS.iter().any(|begin| said.message.starts_with(begin)) {
            REASONS.lock().unwrap().push(said.error);
        }
    }

    // There are no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Said {
    message: String,
    error: String,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "error" {
            value.clone_into(&mut self.error);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

/// How those events begin that only a session in post-copy makes.
const EVENTS: [&str; 2] = ["a lane is given up", "the connections are lost"];
static REASONS: Mutex<Vec<String>> = Mutex::new(Vec::new());
