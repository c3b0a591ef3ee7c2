//! A request for pages, put together without allocating.

use crate::units::PageIndex;

/// Pages of one request.
const MAX_PAGES: usize = 64;

/// A request that pages are added to.
#[derive(Debug)]
pub(super) struct Request {
    pages: Vec<PageIndex>,
}

impl Request {
    pub(super) fn new() -> Self {
        Self { pages: Vec::with_capacity(MAX_PAGES) }
    }

    pub(super) fn add(&mut self, page: PageIndex) {
        self.pages.push(page);
    }

    pub(super) fn is_full(&self) -> bool {
        self.pages.len() == MAX_PAGES
    }

    /// Appends the message to `out`, if there are pages, and begins a new one.
    pub(super) fn move_into(&mut self, out: &mut Vec<u8>) {
        if !self.pages.is_empty() {
            out.extend_from_slice(&(self.pages.len() as u64).to_le_bytes());
            self.pages.iter().for_each(|page| out.extend_from_slice(&page.0.to_le_bytes()));
            self.pages.clear();
        }
    }
}
