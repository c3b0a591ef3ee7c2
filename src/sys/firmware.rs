//! The firmware that brings a PC to the program of the KVM guest.
//!
//! For a VMM that starts its machines as PCs. The code is assembled with this crate and reads nothing but memory; what
//! it needs there is said at its head, in `firmware.s`.

/// The code, to lie at guest-physical 0xf0000.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const pageferry_firmware;
    let length = (&raw const pageferry_firmware_end).addr() - start.addr();
    // SAFETY: the two symbols are the ends of what the assembly below puts into one section of this program, which is
    // mapped for ever and never written to; the compiler knows no object of another size there.
    unsafe { std::slice::from_raw_parts(start, length) }
}

std::arch::global_asm!(include_str!("firmware.s"));

// SAFETY: both symbols are defined by the assembly above; the second is the end of the first and is never read.
unsafe extern "C" {
    safe static pageferry_firmware: u8;
    safe static pageferry_firmware_end: u8;
}
