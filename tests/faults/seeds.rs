//! Seeds that once failed. Every run begins with them.

/// A seed, and the case that it has to mean for this to be worth anything.
pub(crate) const ONCE_FAILED: [(u64, &str); 8] = [
    // The receiver waited for a page to resume the guest, from a source that was dead, and never said so.
    (2248, "Commit Killed(Sender): Hybrid(1) workload rewrite x1 auto anonymous-memfd"),
    (2335, "Commit Killed(Sender): Hybrid(1) workload random x2 zstd anonymous-anonymous"),
    (2480, "Commit Killed(Sender): Hybrid(2) workload random x4 lz4 hugetlb-memfd"),
    (2486, "Commit OutOfMemory(Sender): PostCopy workload rewrite x3 auto anonymous-anonymous"),
    // A record of the handshake that could not be opened was looked at twice, and rustls panicked.
    (10393, "Handshake Flip: PreCopy kvm sweep x4 none anonymous-hugetlb tls"),
    // On a busy host the receiver's vCPU took longer to set up than the sender waits.
    (21836, "Handshake ClockJump(Receiver): Hybrid(2) kvm hot-cold x2 auto anonymous-anonymous tls"),
    // A Commit that waited in a socket, and came late, was not seen by the network that delivered it.
    (90347, "Pause Overtaken: Hybrid(1) workload hot-cold x4 none anonymous-memfd"),
    // The receiver was stopped for as long as it waits for the guest's first write, and the guest with it.
    (90442, "End LongStop(Receiver): Auto kvm random x4 auto anonymous-hugetlb"),
];
