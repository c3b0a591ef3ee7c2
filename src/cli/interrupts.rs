//! What an interrupt does to migrations under way.
//!
//! The first calls off every one whose guest is still here. A guest that has gone ahead of its memory needs this process,
//! so for these the first is a question, and the second gives up what they lack.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use super::exit::Exit;
use super::signals;
use crate::source::{Event, Phase, Steering};

/// The migrations of this program.
pub(super) struct Interrupts {
    guests: Vec<Grip>,
    insisted: AtomicBool,
}

struct Grip {
    steering: Steering,
    /// It runs at the destination, and memory that it lacks is here.
    needs_us: AtomicBool,
}

impl Interrupts {
    /// Watches for signals from now on, for these migrations. Call it before other threads are started.
    pub(super) fn watch(steerings: impl IntoIterator<Item = Steering>) -> anyhow::Result<Arc<Self>> {
        let guests = steerings.into_iter().map(|steering| Grip { steering, needs_us: AtomicBool::new(false) }).collect();
        let interrupts = Arc::new(Self { guests, insisted: AtomicBool::new(false) });
        let told = Arc::clone(&interrupts);
        signals::on_interrupt(move || told.interrupt()).context("cannot watch for signals")?;
        Ok(interrupts)
    }

    /// What happens to one of them.
    pub(super) fn note(&self, index: usize, event: &Event) {
        if let Event::Phase(Phase::PostCopy) = event {
            // Relaxed, here and below: a signal that comes just now is answered as if it had come before.
            self.guests[index].needs_us.store(true, Ordering::Relaxed);
        }
    }

    /// One of them has come to its end.
    pub(super) fn ended(&self, index: usize) {
        self.guests[index].needs_us.store(false, Ordering::Relaxed);
    }

    fn interrupt(&self) {
        let (gone, here): (Vec<_>, Vec<_>) = self.guests.iter().partition(|guest| guest.needs_us.load(Ordering::Relaxed));
        here.iter().for_each(|guest| guest.steering.cancel());
        if gone.is_empty() {
            return;
        }
        let whose = if self.guests.len() == 1 { "the guest".to_owned() } else { format!("{} of the guests", gone.len()) };
        if self.insisted.swap(true, Ordering::Relaxed) {
            eprintln!("the memory that {whose} lacks at the destination is given up");
            std::process::exit(Exit::Failed as i32);
        }
        eprintln!("{whose} runs at the destination and needs memory that is still here; interrupt again to give it up");
    }
}
