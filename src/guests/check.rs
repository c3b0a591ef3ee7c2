//! Does a guest's memory hold what its writes so far must have left there?
//!
//! The check knows nothing but the image and the description: the number of writes done is in the control page, and
//! from it follows every word of an ordered pattern, and of a random one which words may be where and which must. So it
//! finds a page that a migration lost, an old copy of a page that came last, and anything out of place.
//!
//! | part of memory | holds |
//! |---|---|
//! | control page | what was built, but for the words that change |
//! | the program's other pages | exactly what was built |
//! | fill outside the working set | exactly the fill |
//! | working set, ordered pattern | exactly what writes 1 to N leave there |
//! | working set, random pattern | in each word the fill or a write to that very word; the last 4 Mi writes are there |
//! | everything else | zeros |
//!
//! A guest may be paused in the middle of write N + 1: then the first words of that one page are the new ones.

use std::collections::BTreeMap;
use std::fmt;

use super::PROGRAM_PAGES;
use super::control::{self, CONTROL_PAGE, Field};
use super::fill::Fill;
use super::pages::{Image, Page, address};
use super::pattern::{Write, Writes, rewrite_word};
use super::spec::GuestSpec;
use crate::memory::{GuestMemory, MemoryError};
use crate::units::{GuestAddr, PAGE_WORDS};

/// The pages of a guest's program that never change, by guest page number.
pub(super) type Program = BTreeMap<u64, Box<Page>>;

/// What is wrong with a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A guest can be checked only while it is paused.
    #[error("the guest is running")]
    Running,
    /// The guest stopped by itself.
    #[error("the guest stopped by itself: {why}")]
    Stopped {
        /// What made it stop.
        why: String,
    },
    /// Memory and state are not of the same moment.
    #[error("the memory is of a guest with {memory} writes done, the state of one with {state}")]
    Apart {
        /// As the control page has it.
        memory: u64,
        /// As the state has it.
        state: u64,
    },
    /// A word is not what it must be.
    #[error("guest address {at} holds {found:#x}, not {expected}")]
    Mismatch {
        /// The word's address.
        at: GuestAddr,
        /// What it holds.
        found: u64,
        /// What it should.
        expected: Expected,
    },
    /// The host did not let the memory be looked at.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What a word should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// Exactly this.
    Word(u64),
    /// Its fill, or a write to it, none later than this.
    FillOrWrite {
        /// The fill.
        fill: u64,
        /// The last write that may have happened.
        last: u64,
    },
    /// This write, or a later one to the same word.
    Write {
        /// The write.
        number: u64,
        /// The last write that may have happened.
        last: u64,
    },
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "{word:#x}"),
            Self::FillOrWrite { fill, last } => write!(f, "the fill {fill:#x} or the number of a write to it up to {last:#x}"),
            Self::Write { number, last } => write!(f, "write {number:#x} or a later write to it up to {last:#x}"),
        }
    }
}

/// Checks the memory of a paused guest built from `spec`; `program` are its own pages beside the control page.
pub(super) fn check(memory: &GuestMemory, spec: &GuestSpec, program: &Program) -> Result<(), CheckError> {
    let image = Image::new(memory)?;
    let done = check_control(&image, spec)?;
    let checker = Checker { image, fill: Fill::new(spec), writes: Writes::new(spec), done };
    checker.outside_the_working_set(program)?;
    if spec.pattern().is_ordered() {
        checker.ordered()
    } else {
        checker.random_words()?;
        checker.recent_writes()
    }
}

/// Compares the control page with what was built and gives the number of writes done.
fn check_control(image: &Image<'_>, spec: &GuestSpec) -> Result<u64, CheckError> {
    let mut page = [0; PAGE_WORDS];
    image.page(CONTROL_PAGE, &mut page);
    let mut expected = control::initial(spec);
    for field in Field::CHANGING {
        expected[field as usize] = page[field as usize];
    }
    same(CONTROL_PAGE, &page, &expected)?;
    let done = page[Field::Writes as usize];
    // No guest writes for this long; beyond it the arithmetic of write numbers would wrap.
    if done > 1 << 60 {
        return Err(CheckError::Mismatch { at: address(CONTROL_PAGE, Field::Writes as usize), found: done, expected: Expected::Word(1 << 60) });
    }
    Ok(done)
}

struct Checker<'m> {
    image: Image<'m>,
    fill: Fill,
    writes: Writes,
    done: u64,
}

impl Checker<'_> {
    fn working_set(&self) -> std::ops::Range<u64> {
        PROGRAM_PAGES..PROGRAM_PAGES + self.writes.pages
    }

    /// Program, fill and empty memory. Pages that hold zeros because nobody wrote to them are not looked at.
    fn outside_the_working_set(&self, program: &Program) -> Result<(), CheckError> {
        let (mut found, mut expected) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        let mut compare = |page: u64| {
            self.image.page(page, &mut found);
            match program.get(&page) {
                Some(built) => expected = **built,
                None => self.fill.page(page, &mut expected),
            }
            same(page, &found, &expected)
        };
        let missing = program.keys().copied().chain(self.fill.range()).filter(|page| !self.image.is_populated(*page));
        let (working_set, own) = (self.working_set(), CONTROL_PAGE);
        missing.chain(self.image.populated_pages()).filter(|page| *page != own && !working_set.contains(page)).try_for_each(&mut compare)
    }

    /// Sweep and rewrite: every page is known.
    fn ordered(&self) -> Result<(), CheckError> {
        let (mut found, mut expected) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        let under_way = self.done + 1;
        for page in 0..self.writes.pages {
            self.image.page(PROGRAM_PAGES + page, &mut found);
            self.fill.page(PROGRAM_PAGES + page, &mut expected);
            if let Some(last) = self.writes.last_at(page, self.done) {
                apply(self.writes.nth(last), &mut expected);
            }
            if self.writes.nth(under_way).page() == page {
                let mut next = expected;
                apply(self.writes.nth(under_way), &mut next);
                let written = found.iter().zip(&next).take_while(|(found, next)| found == next).count();
                expected[..written].copy_from_slice(&next[..written]);
            }
            same(PROGRAM_PAGES + page, &found, &expected)?;
        }
        Ok(())
    }

    /// Random and hot-cold: nothing is in a word that no write put there.
    fn random_words(&self) -> Result<(), CheckError> {
        let (mut found, mut fill) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        for page in self.working_set() {
            if !self.image.is_populated(page) && !self.fill.range().contains(&page) {
                continue;
            }
            self.image.page(page, &mut found);
            self.fill.page(page, &mut fill);
            for (word, (&found, &fill)) in found.iter().zip(&fill).enumerate() {
                if found != fill && !self.belongs(found, 1, page, word) {
                    let expected = Expected::FillOrWrite { fill, last: self.done + 1 };
                    return Err(CheckError::Mismatch { at: address(page, word), found, expected });
                }
            }
        }
        Ok(())
    }

    /// Random and hot-cold: the latest writes are there, or later ones over them.
    fn recent_writes(&self) -> Result<(), CheckError> {
        for number in (1..=self.done).rev().take(RECENT_WRITES) {
            let Write::Word { page, word, .. } = self.writes.nth(number) else { unreachable!("not an ordered pattern") };
            let found = self.image.word(PROGRAM_PAGES + page, word);
            if !self.belongs(found, number, PROGRAM_PAGES + page, word) {
                let expected = Expected::Write { number, last: self.done + 1 };
                return Err(CheckError::Mismatch { at: address(PROGRAM_PAGES + page, word), found, expected });
            }
        }
        Ok(())
    }

    /// Whether `number` is that of a write to this word, from `first` on.
    fn belongs(&self, number: u64, first: u64, guest_page: u64, at: usize) -> bool {
        (first..=self.done + 1).contains(&number)
            && matches!(self.writes.nth(number), Write::Word { page, word, .. } if page + PROGRAM_PAGES == guest_page && word == at)
    }
}

/// Does `write` to the page it goes to.
fn apply(write: Write, page: &mut Page) {
    match write {
        Write::Word { word, value, .. } => page[word] = value,
        Write::Page { key, .. } => page.iter_mut().enumerate().for_each(|(index, word)| *word = rewrite_word(key, index)),
    }
}

fn same(page: u64, found: &Page, expected: &Page) -> Result<(), CheckError> {
    match (0..PAGE_WORDS).find(|word| found[*word] != expected[*word]) {
        None => Ok(()),
        Some(word) => Err(CheckError::Mismatch { at: address(page, word), found: found[word], expected: Expected::Word(expected[word]) }),
    }
}

/// How many of the last writes of a random pattern are looked up.
const RECENT_WRITES: usize = 4 << 20;
