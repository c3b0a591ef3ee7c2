//! The memory image as a file.
//!
//! Pages in guest-physical order, one after the other. Empty pages become holes of the file, so an image takes the
//! room of what is in it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{GuestMemory, MemoryError, PageSummary};
use crate::units::{ChunkIndex, PAGE_SIZE};

impl GuestMemory {
    /// Writes the whole image to `file`, replacing what it held.
    ///
    /// # Errors
    /// When the file cannot be written (a full disk, for one).
    pub fn dump(&self, file: &File) -> Result<(), MemoryError> {
        self.write_image(file).map_err(MemoryError::Dump)
    }

    fn write_image(&self, file: &File) -> std::io::Result<()> {
        if file.metadata()?.is_file() {
            file.set_len(0)?;
            file.set_len(self.layout().bytes().0)?;
        }
        let populated = self.populated().map_err(std::io::Error::other)?;
        let mut region_offset = 0;
        let mut buffer = [0u8; PAGE_SIZE];
        for region in self.regions() {
            let chunks = u32::try_from(region.len().div_ceil(crate::units::CHUNK_SIZE)).expect("a layout's chunks fit 32 bits");
            for index in 0..chunks {
                let number = ChunkIndex(region.first_chunk().0 + index);
                let chunk = self.chunk(number);
                let word = populated.word(number);
                for bit in (0..chunk.pages()).filter(|bit| word >> bit & 1 == 1) {
                    if chunk.copy_out(bit, &mut buffer) != PageSummary::Uniform(0) {
                        let page = u64::from(index) * 64 + u64::from(bit);
                        file.write_all_at(&buffer, region_offset + page * PAGE_SIZE as u64)?;
                    }
                }
            }
            region_offset += region.len() as u64;
        }
        Ok(())
    }
}
