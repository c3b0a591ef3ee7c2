//! Fields by offset, for headers of fixed size, and one after the other, for the bodies of messages.

use super::error::WireError;
use super::message::MAX_REASON_BYTES;

/// The `N` bytes at offset `at` of a header.
pub(super) fn get<const N: usize, const HEADER: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    *header[at..].first_chunk().expect("the field lies in the header")
}

/// Sets the `N` bytes at offset `at` of a header.
pub(super) fn put<const N: usize, const HEADER: usize>(header: &mut [u8; HEADER], at: usize, value: [u8; N]) {
    header[at..at + N].copy_from_slice(&value);
}

/// Writes a message's body.
pub(super) struct BodyWriter<'o> {
    message: &'static str,
    out: &'o mut Vec<u8>,
}

impl<'o> BodyWriter<'o> {
    pub(super) fn new(message: &'static str, out: &'o mut Vec<u8>) -> Self {
        Self { message, out }
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A length as 16 bits.
    pub(super) fn count(&mut self, field: &'static str, length: usize, limit: usize) -> Result<(), WireError> {
        self.check(field, length, limit)?;
        self.u16(u16::try_from(length).expect("limits fit 16 bits"));
        Ok(())
    }

    /// A length, then so many bytes.
    pub(super) fn string(&mut self, field: &'static str, string: &str, limit: usize) -> Result<(), WireError> {
        self.count(field, string.len(), limit)?;
        self.bytes(string.as_bytes());
        Ok(())
    }

    /// A reason in words, cut at the end of a character if it is too long.
    pub(super) fn reason(&mut self, words: &str) {
        let words = &words[..words.floor_char_boundary(MAX_REASON_BYTES)];
        self.string("reason", words, MAX_REASON_BYTES).expect("it is cut");
    }

    /// Words until the end of the body: at least one.
    pub(super) fn words(&mut self, field: &'static str, words: impl ExactSizeIterator<Item = u64>, limit: usize) -> Result<(), WireError> {
        assert_ne!(words.len(), 0, "a {} message without {field}", self.message);
        self.check(field, words.len(), limit)?;
        words.for_each(|word| self.u64(word));
        Ok(())
    }

    pub(super) fn check(&self, field: &'static str, length: usize, limit: usize) -> Result<(), WireError> {
        if length <= limit { Ok(()) } else { Err(WireError::TooLong { message: self.message, field, length, limit }) }
    }
}

/// Reads a message's body. Every read names its field, for the error.
pub(super) struct BodyReader<'b> {
    message: &'static str,
    left: &'b [u8],
}

impl<'b> BodyReader<'b> {
    pub(super) fn new(message: &'static str, body: &'b [u8]) -> Self {
        Self { message, left: body }
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (array, left) = self.left.split_first_chunk().ok_or_else(|| self.bad(field))?;
        self.left = left;
        Ok(*array)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn string(&mut self, field: &'static str, limit: usize) -> Result<String, WireError> {
        let length = usize::from(self.u16(field)?);
        if length > limit {
            return Err(self.bad(field));
        }
        let (bytes, left) = self.left.split_at_checked(length).ok_or_else(|| self.bad(field))?;
        self.left = left;
        let string = std::str::from_utf8(bytes).map_err(|_| self.bad(field))?;
        Ok(string.to_owned())
    }

    pub(super) fn reason(&mut self) -> Result<String, WireError> {
        self.string("reason", MAX_REASON_BYTES)
    }

    /// Words until the end of the body: at least one. The bound on the body bounds them.
    pub(super) fn words(&mut self, field: &'static str) -> Result<Vec<u64>, WireError> {
        let (words, odd) = self.left.as_chunks();
        if words.is_empty() || !odd.is_empty() {
            return Err(self.bad(field));
        }
        self.left = odd;
        Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'b [u8] {
        std::mem::take(&mut self.left)
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), WireError> {
        if self.left.is_empty() { Ok(()) } else { Err(self.bad("length")) }
    }

    pub(super) fn bad(&self, field: &'static str) -> WireError {
        WireError::Field { message: self.message, field }
    }
}
