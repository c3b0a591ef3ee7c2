//! Mappings of guest memory in this process.
//!
//! Memory is either allocated here (tests, the programs, a destination) or described by a VMM that owns it
//! ([`GuestMemory::from_raw`]). Either way it is only ever touched through [`Chunk`] and
//! [`Placement`].

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::layout::{MemoryLayout, RegionSpec};
use super::page::Chunk;
use super::populating::Extents;
use super::{MemoryError, Placement};
use crate::units::{CHUNK_SIZE, ChunkIndex, HUGE_PAGE_SHIFT, HUGE_PAGE_SIZE, PAGE_SIZE};

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memfd, mapped shared: other processes may map it too.
    Memfd,
    /// Private anonymous memory of 2 MiB huge pages.
    HugeTlb,
}

impl Backing {
    /// What to look at when the host has none of it.
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::Anonymous | Self::Memfd => "",
            Self::HugeTlb => "; vm.nr_hugepages says how many huge pages the host sets aside",
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Memfd => "memfd",
            Self::HugeTlb => "hugetlb",
        })
    }
}

/// A region of memory that the VMM owns, as given to [`GuestMemory::from_raw`].
#[derive(Debug)]
pub struct RawRegion {
    /// Where it is mapped in this process.
    pub host: NonNull<u8>,
    /// What it is made of.
    pub backing: Backing,
    /// For [`Backing::Memfd`]: a descriptor of it, and the offset at which the mapping begins.
    pub file: Option<(OwnedFd, u64)>,
}

/// One region: a stretch of guest addresses and its mapping here.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    first_chunk: ChunkIndex,
    host: NonNull<u8>,
    backing: Backing,
    file: Option<(OwnedFd, u64)>,
    /// Unmaps on drop, when the memory was allocated here.
    own: Option<MmapRaw>,
}

impl Region {
    /// Where it lies in the guest.
    #[must_use]
    pub fn spec(&self) -> RegionSpec {
        self.spec
    }

    /// The chunk at which it begins.
    #[must_use]
    pub fn first_chunk(&self) -> ChunkIndex {
        self.first_chunk
    }

    /// Its first byte in this process; valid for [`Region::len`] bytes as long as the [`GuestMemory`] lives.
    #[must_use]
    pub fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// Its length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region has at least one page")]
    pub fn len(&self) -> usize {
        usize::try_from(self.spec.pages.bytes().0).expect("mapped, so it fits the address space")
    }

    /// Whether it was allocated here, and no VMM has a say in it.
    pub(super) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// What it is made of.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The file behind it and the offset of its first byte there, for memfd memory.
    #[must_use]
    pub fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.file.as_ref().map(|(fd, offset)| (fd.as_fd(), *offset))
    }
}

/// All of a guest's memory.
#[derive(Debug)]
pub struct GuestMemory {
    layout: MemoryLayout,
    regions: Vec<Region>,
    extents: Extents,
}

// SAFETY: the pointers are to mappings that live as long as the value (owned, or promised by `from_raw`'s caller), and
// every access through them is as by atomic loads and stores or by the kernel.
unsafe impl Send for GuestMemory {}
// SAFETY: as for Send.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps fresh memory for `layout`, all zeros, nothing populated (huge pages: reserved).
    ///
    /// # Errors
    /// When the host refuses a mapping; for huge pages also when too few are reserved.
    pub fn allocate(layout: MemoryLayout, backing: Backing) -> Result<Self, MemoryError> {
        let mut regions = Vec::with_capacity(layout.regions().len());
        for (index, &spec) in layout.regions().iter().enumerate() {
            let (mapping, file) =
                map(spec, backing).map_err(|source| MemoryError::Map { start: spec.start, bytes: spec.pages.bytes(), backing, source })?;
            let host = NonNull::new(mapping.as_mut_ptr()).expect("mmap never returns null");
            regions.push(Region { spec, first_chunk: layout.first_chunk(index), host, backing, file: file.map(|fd| (fd, 0)), own: Some(mapping) });
        }
        Ok(Self { extents: Extents::new(&layout), layout, regions })
    }

    /// Describes memory that the VMM has mapped, one [`RawRegion`] for each region of `layout`.
    ///
    /// # Safety
    /// Each `host` must point at a readable and writable mapping of its region's length, page-aligned, of the kind that
    /// `backing` says, which stays mapped as long as the value lives. Rust references to it must not exist meanwhile.
    ///
    /// # Panics
    /// When the numbers of regions differ, and for a memfd without its file: what others put there could not be seen.
    #[must_use]
    pub unsafe fn from_raw(layout: MemoryLayout, raw: Vec<RawRegion>) -> Self {
        assert_eq!(layout.regions().len(), raw.len(), "one mapping for each region");
        assert!(raw.iter().all(|raw| raw.backing != Backing::Memfd || raw.file.is_some()), "a memfd comes with its descriptor");
        let regions = raw
            .into_iter()
            .enumerate()
            .map(|(index, RawRegion { host, backing, file })| Region {
                spec: layout.regions()[index],
                first_chunk: layout.first_chunk(index),
                host,
                backing,
                file,
                own: None,
            })
            .collect();
        Self { extents: Extents::new(&layout), layout, regions }
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// The regions, in the layout's order.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// One chunk, to copy pages out of or store words into. Panics if it is not one of the layout.
    #[must_use]
    pub fn chunk(&self, chunk: ChunkIndex) -> Chunk<'_> {
        let (host, pages) = self.locate(chunk);
        // SAFETY: `locate` gives a pointer to `pages` mapped pages of this memory, which outlives the borrow.
        unsafe { Chunk::new(host, pages) }
    }

    /// Access for placing pages, while no guest runs on the memory. One for each thread; two must not work on one chunk.
    #[must_use]
    pub fn placement(&self) -> Placement<'_> {
        Placement::new(self)
    }

    /// How its memory is populated.
    pub(super) fn extents(&self) -> &Extents {
        &self.extents
    }

    /// First byte of `chunk` in this process and the number of its pages.
    pub(super) fn locate(&self, chunk: ChunkIndex) -> (NonNull<u8>, u32) {
        let (index, within) = self.layout.locate(chunk).expect("a chunk of the layout");
        let region = &self.regions[index];
        let offset = usize::try_from(within.bytes().0).expect("mapped");
        let pages = u32::try_from((region.len() - offset).min(CHUNK_SIZE) / PAGE_SIZE).expect("at most 64");
        // SAFETY: the layout located the chunk inside this region, so the offset is within its mapping.
        (unsafe { region.host.add(offset) }, pages)
    }
}

/// Maps one region.
fn map(spec: RegionSpec, backing: Backing) -> std::io::Result<(MmapRaw, Option<OwnedFd>)> {
    let bytes = spec.pages.bytes().0;
    let length = usize::try_from(bytes).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    let mut options = MmapOptions::new();
    options.len(length);
    match backing {
        Backing::Anonymous => Ok((options.no_reserve_swap().map_anon()?.into(), None)),
        Backing::HugeTlb => {
            // The kernel rounds the mapping up by itself, but will not have it unmapped at another length.
            options.len(length.checked_next_multiple_of(HUGE_PAGE_SIZE).ok_or(std::io::ErrorKind::OutOfMemory)?);
            Ok((options.huge(Some(HUGE_PAGE_SHIFT)).map_anon()?.into(), None))
        }
        Backing::Memfd => {
            let fd = memfd_create(c"pageferry-guest", MFdFlags::MFD_CLOEXEC)?;
            nix::unistd::ftruncate(&fd, i64::try_from(bytes).map_err(|_| std::io::ErrorKind::OutOfMemory)?)?;
            Ok((options.map_raw(&fd)?, Some(fd)))
        }
    }
}
