//! KVM's dirty log with manual protection (Linux 5.7), on a VM descriptor of whatever crate the VMM uses.
//!
//! Under manual protection reading the log changes nothing; a separate call clears the bits it is given and protects
//! those pages again. Bits start out set, so switching the log on is quick, and the protecting is done in pieces.
//!
//! <https://docs.kernel.org/virt/kvm/api.html#kvm-clear-dirty-log>

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::units::CHUNK_PAGES;

const CAP_MANUAL_PROTECT: u32 = 168;
/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET`.
const MANUAL_INITIALLY_SET: u64 = 1 | 2;
const MEM_LOG_DIRTY_PAGES: u32 = 1;

/// `struct kvm_enable_cap`.
#[repr(C)]
struct EnableCap {
    cap: u32,
    flags: u32,
    args: [u64; 4],
    pad: [u8; 64],
}

/// `struct kvm_userspace_memory_region`.
#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

/// `struct kvm_dirty_log`.
#[repr(C)]
struct DirtyLog {
    slot: u32,
    padding: u32,
    dirty_bitmap: u64,
}

/// `struct kvm_clear_dirty_log`.
#[repr(C)]
struct ClearDirtyLog {
    slot: u32,
    num_pages: u32,
    first_page: u64,
    dirty_bitmap: u64,
}

const KVMIO: u8 = 0xae;

const _: () = {
    assert!(size_of::<EnableCap>() == 104);
    assert!(std::mem::offset_of!(EnableCap, args) == 8);
    assert!(nix::request_code_write!(KVMIO, 0xa3, size_of::<EnableCap>()) == 0x4068_aea3);
    assert!(size_of::<MemoryRegion>() == 32);
    assert!(std::mem::offset_of!(MemoryRegion, userspace_addr) == 24);
    assert!(nix::request_code_write!(KVMIO, 0x46, size_of::<MemoryRegion>()) == 0x4020_ae46);
    assert!(size_of::<DirtyLog>() == 16);
    assert!(nix::request_code_write!(KVMIO, 0x42, size_of::<DirtyLog>()) == 0x4010_ae42);
    assert!(size_of::<ClearDirtyLog>() == 24);
    assert!(std::mem::offset_of!(ClearDirtyLog, dirty_bitmap) == 16);
    assert!(nix::request_code_readwrite!(KVMIO, 0xc0, size_of::<ClearDirtyLog>()) == 0xc018_aec0);
};

nix::ioctl_write_int_bad!(
    /// # Safety
    /// None beyond a descriptor of KVM.
    check_extension,
    nix::request_code_none!(KVMIO, 0x03)
);
nix::ioctl_write_ptr!(
    /// # Safety
    /// None beyond a descriptor of KVM.
    enable_cap,
    KVMIO,
    0xa3,
    EnableCap
);
nix::ioctl_write_ptr!(
    /// # Safety
    /// The region must be memory that the guest may write to.
    set_memory_region,
    KVMIO,
    0x46,
    MemoryRegion
);
nix::ioctl_write_ptr!(
    /// # Safety
    /// `dirty_bitmap` must be writable for a bit to each page of the slot, in whole 64-bit words.
    get_dirty_log,
    KVMIO,
    0x42,
    DirtyLog
);
nix::ioctl_readwrite!(
    /// # Safety
    /// `dirty_bitmap` must be readable for a bit to each of `num_pages`, in whole 64-bit words.
    clear_dirty_log,
    KVMIO,
    0xc0,
    ClearDirtyLog
);

/// Whether KVM (`/dev/kvm` or a VM) has manual protection with bits that start out set.
pub(crate) fn has_manual_protection(kvm: BorrowedFd<'_>) -> io::Result<bool> {
    let cap = i32::try_from(CAP_MANUAL_PROTECT).expect("a small number");
    // SAFETY: takes a number, changes nothing.
    let supported = unsafe { check_extension(kvm.as_raw_fd(), cap) }?;
    Ok(u64::try_from(supported).is_ok_and(|bits| bits & MANUAL_INITIALLY_SET == MANUAL_INITIALLY_SET))
}

/// Switches manual protection on for the VM; it has to be before any slot is logged.
pub(crate) fn enable_manual_protection(vm: BorrowedFd<'_>) -> io::Result<()> {
    let cap = EnableCap { cap: CAP_MANUAL_PROTECT, flags: 0, args: [MANUAL_INITIALLY_SET, 0, 0, 0], pad: [0; 64] };
    // SAFETY: the struct outlives the call; only the log's behaviour changes.
    unsafe { enable_cap(vm.as_raw_fd(), &raw const cap) }?;
    Ok(())
}

/// A memory slot and what the VM has in it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) id: u32,
    pub(crate) guest_start: u64,
    /// Where it is mapped in this process.
    pub(crate) host: Range<usize>,
}

impl Slot {
    /// Switches the log of this slot on or off.
    pub(crate) fn set_logging(&self, vm: BorrowedFd<'_>, on: bool) -> io::Result<()> {
        let region = MemoryRegion {
            slot: self.id,
            flags: if on { MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: self.guest_start,
            memory_size: self.host.len() as u64,
            userspace_addr: self.host.start as u64,
        };
        // SAFETY: the slot holds this very memory already, by the word of who made the value, so only its flags change; for a
        // slot that holds other memory it is an error. The memory is a guest's in any case, of which no reference exists.
        unsafe { set_memory_region(vm.as_raw_fd(), &raw const region) }?;
        Ok(())
    }

    /// Reads the log: bit n of `words` is page n of the slot. Panics if `words` is too short for it.
    pub(crate) fn read_log(&self, vm: BorrowedFd<'_>, words: &mut [u64]) -> io::Result<()> {
        assert!(words.len() * CHUNK_PAGES >= self.pages(), "a bit to each page");
        let log = DirtyLog { slot: self.id, padding: 0, dirty_bitmap: words.as_mut_ptr() as u64 };
        // SAFETY: `words` is writable and long enough, by the assertion.
        unsafe { get_dirty_log(vm.as_raw_fd(), &raw const log) }?;
        Ok(())
    }

    /// Clears the bits set in `words`, which begin at chunk `first` of the slot, and protects those pages again.
    pub(crate) fn clear_log(&self, vm: BorrowedFd<'_>, first: usize, words: &[u64]) -> io::Result<()> {
        let first_page = first * CHUNK_PAGES;
        let pages = (self.pages() - first_page).min(words.len() * CHUNK_PAGES);
        let mut log = ClearDirtyLog {
            slot: self.id,
            num_pages: u32::try_from(pages).map_err(io::Error::other)?,
            first_page: first_page as u64,
            dirty_bitmap: words.as_ptr() as u64,
        };
        // SAFETY: `words` holds a bit to each of `pages`, which was bounded by its length.
        unsafe { clear_dirty_log(vm.as_raw_fd(), &raw mut log) }?;
        Ok(())
    }

    fn pages(&self) -> usize {
        self.host.len() / crate::units::PAGE_SIZE
    }
}
