//! What threads share, the argument for each piece, and the types it is made of: the standard library's, or
//! [loom](https://docs.rs/loom)'s where models are run.
//!
//! A model is a test in a module `models` beside what it is about. Loom runs it in every order of its threads' steps, with
//! every value that the memory model lets a load see:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --lib --no-default-features --features userfaultfd --target-dir target/loom models::
//! ```
//!
//! Loom knows sequential consistency for fences only, so that is where it is used here. It does not know the kernel, nor
//! what another process or a guest does to memory.
//!
//! | shared | by | what makes it right | shown by |
//! |---|---|---|---|
//! | [`SharedBitmap`](crate::bitmap::SharedBitmap) | whoever writes for the guest, and who harvests | a mark is released after the write and acquired by the swap that takes it | `bitmap::shared::models` |
//! | `Remaining` of the pusher | urgent and bulk lanes of the source | the bit that `fetch_and` clears decides, for a huge page the bit of the whole; nothing is passed on with it, the guest being paused | `source::push::remaining::models` |
//! | `Sets` of an incomplete memory | installers, fault server, recovery | bits decide who installs; *arrived* is released after the page is in place; fences between a mark and a look at the other's mark; the count is released last | `destination::faults::sets::models` |
//! | [`Gate`](crate::sys::gate) | installers; who marks pages as removed | a mutex a slot, all of them for exclusive access, so what lies behind it may be relaxed | `sys::gate::models` |
//! | `Budget` of a receiver | its connections | one lock around look and take; another, outside it, around asking the kernel | `destination::budget::models` |
//! | [`Pacer`](crate::transport::Pacer), limits, push order, waiters, the urgent lane's requests, TLS halves, sessions, what is held of guests' states, a fleet's berths and chooser, what huge pages cost, the programs' guests on their way | | a lock around everything there is. Locks nest in one order: registry, machine, connection that waits; a TLS half, then the keys (a half that says farewell only tries the other) | by reading |
//! | a fleet's turns | who waits for one, who grants it | the line and what is free behind a lock; a grant is released to the flag of the one who waits, who acquires it, and is unparked after that | by reading |
//! | `Live`, `Arrived`, counters of the pusher and of faults | workers and who shows progress | relaxed: a late look shows a little less; before the final reckoning the threads are joined, or the last frame's result has come over a channel | by reading |
//! | `Path` of a migration's connections | their workers | relaxed: sums for an estimate of the link | by reading |
//! | how an extent of memory is populated | workers of the destination | a cell that is set once: the others wait for it; stretches count relaxed, being a bound that may be exceeded by a few | by reading |
//! | halt of a round, stop of `bring`, of the workload's and the bench's threads | | relaxed: a flag that is looked at again soon; what follows it waits for a join or a channel | by reading |
//! | where a beat is, how long it lasts | a thread that works, the one that beats for it | relaxed: a late look beats once more; a beat that rests is unparked by whoever finds that none was left | by reading |
//! | `stopped` of a generation of lanes | who stops it, its lanes' threads | released before the sockets are shut down, so that an error which that causes is not taken for a broken lane | by reading |
//! | sessions begun, connections of a receiver | accepting thread, connections | a session is counted while its connection is, and a connection counts off only after what it did is in the registry: acquire and release on both | by reading |
//! | `owes_update` of a TLS session | its two halves | a flag, taken by a swap: an update is sent once, before the next data | by reading |
//! | right to the soft-dirty bits | trackers of the process | a lock that is only tried: acquire and release | by reading |
//! | order of a vCPU, its throttle | driver and vCPU | relaxed: one word, changed by compare and exchange; the guest's memory and registers pass through the channel on which the vCPU is handed over | by reading |
//! | guest memory | guest, encoder, installers, kernel | relaxed words: a torn read is of a page whose mark comes after it and that is sent again (see [`dirty`](crate::dirty)) | the trackers' race test |
//!
//! # ThreadSanitizer
//! It watches what loom cannot run, threads that wait in the kernel and for sockets:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
//!     cargo test --lib --target x86_64-unknown-linux-gnu --target-dir target/tsan
//! ```
//!
//! That works with a stable compiler, but with a standard library that was built without it: the slow path of a lock, and
//! the fence before an `Arc` frees what it held, are edges that it does not see (nor does it see any other fence). Over the
//! tests of `bitmap`, `destination`, `dirty`, `guests`, `source`, `sys::gate` and `transport` it reported 68 races in 95 tests, each of
//! them in memory that a lock, a channel or an `Arc` of the standard library guards, none on a word of a bitmap, of the
//! sets, or of guest memory (whole pages of which are copied out of its sight, in assembly). So it is something to look at after a change here, not a step that passes or fails.

#[cfg(loom)]
pub(crate) use loom::sync::{Arc, Mutex, atomic};
#[cfg(not(loom))]
pub(crate) use std::sync::{Arc, Mutex, atomic};
