//! The memory of the KVM guest as another VMM has to build it.
//!
//! The guest needs nothing but its memory and a vCPU in the right mode, so any VMM can run it. This says what is where
//! before the first write, and which words tell from outside how the guest is doing.

use std::ops::Range;

use super::{clock_scale, open_kvm, program};
use crate::guests::check::Program;
use crate::guests::control::{self, CONTROL_PAGE, Field};
use crate::guests::fill::Fill;
use crate::guests::pages::Page;
use crate::guests::pattern::{Write, Writes, rewrite_word};
use crate::guests::{GuestBuildError, GuestSpec, PROGRAM_PAGES};
use crate::sys::firmware;
use crate::units::PAGE_SIZE;

/// What a guest's memory holds.
#[derive(Debug)]
pub(crate) struct GuestImage {
    fill: Fill,
    writes: Writes,
    program: Program,
}

impl GuestImage {
    /// Of a guest whose clock is the time stamp counter of this host's virtual machines.
    ///
    /// # Errors
    /// Without KVM.
    pub(crate) fn new(spec: &GuestSpec) -> Result<Self, GuestBuildError> {
        let khz = open_kvm()?.create_vm().and_then(|vm| vm.create_vcpu(0)).and_then(|vcpu| vcpu.get_tsc_khz());
        let khz = khz.map_err(|error| GuestBuildError::Kvm { action: "give the frequency of the time stamp counter", source: error.into() })?;
        Ok(Self::with_clock(spec, clock_scale(khz)))
    }

    /// Of a guest whose clock scale is known.
    pub(crate) fn with_clock(spec: &GuestSpec, scale: u64) -> Self {
        let mut program = program::pages(spec);
        let mut control = Box::new(control::initial(spec));
        control[Field::ClockScale as usize] = scale;
        program.insert(CONTROL_PAGE, control);
        Self { fill: Fill::new(spec), writes: Writes::new(spec), program }
    }

    /// The pages of the guest's program, its control page included.
    pub(crate) fn program(&self) -> impl Iterator<Item = (u64, &Page)> {
        self.program.iter().map(|(number, page)| (*number, &**page))
    }

    /// The pages that are filled. All others but the program's are zeros.
    pub(crate) fn filled(&self) -> Range<u64> {
        self.fill.range()
    }

    /// The pages that the guest writes to.
    pub(crate) fn written(&self) -> Range<u64> {
        PROGRAM_PAGES..PROGRAM_PAGES + self.writes.pages
    }

    /// Pages that are filled or will have been written to.
    pub(crate) fn contents(&self) -> u64 {
        let (filled, written) = (self.filled(), self.written());
        filled.end.max(written.end) - filled.start.min(written.start)
    }

    /// What `page` holds before the first write.
    pub(crate) fn page(&self, page: u64, out: &mut Page) {
        self.fill.page(page, out);
    }

    /// What `page` of the working set holds after `done` writes of an ordered pattern. The writes of other patterns change
    /// single words and are left out.
    pub(crate) fn page_after(&self, done: u64, page: u64, out: &mut Page) {
        self.page(page, out);
        let Some(last) = self.written().contains(&page).then(|| page - PROGRAM_PAGES).filter(|_| self.writes.pattern.is_ordered()) else { return };
        match self.writes.last_at(last, done).map(|number| self.writes.nth(number)) {
            Some(Write::Word { word, value, .. }) => out[word] = value,
            Some(Write::Page { key, .. }) => out.iter_mut().enumerate().for_each(|(at, word)| *word = rewrite_word(key, at)),
            None => {}
        }
    }
}

/// A flat firmware of 64 KiB that brings a PC to the program in memory.
///
/// # Panics
/// Never: the code is a few hundred bytes.
pub(crate) fn pc_firmware() -> Vec<u8> {
    let code = firmware::code();
    let mut image = vec![0; FIRMWARE_BYTES];
    image[..code.len()].copy_from_slice(code);
    image[RESET_VECTOR..][..JUMP.len()].copy_from_slice(&JUMP);
    image
}

/// Words of the control page, by guest-physical address, for one who looks at the guest from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlWord {
    /// Marks the page.
    Magic,
    /// Writes done.
    Writes,
    /// Guest time of the last write, nanoseconds.
    LastWrite,
    /// The longest time between two writes, nanoseconds. The guest goes on from whatever is put there.
    LongestGap,
}

impl ControlWord {
    /// What `Magic` reads.
    pub(crate) const MAGIC: u64 = control::MAGIC;

    /// Where it is.
    pub(crate) fn address(self) -> u64 {
        let field = match self {
            Self::Magic => Field::Magic,
            Self::Writes => Field::Writes,
            Self::LastWrite => Field::LastWrite,
            Self::LongestGap => Field::LongestGap,
        };
        CONTROL_PAGE * PAGE_SIZE as u64 + field as u64 * 8
    }
}

const FIRMWARE_BYTES: usize = 64 << 10;
/// Where a PC starts, from the start of the firmware.
const RESET_VECTOR: usize = 0xfff0;
/// `jmp 0xf000:0`, which is guest-physical 0xf0000.
const JUMP: [u8; 5] = [0xea, 0x00, 0x00, 0x00, 0xf0];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_WORDS;

    fn image(text: &str) -> GuestImage {
        GuestImage::with_clock(&text.parse().unwrap(), 77)
    }

    #[test]
    fn the_firmware_finds_the_program_where_it_looks() {
        let image = image("kvm:memory=64MiB");
        let pages: Vec<_> = image.program().map(|(number, _)| number).collect();
        for address in [0x1000, program::CODE.0, program::TABLES.0] {
            assert!(pages.contains(&(address / PAGE_SIZE as u64)), "{address:#x}");
        }
        assert_eq!((program::CODE.0, program::TABLES.0, CONTROL_PAGE), (0x1_0000, 0x10_0000, 1), "as in firmware.s");
        // Its stack is nobody's.
        assert!(!pages.contains(&7));
        let firmware = pc_firmware();
        assert_eq!(firmware.len(), 65536);
        assert_eq!(firmware[..1], [0xfa], "begins with cli");
        assert_eq!(firmware[0xfff0..0xfff5], [0xea, 0, 0, 0, 0xf0]);
        assert!(firmware::code().len() < 1024);
    }

    #[test]
    fn the_control_words_are_where_the_program_has_them() {
        let image = image("kvm:memory=64MiB");
        let (_, control) = image.program().next().unwrap();
        assert_eq!(control[0], ControlWord::MAGIC);
        assert_eq!(control[6], 77);
        let words = [ControlWord::Magic, ControlWord::Writes, ControlWord::LastWrite, ControlWord::LongestGap];
        assert_eq!(words.map(ControlWord::address), [0x1000, 0x1008, 0x1010, 0x1018]);
    }

    #[test]
    fn pages_are_what_the_writes_leave() {
        let (mut before, mut after) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        let rewrite = image("kvm:memory=64MiB,working-set=12KiB,pattern=rewrite");
        rewrite.page(PROGRAM_PAGES + 1, &mut before);
        rewrite.page_after(1, PROGRAM_PAGES + 1, &mut after);
        assert_eq!(before, after, "the second page is not yet reached");
        rewrite.page_after(2, PROGRAM_PAGES + 1, &mut after);
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        let sweep = image("kvm:memory=64MiB,working-set=12KiB");
        sweep.page_after(5, PROGRAM_PAGES + 1, &mut after);
        assert_eq!(after[0], 2);
        assert_eq!(before[1..], after[1..]);
    }
}
