//! The pages of the KVM guest's program: its code and its page tables.
//!
//! The tables map all of guest memory to itself in pages of 2 MiB, writable and for user mode. Their accessed and dirty
//! bits are set from the start, so that running the guest does not change them: what was built is what must be there
//! at the end.

use crate::guests::PROGRAM_BYTES;
use crate::guests::check::Program;
use crate::guests::spec::{GuestSpec, MAX_GUEST_BYTES};
use crate::sys::kvm_vm;
use crate::units::{GuestAddr, PAGE_SIZE, PAGE_WORDS};

/// Where the code begins.
pub(super) const CODE: GuestAddr = GuestAddr(0x1_0000);
/// The top page table (level 4). One of level 3 follows, then as many of level 2 as the memory has GiB.
pub(super) const TABLES: GuestAddr = GuestAddr(0x10_0000);

const _: () = assert!(TABLES.0 + (2 + MAX_GUEST_BYTES.0 / GIB) * PAGE_SIZE as u64 <= PROGRAM_BYTES.0);
const _: () = assert!(MAX_GUEST_BYTES.0 <= PAGE_WORDS as u64 * GIB);

/// All pages of the program but the control page.
pub(super) fn pages(spec: &GuestSpec) -> Program {
    let mut program = Program::new();
    for (number, bytes) in (CODE.0 / PAGE_SIZE as u64..).zip(kvm_vm::program().chunks(PAGE_SIZE)) {
        let mut page = Box::new([0; PAGE_WORDS]);
        for (word, bytes) in page.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        program.insert(number, page);
    }
    let first = TABLES.0 / PAGE_SIZE as u64;
    let memory = spec.memory().0;
    program.insert(first, table(1, |_| entry(first + 1, TABLE)));
    program.insert(first + 1, table(memory.div_ceil(GIB), |index| entry(first + 2 + index, TABLE)));
    for gib in 0..memory.div_ceil(GIB) {
        let mapped = (memory - gib * GIB).min(GIB).div_ceil(LARGE_PAGE);
        program.insert(first + 2 + gib, table(mapped, |index| entry((gib * GIB + index * LARGE_PAGE) / PAGE_SIZE as u64, TABLE | DIRTY | LARGE)));
    }
    program
}

fn table(entries: u64, entry: impl Fn(u64) -> u64) -> Box<[u64; PAGE_WORDS]> {
    let mut page = Box::new([0; PAGE_WORDS]);
    (0..entries).zip(page.iter_mut()).for_each(|(index, word)| *word = entry(index));
    page
}

fn entry(page: u64, flags: u64) -> u64 {
    (page * PAGE_SIZE as u64) | flags
}

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
/// Present, writable, for user mode, accessed.
const TABLE: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::control::{CONTROL_PAGE, Field};
    use crate::guests::pattern::{GOLDEN, MIX_1, MIX_2, Pattern};

    #[test]
    fn the_assembly_names_the_same_offsets() {
        let source = include_str!("../../sys/kvm_program.s");
        let fields = [
            ("WRITES", Field::Writes),
            ("LAST_WRITE", Field::LastWrite),
            ("LONGEST_GAP", Field::LongestGap),
            ("DUE", Field::Due),
            ("CLOCK_GENERATION", Field::ClockGeneration),
            ("CLOCK_SCALE", Field::ClockScale),
            ("CLOCK_OFFSET", Field::ClockOffset),
            ("PERIOD", Field::Period),
            ("BACKLOG", Field::Backlog),
            ("PATTERN", Field::Pattern),
            ("SEED", Field::Seed),
            ("WORKING_SET", Field::WorkingSet),
            ("HOT_PAGES", Field::HotPages),
            ("HOT_SHARE", Field::HotShare),
        ];
        for (name, field) in fields {
            assert!(source.contains(&format!("\n.set {name}, {}\n", field.offset())), "{name}");
        }
        for (name, pattern) in [("SWEEP", Pattern::Sweep), ("REWRITE", Pattern::Rewrite)] {
            let position = Pattern::ALL.iter().position(|known| *known == pattern).unwrap();
            assert!(source.contains(&format!("\n.set {name}, {position}\n")), "{name}");
        }
        assert!(source.contains(&format!("\n.set WORKING_SET_START, {:#x}\n", PROGRAM_BYTES.0)));
        for (register, constant) in [("r13", GOLDEN), ("r14", MIX_1), ("r15", MIX_2)] {
            assert!(source.contains(&format!("movabs  {register}, {constant:#x}\n")), "{register}");
        }
    }

    #[test]
    fn the_tables_map_all_of_memory_and_nothing_else() {
        let spec: GuestSpec = "kvm:memory=2050MiB".parse().unwrap();
        let program = pages(&spec);
        let first = TABLES.0 / PAGE_SIZE as u64;
        assert_eq!(program.len(), 1 + 5, "code, two upper tables, three lower ones");
        assert!(!program.contains_key(&CONTROL_PAGE));
        assert_eq!(program[&(first + 1)].iter().filter(|entry| **entry != 0).count(), 3);
        let mapped: Vec<u64> = (0..3).flat_map(|gib| *program[&(first + 2 + gib)]).take_while(|entry| *entry != 0).collect();
        assert_eq!(mapped.len(), 1025);
        assert!((0..).zip(&mapped).all(|(index, entry)| *entry == (index * LARGE_PAGE) | 0xe7));
    }
}
