//! Huge pages, which the host fills whole: the chunks of one follow each other on a lane and are kept until all have
//! come.

use super::incomplete::Use;
use super::installer::{Installer, Patience};
use super::places::{HUGE_BYTES, HUGE_CHUNKS, Place};
use crate::destination::MissingError;
use crate::memory::Staging;
use crate::sys::missing_pages::NotFilled;
use crate::units::{CHUNK_SIZE, ChunkIndex, PAGE_SIZE};

/// A huge page of which some has come.
#[derive(Debug)]
pub(super) struct HugePage {
    first: ChunkIndex,
    /// The pages that have come, chunk by chunk.
    come: [u64; HUGE_CHUNKS as usize],
}

impl HugePage {
    /// What has come, by chunk.
    fn chunks(&self) -> impl Iterator<Item = (ChunkIndex, u64)> + use<> {
        (self.first.0..).map(ChunkIndex).zip(self.come).filter(|&(_, come)| come != 0)
    }
}

impl Installer {
    /// Keeps pages that were taken, and puts the huge page in place once it is whole.
    pub(super) fn gather(&mut self, place: &Place, chunk: ChunkIndex, staging: &Staging) -> Result<(), MissingError> {
        let (zero, filled) = (staging.zeros(), staging.held());
        let first = place.huge_page_of(chunk);
        if let Some(incomplete) = self.gathering.as_ref().map(|huge| huge.first).filter(|&other| other != first) {
            self.incomplete.sets.give_back(chunk, zero | filled);
            return Err(MissingError::Interleaved { chunk: chunk.0, incomplete: incomplete.0 });
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; HUGE_BYTES].into_boxed_slice();
        }
        let at = (chunk.0 - first.0) as usize;
        let buffer = &mut self.buffer[at * CHUNK_SIZE..][..CHUNK_SIZE];
        for (bit, page) in (0u32..).zip(buffer.chunks_exact_mut(PAGE_SIZE)) {
            if zero >> bit & 1 == 1 {
                page.fill(0);
            } else if filled >> bit & 1 == 1 {
                page.copy_from_slice(staging.pages(bit, 1));
            }
        }
        let huge = self.gathering.get_or_insert(HugePage { first, come: [0; HUGE_CHUNKS as usize] });
        huge.come[at] |= zero | filled;
        let come = huge.come;
        let whole = place.chunks_of_huge_page(first).zip(come).all(|(chunk, come)| come == self.incomplete.places.valid_mask(chunk));
        if whole { self.install_huge(place, first) } else { Ok(()) }
    }

    /// Puts the huge page in place that has been gathered.
    fn install_huge(&mut self, place: &Place, first: ChunkIndex) -> Result<(), MissingError> {
        let chunks = place.chunks_of_huge_page(first).count();
        // Beyond the end of the region, which the huge page may reach over: what the buffer held before is not for there.
        self.buffer[chunks * CHUNK_SIZE..].fill(0);
        let start = place.range(first.page(0), 1).start;
        let mut patience = Patience::default();
        let done = loop {
            let gate = self.incomplete.kernel(self.lane);
            let kernel = gate.as_ref().expect("pages are missing");
            // Under the gate: what is not marked now is not removed before it is filled.
            if self.incomplete.sets.removed(first) & 1 != 0 {
                break Ok(Use::Dropped);
            }
            match kernel.copy(start, &self.buffer) {
                Ok(_) => break Ok(Use::Installed),
                Err(NotFilled::Present) => {
                    self.incomplete.wake_waiters(Some(kernel), first, 1);
                    break Ok(Use::Installed);
                }
                Err(refused) => {
                    drop(gate);
                    if let Err(source) = patience.after(refused) {
                        break Err(MissingError::Install { page: first.page(0).0, outstanding: self.incomplete.outstanding(), source });
                    }
                }
            }
        };
        let use_of = done.inspect_err(|_| self.give_back_gathered())?;
        for (chunk, come) in self.gathering.take().into_iter().flat_map(|huge| huge.chunks()) {
            self.incomplete.settle(chunk, come, self.lane, use_of);
        }
        Ok(())
    }

    /// What has been gathered counts as not having come.
    fn give_back_gathered(&mut self) {
        for (chunk, come) in self.gathering.take().into_iter().flat_map(|huge| huge.chunks()) {
            self.incomplete.sets.give_back(chunk, come);
        }
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        self.give_back_gathered();
    }
}
