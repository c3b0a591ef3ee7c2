//! seccomp: which system calls a receiver may still make once it has been set up.
//!
//! A list of what is allowed, and not of what is forbidden: the kernel has hundreds of calls that a receiver never makes,
//! each release brings more, and it is those that nobody thought of which open a way out. Whatever is not on the list is
//! answered in one of two ways:
//! - **Refused, and named on standard error**, which is for all but the next. A new C library, or a way through the code
//!   that no test takes, may need a call that is missing here, and that must not end guests which run already and have
//!   pages at their senders still. Most calls may fail, and what made them says so. (In a thread that has all signals
//!   blocked a refusal is the end: C libraries do that for the moment in which they start a process or a thread.)
//! - **The end of the process**, by SIGSYS, for what has no use but to get out or to look into others: starting a program,
//!   tracing, loading code into the kernel, rearranging mounts and namespaces. No line of the receiver leads there, so
//!   whoever makes such a call is not the receiver any more, and whatever guests it holds are not theirs any more either.
//!
//! `clone3` passes its flags in memory, where no filter can see them. It answers that there is no such call, and C libraries
//! then use `clone`, whose flags are looked at: threads, but no processes.
//!
//! Three programs, because one has room for two answers only; of several the kernel takes the strictest.
//!
//! <https://docs.kernel.org/userspace-api/seccomp_filter.html>

use std::collections::BTreeMap;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, apply_filter};

use super::allowed;
use crate::sys::refused_calls;

/// Confines the calling thread and those that it starts; why not.
pub(super) fn confine() -> Result<(), String> {
    refused_calls::answer().map_err(|error| format!("SIGSYS cannot be handled: {error}"))?;
    let programs = programs().expect("the tables have no empty rules, and few enough of them");
    programs.iter().try_for_each(|program| apply_filter(program)).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => {
            format!("the kernel takes no filter (needs CONFIG_SECCOMP_FILTER): {error}")
        }
        other => other.to_string(),
    })
}

/// In the order in which they are to be applied: the last one no longer allows that.
fn programs() -> Result<[BpfProgram; 3], BackendError> {
    let all = |calls: &[i64]| calls.iter().map(|&call| (call, Vec::new())).collect();
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    Ok([
        program(all(HOSTILE), SeccompAction::Allow, SeccompAction::KillProcess)?,
        program(all(&[libc::SYS_clone3]), SeccompAction::Allow, absent)?,
        program(allowed::rules(std::process::id())?, SeccompAction::Trap, SeccompAction::Allow)?,
    ])
}

fn program(rules: BTreeMap<i64, Vec<SeccompRule>>, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matched, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// What ends the process.
const HOSTILE: &[i64] = &[
    // Another program, another process's memory or descriptors.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Code in the kernel, and ways around a filter.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    // Another view of the system.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    // Other rights, and secrets.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // What is everybody's.
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_the_end() {
        let allowed = allowed::rules(1).unwrap();
        for call in HOSTILE {
            assert!(!allowed.contains_key(call), "{call}");
        }
        assert_eq!(programs().unwrap().iter().filter(|program| program.is_empty()).count(), 0);
    }
}
