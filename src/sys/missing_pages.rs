//! userfaultfd in its missing mode: pages that are not there yet are this process's to bring.
//!
//! Whoever touches a missing page of registered memory (a thread, a system call, KVM) waits until it is filled here.
//! Three traps of the interface are settled in this file, in [`outcome`]:
//! - A copy may fill part of a range only. It says EAGAIN and how much, or EAGAIN and nothing at all while someone takes
//!   pages out of the memory.
//! - A page that is there already is EEXIST, which is an answer rather than an error.
//! - Closing the descriptor, or unregistering memory, wakes whoever waits for a page and hands it zeros. So **dropping
//!   the value leaves the descriptor open**, whatever happened; only [`MissingPages::close`] closes it.
//!
//! A descriptor for a guest that runs is opened for faults of kernel mode too: `read(2)` into guest memory and KVM itself
//! fault from there. One for memory that is only filled ([`MissingPages::open_untouched`]) is not: there only a thread that
//! touches a missing page waits, and a system call fails with EFAULT.
//!
//! <https://docs.kernel.org/admin-guide/mm/userfaultfd.html>,
//! <https://man7.org/linux/man-pages/man2/ioctl_userfaultfd.2.html>

use std::fs::OpenOptions;
use std::io;
use std::mem::{ManuallyDrop, offset_of, size_of};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What memory is to be registered, beside private anonymous memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kinds {
    /// Shared memory.
    pub(crate) shared: bool,
    /// Huge pages on reserve.
    pub(crate) huge: bool,
}

/// An open descriptor. Dropping it does not close it.
#[derive(Debug)]
pub(crate) struct MissingPages {
    fd: ManuallyDrop<OwnedFd>,
}

/// Why a range was not filled, not even in part.
#[derive(Debug)]
pub(crate) enum NotFilled {
    /// Its first page is there already.
    Present,
    /// Someone is taking pages out of registered memory. It can be tried again once that is told as an event and done.
    Changing,
    /// The kernel cannot.
    Failed(io::Error),
}

/// What the kernel tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A thread waits for the page at this address.
    Fault {
        /// Where, rounded down to the page.
        address: usize,
        /// Which thread, by its number in the system.
        thread: u32,
    },
    /// Someone takes these pages out of memory; they read as zeros afterwards. That waits until this event is read, and
    /// no longer.
    Removed(Range<usize>),
    /// Nothing that was asked for.
    Other(u8),
}

/// Room for events; filled by [`MissingPages::read`].
#[derive(Debug)]
pub(crate) struct Events {
    messages: Box<[RawMessage; MAX_EVENTS]>,
    filled: usize,
}

impl MissingPages {
    /// Opens a descriptor on which nothing is registered yet, for memory of these kinds.
    pub(crate) fn open(kinds: Kinds) -> io::Result<Self> {
        let mut features = EVENT_REMOVE | THREAD_ID;
        if kinds.shared {
            features |= MISSING_SHMEM;
        }
        if kinds.huge {
            features |= MISSING_HUGETLBFS;
        }
        Self::with_features(open_descriptor(0)?, features)
    }

    /// The same for private memory that nobody touches until it is whole: nothing is told of it, and no privilege is needed.
    pub(crate) fn open_untouched() -> io::Result<Self> {
        Self::with_features(open_descriptor(USER_MODE_ONLY)?, 0)
    }

    fn with_features(fd: OwnedFd, features: u64) -> io::Result<Self> {
        let faults = Self { fd: ManuallyDrop::new(fd) };
        let mut api = Api { api: API_VERSION, features, ioctls: 0 };
        // An unknown feature is refused with EINVAL, so what was asked for is there if this works.
        if let Err(error) = faults.control(UFFDIO_API, &mut api) {
            faults.close();
            return Err(error);
        }
        Ok(faults)
    }

    /// Registers the mapping at `range`: its missing pages are waited for from now on.
    ///
    /// # Safety
    /// Rust must not believe anything about the contents of the range: no references to it, nothing allocated in it.
    pub(crate) unsafe fn register(&self, range: &Range<usize>, kind: PageKind) -> io::Result<()> {
        let mut register = Register { range: range.into(), mode: MODE_MISSING, ioctls: 0 };
        self.control(UFFDIO_REGISTER, &mut register)?;
        let needed = match kind {
            PageKind::Small => BIT_WAKE | BIT_COPY | BIT_ZEROPAGE,
            PageKind::Huge => BIT_WAKE | BIT_COPY,
        };
        if register.ioctls & needed == needed {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::Unsupported, "missing pages of this kind of memory cannot be filled"))
        }
    }

    /// Ends a registration; whoever waits there goes on and finds zeros.
    pub(crate) fn unregister(&self, range: &Range<usize>) -> io::Result<()> {
        self.control(UFFDIO_UNREGISTER, &mut RawRange::from(range))
    }

    /// Fills missing pages from address `to` on with `from`, and wakes who waits for them. How many bytes were filled: at
    /// least a page, and fewer than asked for when something is in the way further on.
    pub(crate) fn copy(&self, to: usize, from: &[u8]) -> Result<usize, NotFilled> {
        let mut copy = RawCopy { to: to as u64, from: from.as_ptr() as u64, length: from.len() as u64, mode: 0, copied: 0 };
        let result = self.control(UFFDIO_COPY, &mut copy);
        outcome(result, copy.copied, from.len())
    }

    /// Fills missing pages with zeros; as [`MissingPages::copy`]. Not for huge pages.
    pub(crate) fn zero(&self, range: &Range<usize>) -> Result<usize, NotFilled> {
        let mut zero = RawZero { range: range.into(), mode: 0, zeroed: 0 };
        let result = self.control(UFFDIO_ZEROPAGE, &mut zero);
        outcome(result, zero.zeroed, range.len())
    }

    /// Wakes who waits for pages of `range`: they look again, and wait again where a page is still missing.
    pub(crate) fn wake(&self, range: &Range<usize>) -> io::Result<()> {
        self.control(UFFDIO_WAKE, &mut RawRange::from(range))
    }

    /// Reads what has happened, faults first, as far as there is room; nothing when nothing has.
    pub(crate) fn read(&self, events: &mut Events) -> io::Result<()> {
        events.filled = 0;
        let room = size_of::<[RawMessage; MAX_EVENTS]>();
        // SAFETY: the kernel writes at most `room` bytes to the messages, of which any bytes are valid ones.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), events.messages.as_mut_ptr().cast(), room) };
        match usize::try_from(read) {
            Ok(bytes) => events.filled = bytes / size_of::<RawMessage>(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Closes the descriptor. Whoever waits for a page goes on and finds zeros: only for when no page is missing, or
    /// nobody will ever run on the memory.
    pub(crate) fn close(self) {
        drop(ManuallyDrop::into_inner(self.fd));
    }

    fn control<T>(&self, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: every request of this file reads and writes one struct, the one that it is called with here; a copy reads
        // the slice that its caller borrows. What it does to memory beside that the kernel confines to missing pages of
        // ranges registered on this descriptor, about which nobody believes anything (see `register`).
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for MissingPages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { messages: Box::new([RawMessage::default(); MAX_EVENTS]), filled: 0 }
    }

    /// Those that were read last, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.messages[..self.filled].iter().map(RawMessage::event)
    }
}

/// Pages of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// 4 KiB.
    Small,
    /// From the reserve of huge pages.
    Huge,
}

/// What became of filling `length` bytes, from the result and the count that the kernel left behind. The count was 0
/// before: old kernels leave it alone when they have done nothing, newer ones put a negative error number there.
fn outcome(result: io::Result<()>, filled: i64, length: usize) -> Result<usize, NotFilled> {
    let Err(error) = result else { return Ok(length) };
    match error.raw_os_error() {
        Some(libc::EAGAIN) => match usize::try_from(filled) {
            Ok(filled) if filled > 0 => Ok(filled),
            _ => Err(NotFilled::Changing),
        },
        Some(libc::EEXIST) => Err(NotFilled::Present),
        _ => Err(NotFilled::Failed(error)),
    }
}

/// The system call where it is allowed, otherwise the device, which is a matter of file permissions.
fn open_descriptor(flags: libc::c_int) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: makes a descriptor from flags.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = match libc::c_int::try_from(fd) {
        Ok(fd) if fd >= 0 => fd,
        _ => {
            let refused = io::Error::last_os_error();
            let Ok(device) = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") else { return Err(refused) };
            // SAFETY: makes a descriptor from flags.
            let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            fd
        }
    };
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// include/uapi/linux/userfaultfd.h
const API_VERSION: u64 = 0xaa;
const EVENT_REMOVE: u64 = 1 << 3;
const MISSING_HUGETLBFS: u64 = 1 << 4;
const MISSING_SHMEM: u64 = 1 << 5;
const THREAD_ID: u64 = 1 << 8;

const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04;
const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;

const MODE_MISSING: u64 = 1;
const USER_MODE_ONLY: libc::c_int = 1;
// Bits of `Register::ioctls`, by the requests' numbers.
const BIT_WAKE: u64 = 1 << 2;
const BIT_COPY: u64 = 1 << 3;
const BIT_ZEROPAGE: u64 = 1 << 4;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVED: u8 = 0x15;
/// Events read at once.
const MAX_EVENTS: usize = 64;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Api>() == 24 && offset_of!(Api, ioctls) == 16);

#[repr(C)]
struct RawRange {
    start: u64,
    length: u64,
}
const _: () = assert!(size_of::<RawRange>() == 16 && offset_of!(RawRange, length) == 8);

impl From<&Range<usize>> for RawRange {
    fn from(range: &Range<usize>) -> Self {
        Self { start: range.start as u64, length: range.len() as u64 }
    }
}

#[repr(C)]
struct Register {
    range: RawRange,
    mode: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Register>() == 32 && offset_of!(Register, ioctls) == 24);

#[repr(C)]
struct RawCopy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}
const _: () = assert!(size_of::<RawCopy>() == 40 && offset_of!(RawCopy, copied) == 32);

#[repr(C)]
struct RawZero {
    range: RawRange,
    mode: u64,
    zeroed: i64,
}
const _: () = assert!(size_of::<RawZero>() == 32 && offset_of!(RawZero, zeroed) == 24);

/// `struct uffd_msg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RawMessage {
    event: u8,
    reserved: [u8; 7],
    /// Of a fault: flags, address, thread (32 bits). Of a removal: start, end.
    arguments: [u64; 3],
}
const _: () = assert!(size_of::<RawMessage>() == 32 && offset_of!(RawMessage, arguments) == 8);

impl RawMessage {
    fn event(&self) -> Event {
        let [first, second, third] = self.arguments;
        let address = |value: u64| usize::try_from(value).expect("an address of this process");
        match self.event {
            EVENT_PAGEFAULT => {
                let [a, b, c, d, ..] = third.to_ne_bytes();
                Event::Fault { address: address(second), thread: u32::from_ne_bytes([a, b, c, d]) }
            }
            EVENT_REMOVED => Event::Removed(address(first)..address(second)),
            other => Event::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answers_are_told_apart() {
        let failed = |errno| Err(io::Error::from_raw_os_error(errno));
        assert!(matches!(outcome(Ok(()), 8192, 8192), Ok(8192)));
        assert!(matches!(outcome(failed(libc::EAGAIN), 4096, 8192), Ok(4096)), "part of it");
        for untouched in [0, -i64::from(libc::EAGAIN), i64::MIN] {
            assert!(matches!(outcome(failed(libc::EAGAIN), untouched, 8192), Err(NotFilled::Changing)), "{untouched}");
        }
        for left_behind in [0, -i64::from(libc::EEXIST)] {
            assert!(matches!(outcome(failed(libc::EEXIST), left_behind, 8192), Err(NotFilled::Present)), "{left_behind}");
        }
        for errno in [libc::ENOENT, libc::ENOMEM, libc::ESRCH, libc::EFAULT, libc::EINVAL] {
            let Err(NotFilled::Failed(error)) = outcome(failed(errno), -i64::from(errno), 8192) else { panic!("{errno} is a failure") };
            assert_eq!(error.raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn messages_are_read_as_the_kernel_lays_them_out() {
        let fault = RawMessage { event: 0x12, reserved: [0; 7], arguments: [1, 0x7000, 0xffff_ffff_0000_0042] };
        assert_eq!(fault.event(), Event::Fault { address: 0x7000, thread: 0x42 });
        let removed = RawMessage { event: 0x15, reserved: [0; 7], arguments: [0x1000, 0x3000, 0] };
        assert_eq!(removed.event(), Event::Removed(0x1000..0x3000));
        assert_eq!(RawMessage { event: 0x16, ..removed }.event(), Event::Other(0x16));
    }
}
