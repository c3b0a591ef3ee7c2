//! What a page costs on its way into a frame and out of it.
//!
//! Memory is 256 MiB and walked in order, a chunk an iteration, so pages come out of DRAM as in a first round.
#![expect(unsafe_code, reason = "the plain memcpy to compare with")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, PageSink, Staging};
use pageferry::page::{Codecs, Decoder, Encoder, EncoderSettings, Method, PageKey, Work};
use pageferry::units::{ByteCount, CHUNK_SIZE, ChunkIndex, PAGE_SIZE, PAGE_WORDS, PageCount};
use pageferry::wire::{FrameReader, FrameWriter};
use twox_hash::XxHash3_64;

const CHUNKS: u32 = 1024;
const TOKEN: [u8; 16] = [5; 16];
const PACKERS: Codecs = Codecs::LZ4.or(Codecs::ZSTD);

/// What memory is full of.
#[derive(Clone, Copy)]
enum Filling {
    Zero,
    /// Two counters, a small random number and a zero, again and again.
    Structs,
    Random,
    /// Random and struct-like pages in turns.
    Half,
}

const FILLINGS: [(&str, Filling); 4] =
    [("zero", Filling::Zero), ("random", Filling::Random), ("half-random", Filling::Half), ("structs", Filling::Structs)];

impl Filling {
    fn word(self, page: u64, index: u64) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Structs => match index % 4 {
                0 => page,
                1 => index,
                2 => mix(page << 9 | index) & 0xffff,
                _ => 0,
            },
            Self::Random => mix(page << 9 | index),
            Self::Half if page.is_multiple_of(2) => Self::Random.word(page, index),
            Self::Half => Self::Structs.word(page, index),
        }
    }
}

/// Scrambles the bits of a number (the finalizer of splitmix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

fn memory(filling: Filling) -> GuestMemory {
    let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(u64::from(CHUNKS) * 64)).unwrap(), Backing::Anonymous).unwrap();
    for chunk in (0..CHUNKS).map(ChunkIndex) {
        for bit in 0..64 {
            (0..PAGE_WORDS).for_each(|index| memory.chunk(chunk).store_word(bit, index, filling.word(chunk.page(bit).0, index as u64)));
        }
    }
    memory
}

/// Chunks in order, for ever.
fn walk() -> impl FnMut() -> ChunkIndex {
    let mut chunks = (0..CHUNKS).map(ChunkIndex).cycle();
    move || chunks.next().expect("endless")
}

fn copies(criterion: &mut Criterion) {
    let memory = memory(Filling::Random);
    let mut group = criterion.benchmark_group("copy a cold chunk");
    group.throughput(Throughput::Bytes(CHUNK_SIZE as u64));
    let mut out = Vec::with_capacity(2 * CHUNK_SIZE);
    let mut next = walk();
    group.bench_function("memcpy", |bencher| {
        bencher.iter(|| {
            out.clear();
            out.extend_from_slice(&[0; 72]);
            let start = memory.regions()[0].host().as_ptr().wrapping_add(next().as_usize() * CHUNK_SIZE);
            for page in 0..64 {
                // SAFETY: a page of the region, which nothing writes to.
                out.extend_from_slice(unsafe { std::slice::from_raw_parts(start.wrapping_add(page * PAGE_SIZE), PAGE_SIZE) });
            }
            black_box(&out);
        });
    });
    let mut next = walk();
    group.bench_function("append_to", |bencher| {
        bencher.iter(|| {
            out.clear();
            out.extend_from_slice(&[0; 72]);
            let chunk = memory.chunk(next());
            (0..64).for_each(|bit| {
                black_box(chunk.append_to(bit, &mut out));
            });
            black_box(&out);
        });
    });
    group.finish();
}

fn settings(codecs: Codecs) -> EncoderSettings {
    EncoderSettings { codecs, key: PageKey::derive(&TOKEN), delta_cache: ByteCount(64 << 20) }
}

fn work(memory: &GuestMemory, chunk: ChunkIndex, method: Method) -> Work<'_> {
    Work { round: 0, chunk, memory: memory.chunk(chunk), mask: u64::MAX, method }
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("make a frame");
    group.throughput(Throughput::Bytes(CHUNK_SIZE as u64));
    for (name, filling) in FILLINGS {
        let memory = memory(filling);
        for (method, codecs) in [(Method::Raw, PACKERS), (Method::Raw, PACKERS.or(Codecs::DELTA)), (Method::Lz4, PACKERS), (Method::Zstd(1), PACKERS)]
        {
            let hashed = if codecs.contains(Codecs::DELTA) { "hashed" } else { "not hashed" };
            let (mut out, mut next) = (Vec::new(), walk());
            let mut writer = FrameWriter::new(Encoder::new(settings(codecs), CHUNKS));
            group.bench_function(BenchmarkId::new(name, format!("{method:?}, {hashed}")), |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..iterations {
                        let chunk = next();
                        if chunk.0 == 0 {
                            // A first round each time: sent again, pages would be unchanged.
                            writer = FrameWriter::new(Encoder::new(settings(codecs), CHUNKS));
                        }
                        out.clear();
                        let start = Instant::now();
                        black_box(writer.push_chunk(&mut out, work(&memory, chunk, method)));
                        spent += start.elapsed();
                    }
                    spent
                });
            });
        }
    }
    group.finish();
}

fn placing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply a frame");
    for (name, filling) in FILLINGS {
        let (source, destination) = (memory(filling), memory(Filling::Random));
        let writer = FrameWriter::new(Encoder::new(settings(PACKERS), CHUNKS));
        let decoder = Decoder::new(PageKey::derive(&TOKEN), destination.populated().expect("the kernel answers"));
        let reader = FrameReader::new(0, 1, PACKERS, decoder);
        apply(&mut group, name, &source, (writer, reader), &mut destination.placement());
    }
    group.finish();
}

fn staging(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stage a frame");
    for (name, filling) in FILLINGS {
        let source = memory(filling);
        let writer = FrameWriter::post_copy(Encoder::new(settings(PACKERS), CHUNKS));
        apply(&mut group, name, &source, (writer, FrameReader::post_copy(0, PACKERS)), &mut Staging::new());
    }
    group.finish();
}

/// Measures what the reader does with the frames of the writer.
fn apply<S: PageSink>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    source: &GuestMemory,
    (mut writer, mut reader): (FrameWriter, FrameReader),
    sink: &mut S,
) {
    group.throughput(Throughput::Bytes(CHUNK_SIZE as u64));
    let (mut next, mut frame) = (walk(), Vec::new());
    group.bench_function(name, |bencher| {
        // One at a time: a frame's number has to be the next one.
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                frame.clear();
                writer.push_chunk(&mut frame, work(source, next(), Method::Lz4));
                let start = Instant::now();
                black_box(reader.apply_bytes(&frame, source.layout(), sink)).expect("a good frame");
                spent += start.elapsed();
            }
            spent
        });
    });
}

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(CHUNK_SIZE as u64));
    let payload = vec![0x5a; CHUNK_SIZE];
    group.bench_function("a raw chunk in cache", |bencher| bencher.iter(|| XxHash3_64::oneshot(black_box(&payload))));
    group.finish();
}

criterion_group!(benches, copies, frames, placing, staging, checksum);
criterion_main!(benches);
