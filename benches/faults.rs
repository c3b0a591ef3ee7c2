//! What a fault on a missing page costs on this host: the kernel's own round trip, and everything that post-copy does
//! for it but the network, alone and with pages arriving in bulk.
//!
//! Prints a table; the times are those that the faulting thread sees. `-- --test` measures a few of each only.
#![expect(unsafe_code, reason = "calls userfaultfd itself to compare with")]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pageferry::destination::local_faults;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout};
use pageferry::units::{PAGE_SIZE, PageCount, PageIndex};
use userfaultfd::{Event, FeatureFlags, RegisterMode, UffdBuilder};

/// Pages that arrive in bulk meanwhile: enough to last.
const BULK: PageCount = PageCount(200_000);

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--test");
    let faults = if smoke { 50 } else { 20_000 };
    println!("{:<44} {:>9} {:>9} {:>9}  {:>12}", "", "p50", "p99", "max", "bulk pages");
    for backing in [Backing::Anonymous, Backing::Memfd, Backing::HugeTlb] {
        let faults = if backing == Backing::HugeTlb { faults / 400 } else { faults };
        match bare(backing, faults) {
            Ok(mut times) => {
                times.sort_unstable();
                let at = |share: usize| times[(times.len() - 1) * share / 100];
                line(&format!("{backing}: the kernel's round trip"), [at(50), at(99), at(100)], None);
            }
            Err(error) => eprintln!("skipped: {backing}: {error}"),
        }
        for bulk in [PageCount(0), if backing == Backing::HugeTlb { PageCount(8 * 512) } else { BULK }] {
            match local_faults(backing, faults, if smoke { PageCount(bulk.0 / 100) } else { bulk }) {
                Ok(ours) => {
                    let what = if bulk.0 == 0 { "" } else { ", bulk arriving" };
                    line(&format!("{backing}: post-copy, source at hand{what}"), [ours.p50, ours.p99, ours.max], Some(ours.bulk));
                }
                Err(error) => eprintln!("skipped: {backing}: {}", error.in_full()),
            }
        }
    }
}

fn line(what: &str, times: [Duration; 3], bulk: Option<PageCount>) {
    let [p50, p99, max] = times.map(|time| format!("{:.1} us", time.as_secs_f64() * 1e6));
    println!("{what:<44} {p50:>9} {p99:>9} {max:>9}  {:>12}", bulk.map_or_else(String::new, |pages| pages.0.to_string()));
}

/// One thread faults, another polls, reads and copies: nothing else.
fn bare(backing: Backing, faults: u32) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let granule = if backing == Backing::HugeTlb { 512 } else { 1 };
    let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(u64::from(faults) * granule))?, backing)?;
    let features = FeatureFlags::MISSING_SHMEM | FeatureFlags::MISSING_HUGETLBFS;
    let uffd = UffdBuilder::new().close_on_exec(true).non_blocking(true).user_mode_only(false).require_features(features).create()?;
    let region = &memory.regions()[0];
    uffd.register_with_mode(region.host().as_ptr().cast(), region.len(), RegisterMode::MISSING)?;
    let page = vec![0xa5u8; usize::try_from(granule)? * PAGE_SIZE];
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            for _ in 0..faults {
                let address = loop {
                    poll(&mut [PollFd::new(uffd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).expect("polls");
                    if let Some(Event::Pagefault { addr, .. }) = uffd.read_event().expect("reads") {
                        break addr as usize / page.len() * page.len();
                    }
                };
                // SAFETY: fills a missing page of guest memory, of which nobody knows the contents.
                unsafe { uffd.copy(page.as_ptr().cast(), address as *mut _, page.len(), true) }.expect("copies");
            }
        });
        let mut times = Vec::with_capacity(faults as usize);
        for page in (0..u64::from(faults)).map(|fault| PageIndex(fault * granule)) {
            let begin = Instant::now();
            std::hint::black_box(memory.chunk(page.chunk()).load_word(page.bit(), 0));
            times.push(begin.elapsed());
        }
        answering.join().expect("it does not panic");
        Ok(times)
    })
}
