//! System calls that a seccomp filter traps: each is named on standard error, once, and fails with EPERM.
//!
//! A filter can answer with an error number by itself, but then nobody learns why something does not work; or it can end
//! the process, and whatever else that process holds with it. So it sends SIGSYS, and the handler here puts the error
//! number where the call would have left its result. What called goes on as if the system had refused.
//!
//! The handler may interrupt anything, so it allocates nothing and takes no lock. The C library sets `errno` from the
//! result after the handler has returned, whatever happened to it here.
//!
//! <https://man7.org/linux/man-pages/man2/seccomp.2.html> (`SECCOMP_RET_TRAP`),
//! <https://man7.org/linux/man-pages/man7/signal-safety.7.html>

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// Has trapped calls answered, in all threads, from now on.
pub(crate) fn answer() -> io::Result<()> {
    // SAFETY: an all-zero action is a valid one: default handler, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = refuse as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does what a handler may do.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn refuse(_signal: libc::c_int, info: *const libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid one, for as long as the handler runs.
    if unsafe { (*info).si_code } != SYS_SECCOMP {
        return;
    }
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's context, and nobody else's while the handler
    // runs.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    let number = refused(registers);
    if is_new(number) {
        say(number);
    }
}

/// Makes the call fail; which it was. The kernel has put the registers back to what they were before it.
#[cfg(target_arch = "x86_64")]
fn refused(registers: &mut libc::mcontext_t) -> u64 {
    let result = &mut registers.gregs[libc::REG_RAX as usize];
    std::mem::replace(result, -i64::from(libc::EPERM)).cast_unsigned()
}

/// Makes the call fail; which it was. The kernel has put the registers back to what they were before it.
#[cfg(target_arch = "aarch64")]
fn refused(registers: &mut libc::mcontext_t) -> u64 {
    registers.regs[0] = (-i64::from(libc::EPERM)).cast_unsigned();
    registers.regs[8]
}

/// Whether this call was not refused before. Numbers beyond the table count as one.
fn is_new(number: u64) -> bool {
    let place = usize::try_from(number).unwrap_or(usize::MAX).min(SAID.len() * 64 - 1);
    let bit = 1 << (place % 64);
    // Relaxed: the bits are all there is to it.
    SAID[place / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0
}

fn say(number: u64) {
    let mut buffer = [0; 128];
    let mut rest = &mut buffer[..];
    // Cut where the buffer ends, which it does not come to.
    let _ = writeln!(rest, "sandbox: system call {number} is not among those that are allowed, and was refused");
    let length = 128 - rest.len();
    // SAFETY: the bytes are the buffer's; a standard error that is closed or full is an error and no more.
    unsafe { libc::write(libc::STDERR_FILENO, buffer.as_ptr().cast(), length) };
}

/// Calls that were named, a bit to each number.
static SAID: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
/// Why SIGSYS came, in include/uapi/asm-generic/siginfo.h.
const SYS_SECCOMP: libc::c_int = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_named_once() {
        for number in [1000, 1001, 1_000_000, u64::MAX] {
            assert_eq!([is_new(number), is_new(number)], [number != u64::MAX, false], "{number}");
        }
    }
}
