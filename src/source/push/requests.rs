//! What the destination asks for, read from the urgent lane.

use std::io::{ErrorKind, Read};

use super::{broken, closed};
use crate::error::Error;
use crate::memory::MemoryLayout;
use crate::protocol::ProtocolError;
use crate::transport::Stream;
use crate::units::{CHUNK_PAGES, PageIndex};
use crate::wire::{Lane, Message, decode_message};

/// Requests as they come in.
pub(super) struct Requests {
    stream: Stream,
    buffer: Vec<u8>,
}

impl Requests {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Waits for the next request; its pages are ones of `layout`.
    pub(super) fn next(&mut self, layout: &MemoryLayout) -> Result<Vec<PageIndex>, Error> {
        loop {
            if let Some((message, consumed)) = decode_message(&self.buffer)? {
                self.buffer.drain(..consumed);
                return checked(message, layout);
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(closed(Lane::Urgent)),
                // Bounded: `decode_message` refuses a length over its kind's limit once the header is there.
                Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(Lane::Urgent, error)),
            }
        }
    }

    /// Whether more of them wait, or their beginnings.
    pub(super) fn are_waiting(&self) -> bool {
        !self.buffer.is_empty() || self.stream.is_readable()
    }
}

fn checked(message: Message, layout: &MemoryLayout) -> Result<Vec<PageIndex>, Error> {
    let name = message.name();
    let Message::Fetch { pages } = message else {
        return Err(ProtocolError::Unexpected { message: name, state: "taking requests for pages" }.into());
    };
    let chunks = u64::from(layout.chunks());
    let is_inside = |page: &PageIndex| page.0 / (CHUNK_PAGES as u64) < chunks && layout.valid_mask(page.chunk()) >> page.bit() & 1 == 1;
    match pages.iter().find(|page| !is_inside(page)) {
        Some(page) => Err(ProtocolError::Senseless { message: name, why: format!("the guest has no page {}", page.0) }.into()),
        None => Ok(pages),
    }
}
