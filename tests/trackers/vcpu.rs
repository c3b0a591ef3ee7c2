//! The smallest KVM guest that writes to memory.
//!
//! One vCPU in long mode at ring 3 (which runs at full speed even where KVM is emulated in software), with two little
//! programs: store one word, or count up words of random pages until told to stop. Program and page tables lie in a
//! slot of their own, so the memory under test holds nothing but what the test wants there.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use pageferry::dirty::KvmSlots;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, RegionSpec};
use pageferry::units::{ChunkIndex, GuestAddr, PageCount};

/// Where program and tables lie in the guest; the memory under test has to end before.
const SYSTEM: u64 = 0xc000_0000;
/// Pages there: the PML4, the PDPT, four page directories, the program, the stop flag.
const SYSTEM_PAGES: u64 = 8;
const PROGRAM_PAGE: u32 = 6;
const FLAG_PAGE: u32 = 7;

/// `mov [rdi], rax; out 0x10, al`
const STORE: [u8; 5] = [0x48, 0x89, 0x07, 0xe6, 0x10];
/// rbx: pages - 1 (a power of two less one), rdi: where they begin, rsi: the stop flag, rax: the seed.
#[rustfmt::skip]
const SCATTER: [u8; 48] = [
    0x48, 0x69, 0xc0, 0x6d, 0x4e, 0xc6, 0x41, // imul rax, rax, 1103515245
    0x48, 0x05, 0x39, 0x30, 0x00, 0x00,       // add rax, 12345
    0x48, 0x89, 0xc1,                         // mov rcx, rax
    0x48, 0xc1, 0xe9, 0x10,                   // shr rcx, 16
    0x48, 0x21, 0xd9,                         // and rcx, rbx
    0x48, 0xc1, 0xe1, 0x0c,                   // shl rcx, 12
    0x48, 0xff, 0x04, 0x0f,                   // inc qword [rdi + rcx]
    0xba, 0x00, 0x20, 0x00, 0x00,             // mov edx, 8192
    0xff, 0xca,                               // dec edx
    0x75, 0xfc,                               // jnz to it
    0x48, 0x83, 0x3e, 0x00,                   // cmp qword [rsi], 0
    0x74, 0xd2,                               // je start
    0xe6, 0x10,                               // out 0x10, al
];
const SCATTER_AT: u64 = 0x100;

/// A virtual machine with one vCPU.
pub(crate) struct Machine {
    vcpu: VcpuFd,
    system: Arc<GuestMemory>,
    _memory: Arc<GuestMemory>,
    _vm: VmFd,
}

impl Machine {
    /// A machine with `memory` in slots 1, 2, ...; slot 0 is its own.
    pub(crate) fn new(memory: &Arc<GuestMemory>) -> Result<(Self, KvmSlots), Box<dyn std::error::Error>> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        let spec = RegionSpec { start: GuestAddr(SYSTEM), pages: PageCount(SYSTEM_PAGES) };
        let system = Arc::new(GuestMemory::allocate(MemoryLayout::new(vec![spec])?, Backing::Anonymous)?);
        let mut slots = Vec::new();
        for (slot, region) in (0..).zip(system.regions().iter().chain(memory.regions())) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.spec().start.0,
                memory_size: region.len() as u64,
                userspace_addr: region.host().as_ptr() as u64,
            };
            // SAFETY: the memory is mapped as long as `system` and `_memory` hold it, which is as long as the machine.
            unsafe { vm.set_user_memory_region(region) }?;
            slots.push(slot);
        }
        slots.remove(0);
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        write_system(&system);
        enter_long_mode(&vcpu)?;
        // SAFETY: the descriptor is open, `vm` lives on.
        let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }.try_clone_to_owned()?;
        Ok((Self { vcpu, system, _memory: Arc::clone(memory), _vm: vm }, KvmSlots { vm: Arc::new(fd), slots }))
    }

    /// The guest stores `value` at `at`.
    pub(crate) fn store(&mut self, at: GuestAddr, value: u64) {
        self.run(&kvm_regs { rip: program(), rdi: at.0, rax: value, ..Default::default() });
    }

    /// The guest counts up the first word of random pages among `pages` from `at` on, until the flag is set.
    pub(crate) fn scatter(&mut self, at: GuestAddr, pages: PageCount) {
        assert!(pages.0.is_power_of_two());
        let flag = SYSTEM + u64::from(FLAG_PAGE) * 4096;
        self.run(&kvm_regs { rip: program() + SCATTER_AT, rdi: at.0, rbx: pages.0 - 1, rsi: flag, rax: 1, ..Default::default() });
    }

    /// What ends [`Machine::scatter`].
    pub(crate) fn stopper(&self) -> impl Fn(bool) + Send + Sync + 'static {
        let system = Arc::clone(&self.system);
        move |stop| system.chunk(ChunkIndex(0)).store_word(FLAG_PAGE, 0, u64::from(stop))
    }

    fn run(&mut self, regs: &kvm_regs) {
        // Interrupts off, I/O allowed at ring 3.
        self.vcpu.set_regs(&kvm_regs { rflags: 0x3002, ..*regs }).unwrap();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(0x10, _)) => return,
                Ok(other) => panic!("the guest came out with {other:?}"),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => panic!("the vCPU failed: {error}"),
            }
        }
    }
}

fn program() -> u64 {
    SYSTEM + u64::from(PROGRAM_PAGE) * 4096
}

/// Identity tables for 4 GiB in 2 MiB pages, open to ring 3, and the program.
fn write_system(system: &GuestMemory) {
    const OPEN: u64 = 0b111; // present, writable, user
    let chunk = system.chunk(ChunkIndex(0));
    chunk.store_word(0, 0, (SYSTEM + 4096) | OPEN);
    for (directory, index) in (2u32..6).zip(0usize..) {
        chunk.store_word(1, index, (SYSTEM + u64::from(directory) * 4096) | OPEN);
        for entry in 0..512 {
            chunk.store_word(directory, entry, ((index * 512 + entry) as u64) << 21 | 0x80 | OPEN);
        }
    }
    let mut page = [0u8; 0x140];
    page[..STORE.len()].copy_from_slice(&STORE);
    page[0x100..0x100 + SCATTER.len()].copy_from_slice(&SCATTER);
    for (index, word) in page.as_chunks::<8>().0.iter().enumerate() {
        chunk.store_word(PROGRAM_PAGE, index, u64::from_le_bytes(*word));
    }
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let flat = kvm_segment { base: 0, limit: u32::MAX, present: 1, dpl: 3, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 0x2b, type_: 3, db: 1, ..flat };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = kvm_segment { selector: 0x33, type_: 11, l: 1, ..flat };
    (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.cr0 = 0x8000_0033; // paging, protection, native FPU errors
    sregs.cr3 = SYSTEM;
    sregs.cr4 = 0x20; // physical address extension
    sregs.efer = 0x500; // long mode, enabled and active
    vcpu.set_sregs(&sregs)
}
