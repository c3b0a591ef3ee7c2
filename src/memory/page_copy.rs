//! Copying pages that others may be writing to.
//!
//! Words that are shared are read and written as atomics, and compilers make a move of its own of each. A processor has
//! moves that take two; those have to be asked for in assembly. To the compiler they are what so many relaxed accesses
//! would be. What it gains is seen with pages that are in no cache: a tenth of what it takes to apply a chunk.

use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU64;

use crate::units::{PAGE_SIZE, PAGE_WORDS};

/// Fills `to` with `page`.
#[inline]
pub(crate) fn copy_out<'t>(page: &[AtomicU64; PAGE_WORDS], to: &'t mut [MaybeUninit<u8>; PAGE_SIZE]) -> &'t [u8; PAGE_SIZE] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: both are a page, one of atomics that may be read at any time, the other borrowed mutably, so that they are apart.
    unsafe {
        in_pairs(page.as_ptr().cast(), to.as_mut_ptr().cast());
    };
    #[cfg(not(target_arch = "x86_64"))]
    for (word, to) in page.iter().zip(to.as_chunks_mut::<8>().0) {
        *to = word.load(std::sync::atomic::Ordering::Relaxed).to_le_bytes().map(MaybeUninit::new);
    }
    // SAFETY: every byte has been written.
    unsafe { &*std::ptr::from_ref(to).cast() }
}

/// Sets `to` to `page`.
#[inline]
pub(crate) fn copy_in(page: &[u8; PAGE_SIZE], to: &[AtomicU64; PAGE_WORDS]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: both are a page, one borrowed, the other of atomics, which may be written to at any time; a plain borrow of
    // what changes under it there cannot be, so that they are apart.
    unsafe {
        in_pairs(page.as_ptr(), to.as_ptr().cast_mut().cast());
    };
    #[cfg(not(target_arch = "x86_64"))]
    for (to, word) in to.iter().zip(page.as_chunks::<8>().0) {
        to.store(u64::from_le_bytes(*word), std::sync::atomic::Ordering::Relaxed);
    }
}

/// Copies a page, two words at a time.
///
/// # Safety
/// `from` can be read and `to` written to for the length of a page, and the two do not overlap.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn in_pairs(from: *const u8, to: *mut u8) {
    // SAFETY: touches the two pages only, which the caller vouches for, and SSE2 is part of x86-64.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, [{from} + {at}]",
            "movdqu {b}, [{from} + {at} + 16]",
            "movdqu {c}, [{from} + {at} + 32]",
            "movdqu {d}, [{from} + {at} + 48]",
            "movdqu [{to} + {at}], {a}",
            "movdqu [{to} + {at} + 16], {b}",
            "movdqu [{to} + {at} + 32], {c}",
            "movdqu [{to} + {at} + 48], {d}",
            "add {at}, 64",
            "jnz 2b",
            // From the end, so that the counter is the offset as well.
            from = in(reg) from.wrapping_add(PAGE_SIZE),
            to = in(reg) to.wrapping_add(PAGE_SIZE),
            at = inout(reg) -PAGE_SIZE.cast_signed() => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_page_goes_in_and_comes_out_wherever_the_bytes_lie() {
        let bytes: Vec<u8> = (0..3 * PAGE_SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect();
        for offset in [0, 1, 7, 8, 4095, PAGE_SIZE] {
            let page: &[u8; PAGE_SIZE] = bytes[offset..].first_chunk().unwrap();
            let words: [AtomicU64; PAGE_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
            copy_in(page, &words);
            assert!(words.iter().zip(page.as_chunks::<8>().0).all(|(word, bytes)| word.load(Ordering::Relaxed).to_le_bytes() == *bytes));
            let mut out = [MaybeUninit::new(0xa5); 3 * PAGE_SIZE];
            let copied = copy_out(&words, out[offset..].first_chunk_mut().unwrap());
            assert!(copied == page);
            // SAFETY: all of it was initialised.
            let around = |byte: &MaybeUninit<u8>| unsafe { byte.assume_init() } == 0xa5;
            assert!(out[..offset].iter().chain(&out[offset + PAGE_SIZE..]).all(around), "nothing beside it was written to");
        }
    }
}
