//! A guest's memory, seen from outside the process that runs it: by `/proc/PID/mem`, the same way for both engines.
//!
//! The mapping is found by its size and the magic word of the control page, so no engine needs to help. Reading a word
//! costs a system call or two; the guest notices nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use crate::guests::{ControlWord, GuestImage};
use crate::units::{ByteCount, PAGE_SIZE, PAGE_WORDS};

/// The memory of a guest in another process.
#[derive(Debug)]
pub(super) struct Window {
    file: File,
    /// Which of its pages are there.
    pagemap: File,
    /// Where guest-physical 0 is in that process.
    base: u64,
}

impl Window {
    /// The mapping that holds a guest of ours, if there is one by now.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn of_guest(pid: u32, memory: ByteCount) -> Result<Option<Self>> {
        for (start, length) in mappings(pid)? {
            // Another mapping may lie before or behind it without a border.
            let spare = length.saturating_sub(memory.0);
            for base in (start..).step_by(PAGE_SIZE).take_while(|base| length >= memory.0 && *base <= start + spare).take(PLACES) {
                let window = Self::at(pid, base)?;
                if window.word(ControlWord::Magic).is_ok_and(|word| word == ControlWord::MAGIC) {
                    return Ok(Some(window));
                }
            }
        }
        Ok(None)
    }

    /// The mapping of exactly this size, whatever it holds.
    ///
    /// # Errors
    /// When the process is gone or has no such mapping.
    pub(super) fn of_size(pid: u32, memory: ByteCount) -> Result<Self> {
        let (base, _) = mappings(pid)?.into_iter().find(|(_, length)| *length == memory.0).context("the guest's memory is not to be found")?;
        Self::at(pid, base)
    }

    fn at(pid: u32, base: u64) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        let file = File::options().read(true).write(true).open(&path).context(path)?;
        let path = format!("/proc/{pid}/pagemap");
        let pagemap = File::open(&path).context(path)?;
        Ok(Self { file, pagemap, base })
    }

    /// A word of the control page.
    pub(super) fn word(&self, word: ControlWord) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, self.base + word.address())?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Whether the page with this word is there: reading it then is no fault.
    pub(super) fn is_present(&self, word: ControlWord) -> io::Result<bool> {
        let page = (self.base + word.address()) / PAGE_SIZE as u64;
        let mut entry = [0; 8];
        self.pagemap.read_exact_at(&mut entry, page * 8)?;
        Ok(u64::from_le_bytes(entry) & PRESENT != 0)
    }

    /// Has the guest measure its longest gap from now on.
    pub(super) fn forget_gap(&self) -> io::Result<()> {
        self.file.write_all_at(&[0; 8], self.base + ControlWord::LongestGap.address())
    }

    /// Puts the guest into empty memory.
    ///
    /// # Errors
    /// When the process does not let it be written.
    pub(super) fn build(&self, image: &GuestImage) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(BUILT_AT_ONCE * PAGE_SIZE);
        for (number, page) in image.program() {
            bytes.clear();
            append(&mut bytes, page);
            self.file.write_all_at(&bytes, self.base + number * PAGE_SIZE as u64)?;
        }
        let mut page = [0; PAGE_WORDS];
        for first in image.filled().step_by(BUILT_AT_ONCE) {
            bytes.clear();
            for number in (first..image.filled().end).take(BUILT_AT_ONCE) {
                image.page(number, &mut page);
                append(&mut bytes, &page);
            }
            self.file.write_all_at(&bytes, self.base + first * PAGE_SIZE as u64)?;
        }
        Ok(())
    }

    /// Compares pages here and there with what was built, outside of what the guest writes to.
    ///
    /// # Errors
    /// Names the first page that differs.
    pub(super) fn check(&self, image: &GuestImage) -> Result<()> {
        let (mut page, mut expected, mut found) = ([0; PAGE_WORDS], Vec::new(), vec![0; PAGE_SIZE]);
        let untouched = image.written().end.max(image.filled().start)..image.filled().end;
        for number in untouched.step_by(CHECKED_EVERY) {
            image.page(number, &mut page);
            expected.clear();
            append(&mut expected, &page);
            self.file.read_exact_at(&mut found, self.base + number * PAGE_SIZE as u64)?;
            anyhow::ensure!(expected == found, "page {number} of the guest that arrived is not what was sent");
        }
        Ok(())
    }
}

fn append(bytes: &mut Vec<u8>, page: &[u64; PAGE_WORDS]) {
    bytes.extend(page.iter().flat_map(|word| word.to_le_bytes()));
}

/// Start and length of each writable mapping of a process that can be guest memory.
fn mappings(pid: u32) -> Result<Vec<(u64, u64)>> {
    let path = format!("/proc/{pid}/maps");
    let text = std::fs::read_to_string(&path).context(path)?;
    Ok(text.lines().filter_map(mapping).collect())
}

/// `7f0000000000-7f0040000000 rw-p 00000000 00:00 0`
fn mapping(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    fields.next().filter(|permissions| permissions.starts_with("rw"))?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

/// Where in a larger mapping the guest is looked for, in pages.
const PLACES: usize = 4096;
/// In an entry of pagemap; see `Documentation/admin-guide/mm/pagemap.rst` of the kernel.
const PRESENT: u64 = 1 << 63;
const BUILT_AT_ONCE: usize = 512;
/// A number that is odd, so that both kinds of pages are met.
const CHECKED_EVERY: usize = 61;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_as_the_kernel_writes_them() {
        assert_eq!(mapping("7f0000000000-7f0040000000 rw-p 00000000 00:00 0 "), Some((0x7f00_0000_0000, 1 << 30)));
        assert_eq!(mapping("7f0000000000-7f0000001000 rw-s 00000000 00:01 7 /memfd:x (deleted)"), Some((0x7f00_0000_0000, 4096)));
        assert_eq!(mapping("55e0-55f0 r-xp 00000000 00:00 0"), None);
        assert_eq!(mapping("nonsense"), None);
        assert!(!mappings(std::process::id()).unwrap().is_empty());
    }
}
