//! A request for pages, put together without allocating.

use crate::units::PageIndex;
use crate::wire::{MAX_FETCH_PAGES, Message};

/// A request that pages are added to.
#[derive(Debug)]
pub(super) struct Request {
    /// A Fetch, always.
    message: Message,
}

impl Request {
    pub(super) fn new() -> Self {
        Self { message: Message::Fetch { pages: Vec::with_capacity(MAX_FETCH_PAGES) } }
    }

    pub(super) fn add(&mut self, page: PageIndex) {
        self.pages().push(page);
    }

    pub(super) fn is_full(&mut self) -> bool {
        self.pages().len() == MAX_FETCH_PAGES
    }

    /// Appends the message to `out`, if there are pages, and begins a new one.
    pub(super) fn move_into(&mut self, out: &mut Vec<u8>) {
        if !self.pages().is_empty() {
            self.message.encode(out).expect("no more pages than a request may have");
            self.pages().clear();
        }
    }

    fn pages(&mut self) -> &mut Vec<PageIndex> {
        match &mut self.message {
            Message::Fetch { pages } => pages,
            other => unreachable!("a Fetch became {other:?}"),
        }
    }
}
