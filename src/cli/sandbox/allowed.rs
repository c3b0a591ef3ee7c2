//! The system calls of a receiver that has been set up.
//!
//! Those that its own code and its C library make (glibc, musl), and close relatives that another version of these may use
//! instead. A call that is harmless only with some arguments is allowed with these.

use std::collections::BTreeMap;

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// What is allowed to the process of this number: call by call, a list of rules, one of which must hold; all are empty
/// where anything goes.
pub(super) fn rules(process: u32) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<_, _> = FREELY.iter().map(|&call| (call, Vec::new())).collect();
    for (call, alternatives) in with_arguments(process) {
        let alternatives = alternatives.into_iter().map(rule).collect::<Result<_, _>>()?;
        let before = rules.insert(call, alternatives);
        debug_assert!(before.is_none(), "call {call} is in both tables");
    }
    Ok(rules)
}

/// What an argument must be: its number, and the value of the bits of it that are looked at.
type Argument = (u8, u64, u64);

/// All of an `int`, whose upper half in the register is nobody's.
const INT: u64 = 0xffff_ffff;

fn rule(arguments: Vec<Argument>) -> Result<SeccompRule, BackendError> {
    let condition = |(index, bits, value): Argument| {
        let length = if bits > INT { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
        SeccompCondition::new(index, length, SeccompCmpOp::MaskedEq(bits), value)
    };
    SeccompRule::new(arguments.into_iter().map(condition).collect::<Result<_, _>>()?)
}

fn with_arguments(process: u32) -> Vec<(i64, Vec<Vec<Argument>>)> {
    let is = |argument: u8, value: u32| vec![(argument, INT, u64::from(value))];
    let [thread, exec] = [libc::CLONE_THREAD, libc::PROT_EXEC].map(|bit| u64::from(bit.cast_unsigned()));
    let requests = REQUESTS.iter().map(|&request| is(1, request)).chain(REQUEST_TYPES.iter().map(|&kind| vec![(1, 0xff00, u64::from(kind) << 8)]));
    let naming = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA].map(|option| is(0, option.cast_unsigned()));
    vec![
        // A thread, not a process.
        (libc::SYS_clone, vec![vec![(0, thread, thread)]]),
        // No new code.
        (libc::SYS_mmap, vec![vec![(2, exec, 0)]]),
        (libc::SYS_mprotect, vec![vec![(2, exec, 0)]]),
        (libc::SYS_ioctl, requests.collect()),
        // A pair, which leads nowhere else.
        (libc::SYS_socketpair, vec![is(0, libc::AF_UNIX.cast_unsigned())]),
        // vCPUs are kicked, and a panic may end in SIGABRT.
        (libc::SYS_tgkill, vec![is(0, process)]),
        // Itself, to give advice about its memory.
        (libc::SYS_pidfd_open, vec![is(0, process)]),
        // Their own priority and processors.
        (libc::SYS_sched_getattr, vec![is(0, 0)]),
        (libc::SYS_sched_setaffinity, vec![is(0, 0)]),
        (libc::SYS_sched_setattr, vec![is(0, 0)]),
        (libc::SYS_sched_setscheduler, vec![is(0, 0)]),
        (libc::SYS_setpriority, vec![[is(0, libc::PRIO_PROCESS), is(1, 0)].concat()]),
        (libc::SYS_prctl, naming.into()),
        // Limits are read, not set: the new one is a null pointer.
        (libc::SYS_prlimit64, vec![vec![(2, u64::MAX, 0)]]),
    ]
}

/// Requests of sockets and terminals that take nothing apart (include/uapi/asm-generic/ioctls.h), and the page map's.
const REQUESTS: &[u32] = &[
    // FIONBIO
    0x5421,
    // FIONREAD
    0x541b,
    // TIOCOUTQ
    0x5411,
    // TCGETS
    0x5401,
    // TIOCGWINSZ
    0x5413,
    // PAGEMAP_SCAN
    0xc060_6610,
];

/// Types of requests, include/uapi/linux/{kvm,userfaultfd}.h: all of KVM's, all of userfaultfd's.
const REQUEST_TYPES: &[u32] = &[0xae, 0xaa];

/// Whatever the arguments are.
const FREELY: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_process_madvise,
    libc::SYS_userfaultfd,
    // Threads.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getpriority,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // Signals.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // Files. Which ones is the other layer's to say.
    libc::SYS_close,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Connections that come. None are made.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Facts.
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // As older C libraries ask for the same.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];
