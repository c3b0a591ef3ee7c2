//! Cases that once failed, by the seeds that mean them. Every run begins with them.

/// A seed, and the case that it has to mean for this to be worth anything.
pub(crate) const ONCE_FAILED: [(u64, &str); 8] = [
    // The receiver waited for a page to resume the guest, from a source that was dead, and never said so.
    (4_321_035, "Commit Killed(Sender): Hybrid(1) workload rewrite x1 auto anonymous-memfd"),
    (1_475_379, "Commit Killed(Sender): Hybrid(1) workload random x2 zstd anonymous-anonymous"),
    (71_663_937, "Commit Killed(Sender): Hybrid(2) workload random x4 lz4 hugetlb-memfd"),
    (5_064_729, "Commit OutOfMemory(Sender): PostCopy workload rewrite x3 auto anonymous-anonymous"),
    // A record of the handshake that could not be opened was looked at twice, and rustls panicked.
    (5_060_193_281, "Handshake Flip: PreCopy kvm sweep x4 none anonymous-hugetlb tls"),
    // On a busy host the receiver's vCPU took longer to set up than the sender waits.
    (902_578, "Handshake ClockJump(Receiver): Hybrid(2) kvm hot-cold x2 auto anonymous-anonymous tls"),
    // A Commit that waited in a socket, and came late, was not seen by the network that delivered it.
    (461_649, "Pause Overtaken: Hybrid(1) workload hot-cold x4 none anonymous-memfd"),
    // The receiver was stopped for as long as it waits for the guest's first write, and the guest with it.
    (81_503_618, "End LongStop(Receiver): Auto kvm random x4 auto anonymous-hugetlb"),
];
