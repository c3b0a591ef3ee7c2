//! The general compressors of one worker: LZ4 and Zstandard.

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

/// The first `bytes` of memory that grows to the most that was asked for: a small guest's worker never needs all of it.
pub(super) fn room(scratch: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if scratch.len() < bytes {
        scratch.resize(bytes, 0);
    }
    &mut scratch[..bytes]
}

/// Both compressors, with what they need allocated once.
pub(super) struct Packer {
    lz4: CompressTable,
    /// For more than a small table can index.
    lz4_large: Option<CompressTable>,
    #[cfg(feature = "zstd")]
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self {
            lz4: CompressTable::small(),
            lz4_large: None,
            #[cfg(feature = "zstd")]
            zstd: None,
        }
    }

    /// Compresses `plain` to the front of `out`, which has room for [`lz4_room`] bytes; the length.
    pub(super) fn lz4(&mut self, plain: &[u8], out: &mut [u8]) -> usize {
        let small = plain.len() < usize::from(u16::MAX);
        let table = if small { &mut self.lz4 } else { self.lz4_large.get_or_insert_with(CompressTable::large) };
        compress_into_with_table(plain, out, table).expect("there is room for the longest block")
    }

    /// Compresses `plain` to the front of `out`; the length, or `None` when it does not get as short as `out`.
    #[cfg(feature = "zstd")]
    pub(super) fn zstd(&mut self, level: i32, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        let compressor = match &mut self.zstd {
            Some((set, compressor)) => {
                if *set != level {
                    compressor.set_compression_level(level).ok()?;
                    *set = level;
                }
                compressor
            }
            none => &mut none.insert((level, zstd::bulk::Compressor::new(level).ok()?)).1,
        };
        compressor.compress_to_buffer(plain, out).ok()
    }

    #[cfg(not(feature = "zstd"))]
    #[expect(clippy::unused_self, reason = "as where it is built in")]
    pub(super) fn zstd(&mut self, _level: i32, _plain: &[u8], _out: &mut [u8]) -> Option<usize> {
        None
    }
}

/// The most bytes that LZ4 makes of `plain` bytes.
pub(super) fn lz4_room(plain: usize) -> usize {
    get_maximum_output_size(plain)
}

/// Decompresses blocks to a length that is known.
pub(super) struct Unpacker {
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Unpacker {
    pub(super) fn new() -> Self {
        Self {
            #[cfg(feature = "zstd")]
            zstd: None,
        }
    }

    /// Fills `out` from an LZ4 block; whether the block makes exactly that.
    pub(super) fn lz4(&mut self, block: &[u8], out: &mut [u8]) -> bool {
        let length = out.len();
        matches!(lz4_flex::block::decompress_into(block, out), Ok(made) if made == length)
    }

    /// Fills `out` from a Zstandard frame; whether the frame makes exactly that.
    #[cfg(feature = "zstd")]
    pub(super) fn zstd(&mut self, block: &[u8], out: &mut [u8]) -> bool {
        let length = out.len();
        let decompressor = match &mut self.zstd {
            Some(decompressor) => decompressor,
            none => match zstd::bulk::Decompressor::new() {
                Ok(new) => none.insert(new),
                Err(_) => return false,
            },
        };
        matches!(decompressor.decompress_to_buffer(block, out), Ok(made) if made == length)
    }

    #[cfg(not(feature = "zstd"))]
    #[expect(clippy::unused_self, reason = "as where it is built in")]
    pub(super) fn zstd(&mut self, _block: &[u8], _out: &mut [u8]) -> bool {
        false
    }
}
