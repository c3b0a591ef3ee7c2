//! The registers of the KVM guest as bytes: what a handover moves beside memory.
//!
//! The general registers come first (18 words of 64 bits in KVM's order: rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 to
//! r15, rip, rflags), then cr0, cr3, cr4, cr8 and efer, then the segments cs, ds, es, fs, gs, ss in three words each:
//! base, limit, and `selector | type << 16 | dpl << 24 | present << 32 | s << 33 | l << 34 | db << 35 | g << 36`.
//! Little-endian.
//!
//! The program uses neither floating point nor vector registers, changes no system register and takes no interrupt; so
//! these are all. And that is why what arrives is compared with what the program runs with: a peer cannot put the vCPU
//! into any other mode. What it can choose is the general registers, and they only matter to the program.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::program::{CODE, TABLES};
use crate::guests::control::CONTROL_PAGE;
use crate::guests::state::StateError;
use crate::sys::kvm_vm;
use crate::units::PAGE_SIZE;

/// Length of the registers as bytes.
pub(super) const REGISTER_BYTES: usize = (GENERAL + SYSTEM.len() + SEGMENTS.len() * 3) * 8;

/// The general registers at the program's entry.
pub(super) fn entry() -> kvm_regs {
    kvm_regs { rip: CODE.0, rbx: CONTROL_PAGE * PAGE_SIZE as u64, rflags: FLAGS_FIXED, ..Default::default() }
}

/// Puts the program's mode into `sregs`: 64-bit code at CPL 3 with our page tables. The rest stays as KVM has it.
pub(super) fn set_mode(sregs: &mut kvm_sregs) {
    let data = kvm_segment { limit: u32::MAX, selector: 0x33, type_: 3, present: 1, dpl: 3, s: 1, db: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x2b, type_: 11, db: 0, l: 1, ..data };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, selector: 0x8, type_: 11, present: 1, ..Default::default() };
    // Empty: whatever would need a descriptor or a handler shuts the machine down.
    (sregs.gdt, sregs.idt) = (kvm_dtable::default(), kvm_dtable::default());
    sregs.cr0 = CR0_PG | CR0_NE | CR0_ET | CR0_MP | CR0_PE;
    sregs.cr3 = TABLES.0;
    sregs.cr4 = CR4_PAE;
    sregs.cr8 = 0;
    sregs.efer = EFER_LMA | EFER_LME;
}

/// The registers of a paused vCPU as bytes.
pub(super) fn encode(regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<u8> {
    let words = general(regs).into_iter().chain(system(sregs)).chain(segments(sregs).into_iter().flatten());
    words.flat_map(u64::to_le_bytes).collect()
}

/// The general registers in `bytes`, which must be [`REGISTER_BYTES`] long and hold the mode of `sregs`.
pub(super) fn decode(bytes: &[u8], sregs: &kvm_sregs) -> Result<kvm_regs, StateError> {
    let wrong_length = StateError::Length { found: bytes.len(), expected: REGISTER_BYTES };
    let (words, []) = bytes.as_chunks::<8>() else { return Err(wrong_length) };
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let Some((general, mode)) = words.split_first_chunk::<GENERAL>() else { return Err(wrong_length) };
    let expected = system(sregs).into_iter().chain(segments(sregs).into_iter().flatten());
    let names = SYSTEM.into_iter().chain(SEGMENTS.into_iter().flat_map(|name| [name; 3]));
    if mode.len() * 8 + GENERAL * 8 != REGISTER_BYTES {
        return Err(wrong_length);
    }
    for ((&found, expected), register) in mode.iter().zip(expected).zip(names) {
        if found != expected {
            return Err(StateError::Register { register, found });
        }
    }
    let mut regs = from_general(general);
    let code = CODE.0..CODE.0 + kvm_vm::program().len() as u64;
    if !code.contains(&regs.rip) {
        return Err(StateError::Register { register: "rip", found: regs.rip });
    }
    if regs.rflags & !(FLAGS_ARITHMETIC | FLAGS_ANY_HOST) != FLAGS_FIXED {
        return Err(StateError::Register { register: "rflags", found: regs.rflags });
    }
    regs.rflags &= FLAGS_ARITHMETIC | FLAGS_FIXED;
    Ok(regs)
}

fn general(regs: &kvm_regs) -> [u64; GENERAL] {
    let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } = *regs;
    [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags]
}

fn from_general(words: &[u64; GENERAL]) -> kvm_regs {
    let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] = *words;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn system(sregs: &kvm_sregs) -> [u64; SYSTEM.len()] {
    [sregs.cr0, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer]
}

fn segments(sregs: &kvm_sregs) -> [[u64; 3]; SEGMENTS.len()] {
    [sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss].map(|segment| {
        let bits = [segment.present, segment.s, segment.l, segment.db, segment.g];
        let bits = (32..).zip(bits).fold(0, |word, (at, bit)| word | u64::from(bit & 1) << at);
        let attributes = u64::from(segment.selector) | u64::from(segment.type_) << 16 | u64::from(segment.dpl) << 24 | bits;
        [segment.base, u64::from(segment.limit), attributes]
    })
}

const GENERAL: usize = 18;
const SYSTEM: [&str; 5] = ["cr0", "cr3", "cr4", "cr8", "efer"];
const SEGMENTS: [&str; 6] = ["cs", "ds", "es", "fs", "gs", "ss"];

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Always one.
const FLAGS_FIXED: u64 = 1 << 1;
/// Carry, parity, adjust, zero, sign, overflow: what the program's instructions change.
const FLAGS_ARITHMETIC: u64 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11;
/// Resume and interrupt flag: some hosts show them, none of them means anything here.
const FLAGS_ANY_HOST: u64 = 1 << 16 | 1 << 9;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mode() -> kvm_sregs {
        let mut sregs = kvm_sregs::default();
        set_mode(&mut sregs);
        sregs
    }

    #[test]
    fn registers_are_read_back() {
        let regs = kvm_regs { rax: 1, r15: u64::MAX, rip: CODE.0 + 5, rflags: 0x8d7, ..entry() };
        let bytes = encode(&regs, &mode());
        assert_eq!(bytes.len(), REGISTER_BYTES);
        assert_eq!(decode(&bytes, &mode()), Ok(regs));
    }

    #[test]
    fn no_other_mode_gets_in() {
        let bytes = encode(&entry(), &mode());
        let with = |word: usize, value: u64| {
            let mut bytes = bytes.clone();
            bytes[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
            match decode(&bytes, &mode()).unwrap_err() {
                StateError::Register { register, found } if found == value => register,
                other => panic!("{other}"),
            }
        };
        assert_eq!(with(16, CODE.0 - 1), "rip");
        assert_eq!(with(16, CODE.0 + kvm_vm::program().len() as u64), "rip");
        assert_eq!(with(17, 0), "rflags");
        assert_eq!(with(17, 2 | 1 << 17), "rflags");
        assert_eq!(with(18, 0), "cr0");
        assert_eq!(with(19, 0), "cr3");
        assert_eq!(with(22, 0), "efer");
        let attributes = segments(&mode())[0][2];
        assert_eq!(with(23 + 2, attributes & !(3 << 24)), "cs", "CPL 0");
        assert_eq!(with(23 + 15, 1), "ss", "a base");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..REGISTER_BYTES + 16)) {
            let _ = decode(&bytes, &mode());
        }
    }
}
