//! Bytes as a script: numbers and messages, taken one after another until there are none.

use pageferry::wire::{MESSAGE_HEADER_BYTES, Message, decode_message};

use crate::signing::sign_message;

/// What is left of the input.
pub struct Script<'b>(pub &'b [u8]);

impl Script<'_> {
    /// A number below `end`.
    pub fn below(&mut self, end: u8) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first % end)
    }

    /// A number of 16 bits.
    pub fn wide(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_le_bytes(*bytes))
    }

    /// One of these.
    pub fn of<T: Clone>(&mut self, choices: &[T]) -> Option<T> {
        let index = self.below(u8::try_from(choices.len()).expect("few choices"))?;
        Some(choices[usize::from(index)].clone())
    }

    /// One of `known`, or any message that can be decoded: its kind and length, then its body.
    pub fn message(&mut self, known: &[Message]) -> Option<Message> {
        if self.below(4)? > 0 {
            return self.of(known);
        }
        let (kind, length) = (self.below(32)?, usize::from(self.wide()? % 512));
        let (body, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        let mut bytes = vec![0; MESSAGE_HEADER_BYTES];
        // As in SPEC.md, version 1.
        bytes[8..10].copy_from_slice(&1u16.to_le_bytes());
        bytes[10..12].copy_from_slice(&u16::from(kind).to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::try_from(body.len()).expect("at most 511").to_le_bytes());
        bytes.extend_from_slice(body);
        sign_message(&mut bytes);
        match decode_message(&bytes) {
            Ok(Some((message, _))) => Some(message),
            _ => self.of(known),
        }
    }
}
