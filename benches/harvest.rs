//! What tracking costs: arming, and harvests of 1 GiB of populated memory, clean and with pages written.
//!
//! Throughput counts the bytes looked at, written or not.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pageferry::bitmap::PageBitmap;
use pageferry::dirty::{self, Choice, DirtyTracker, Marks, Tracked, TrackerKind};
use pageferry::memory::{Backing, GuestMemory, MemoryLayout};
use pageferry::units::{PageCount, PageIndex};

const PAGES: u64 = 1 << 18;

/// Trackers that need nothing but memory, and what to call them. A VMM that marks its discards spares shared memory
/// the look for holes.
const CASES: [(TrackerKind, Backing, bool, &str); 4] = [
    (TrackerKind::WriteProtect, Backing::Anonymous, false, "write-protect/anonymous"),
    (TrackerKind::WriteProtect, Backing::Memfd, false, "write-protect/memfd"),
    (TrackerKind::WriteProtect, Backing::Memfd, true, "write-protect/memfd-discards-marked"),
    (TrackerKind::SoftDirty, Backing::Anonymous, false, "soft-dirty/anonymous"),
];

fn open(kind: TrackerKind, memory: &Arc<GuestMemory>, discards_marked: bool) -> Result<Box<dyn DirtyTracker>, dirty::DirtyError> {
    let marks = Marks::new(memory.layout());
    let marks = if discards_marked { marks.with_discards() } else { marks };
    dirty::open(Choice::Only(kind), &Tracked { marks, ..Tracked::plain(Arc::clone(memory)) })
}

fn write(memory: &GuestMemory, step: usize) {
    for page in (0..PAGES).step_by(step).map(PageIndex) {
        memory.chunk(page.chunk()).store_word(page.bit(), 0, 1);
    }
}

fn trackers(c: &mut Criterion) {
    for (kind, backing, discards_marked, name) in CASES {
        let memory = Arc::new(GuestMemory::allocate(MemoryLayout::flat(PageCount(PAGES)).expect("1 GiB"), backing).expect("1 GiB of memory"));
        match open(kind, &memory, discards_marked) {
            Ok(tracker) => measure(c, name, tracker, &memory),
            Err(error) => eprintln!("skipped: {name}: {error}"),
        }
    }
}

fn measure(c: &mut Criterion, name: &str, mut tracker: Box<dyn DirtyTracker>, memory: &GuestMemory) {
    write(memory, 1);
    let empty = PageBitmap::new(memory.layout().chunks());
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(memory.layout().bytes().0)).sample_size(20);
    group.bench_function("arm", |bencher| {
        bencher.iter_custom(|times| {
            let arm = |_| {
                tracker.stop().expect("stops");
                let mut populated = empty.clone();
                let begin = Instant::now();
                tracker.start(&mut populated).expect("starts");
                begin.elapsed()
            };
            (0..times).map(arm).sum::<Duration>()
        });
    });
    let mut found = empty.clone();
    group.bench_function("clean", |bencher| bencher.iter(|| tracker.harvest(black_box(&mut found)).expect("harvests")));
    for one_in in [1000, 100, 2, 1] {
        group.bench_with_input(BenchmarkId::new("written-one-in", one_in), &one_in, |bencher, &one_in| {
            let written = || {
                write(memory, one_in);
                empty.clone()
            };
            bencher.iter_batched_ref(written, |found| tracker.harvest(found).expect("harvests"), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, trackers);
criterion_main!(benches);
