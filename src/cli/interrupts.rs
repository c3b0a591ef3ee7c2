//! What an interrupt does to migrations under way.
//!
//! The first calls off every one whose guest is still here. A guest that has gone ahead of its memory needs this process,
//! so for these the first is a question, and the second gives up what they lack. Even then each migration ends by itself,
//! and says who has its guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use super::signals;
use crate::source::{Event, Phase, Steering};

/// The migrations of this program.
pub(super) struct Interrupts {
    guests: Vec<Grip>,
    is_asked: AtomicBool,
    has_insisted: AtomicBool,
}

struct Grip {
    steering: Steering,
    /// It runs at the destination, or may, and memory that it lacks is here.
    needs_us: AtomicBool,
}

/// What to do about a guest whose destination is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// Keep its memory, and look for the destination.
    Keep,
    /// Whoever interrupted wants it given up.
    LetGo,
}

impl Interrupts {
    /// Watches for signals from now on, for these migrations. Call it before other threads are started.
    pub(super) fn watch(steerings: impl IntoIterator<Item = Steering>) -> anyhow::Result<Arc<Self>> {
        let guests = steerings.into_iter().map(|steering| Grip { steering, needs_us: AtomicBool::new(false) }).collect();
        let interrupts = Arc::new(Self { guests, is_asked: AtomicBool::new(false), has_insisted: AtomicBool::new(false) });
        let told = Arc::clone(&interrupts);
        signals::on_interrupt(move || told.interrupt()).context("cannot watch for signals")?;
        Ok(interrupts)
    }

    /// What happens to one of them.
    pub(super) fn note(&self, index: usize, event: &Event) {
        // One that is interrupted in post-copy before it is known to run may run all the same.
        if let Event::Phase(Phase::PostCopy) | Event::Interrupted { .. } = event
            && self.keep_or_let_go(index) == Stay::LetGo
        {
            self.guests[index].steering.let_go();
        }
    }

    /// One of them needs what is here from now on; what to do about it.
    pub(super) fn keep_or_let_go(&self, index: usize) -> Stay {
        // Sequentially consistent, as in `interrupt`: it or this sees what the other has stored before.
        self.guests[index].needs_us.store(true, Ordering::SeqCst);
        if self.has_insisted.load(Ordering::SeqCst) { Stay::LetGo } else { Stay::Keep }
    }

    /// One of them has come to its end.
    pub(super) fn ended(&self, index: usize) {
        self.guests[index].needs_us.store(false, Ordering::SeqCst);
    }

    fn interrupt(&self) {
        let needs_us = |guest: &&Grip| guest.needs_us.load(Ordering::SeqCst);
        let (gone, here): (Vec<_>, Vec<_>) = self.guests.iter().partition(needs_us);
        here.iter().for_each(|guest| guest.steering.cancel());
        if gone.is_empty() {
            return;
        }
        let whose = if self.guests.len() == 1 { "the guest".to_owned() } else { format!("{} of the guests", gone.len()) };
        // Relaxed: only this thread uses it.
        if !self.is_asked.swap(true, Ordering::Relaxed) {
            eprintln!("{whose} runs at the destination, or may, and needs memory that is still here; interrupt again to give it up");
            return;
        }
        self.has_insisted.store(true, Ordering::SeqCst);
        self.guests.iter().filter(needs_us).for_each(|guest| guest.steering.let_go());
        eprintln!("the memory that {whose} lacks at the destination is given up");
    }
}
