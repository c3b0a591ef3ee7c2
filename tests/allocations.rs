//! Nothing is allocated per page or per chunk once buffers have grown.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pageferry::bitmap::PageBitmap;
use pageferry::memory::{Backing, GuestMemory, MemoryLayout, Staging};
use pageferry::page::{Codecs, Decoder, Encoder, EncoderSettings, Method, PageKey, Work};
use pageferry::units::{ByteCount, ChunkIndex, PageCount};
use pageferry::wire::{FrameReader, FrameWriter};

#[cfg(feature = "tls")]
mod certificates;

struct Counting;

thread_local! {
    /// Of this thread.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn frames_are_made_and_applied_without_allocating() {
    const CHUNKS: u32 = 8;
    let [source, destination] =
        [(); 2].map(|()| GuestMemory::allocate(MemoryLayout::flat(PageCount(u64::from(CHUNKS) * 64)).unwrap(), Backing::Anonymous).unwrap());
    let key = PageKey::derive(&[1; 16]);
    let settings = EncoderSettings { codecs: Codecs::built_in(), key: key.clone(), delta_cache: ByteCount(1 << 20) };
    let mut writer = FrameWriter::new(Encoder::new(settings, CHUNKS));
    let mut reader = FrameReader::new(0, 1, Codecs::built_in(), Decoder::new(key, PageBitmap::new(CHUNKS)));
    let mut placement = destination.placement();
    let mut bytes = Vec::new();
    let mut before = 0;
    for round in 0..6 {
        write_all(&source, round);
        for chunk in (0..CHUNKS).map(ChunkIndex) {
            bytes.clear();
            let method = if chunk.0 % 2 == 0 { Method::Lz4 } else { Method::Zstd(1) };
            let work = Work { round, chunk, memory: source.chunk(chunk), mask: u64::MAX, method };
            let masks = writer.push_chunk(&mut bytes, work).pages.masks;
            let packed = if round > 0 { masks.unchanged } else { masks.lz4 | masks.zstd };
            let forms = [masks.zero, masks.uniform, packed, masks.raw];
            assert!(forms.iter().all(|mask| mask.count_ones() >= 12) && (masks.delta != 0) == (round > 0), "{masks:?}");
            reader.apply_bytes(&bytes, destination.layout(), &mut placement).unwrap().unwrap();
        }
        // By then every buffer has its size, and every page that comes back its place.
        if round == 2 {
            before = ALLOCATIONS.get();
        }
    }
    assert_eq!(ALLOCATIONS.get(), before);
}

#[test]
fn frames_of_post_copy_are_made_and_staged_without_allocating() {
    const CHUNKS: u32 = 8;
    let source = GuestMemory::allocate(MemoryLayout::flat(PageCount(u64::from(CHUNKS) * 64)).unwrap(), Backing::Anonymous).unwrap();
    write_all(&source, 1);
    let settings = EncoderSettings { codecs: Codecs::built_in(), key: PageKey::derive(&[1; 16]), delta_cache: ByteCount(1 << 20) };
    let mut writer = FrameWriter::post_copy(Encoder::new(settings, CHUNKS));
    let mut reader = FrameReader::post_copy(u16::MAX, Codecs::built_in());
    let mut staging = Staging::new();
    let mut bytes = Vec::new();
    let mut before = 0;
    for pass in 0..3 {
        for chunk in (0..CHUNKS).map(ChunkIndex) {
            bytes.clear();
            let method = if chunk.0 % 2 == 0 { Method::Lz4 } else { Method::Zstd(1) };
            let masks = writer.push_chunk(&mut bytes, Work { round: 0, chunk, memory: source.chunk(chunk), mask: u64::MAX, method }).pages.masks;
            reader.apply_bytes(&bytes, source.layout(), &mut staging).unwrap().unwrap();
            let forms = [masks.zero, masks.uniform, masks.columns | masks.lz4 | masks.zstd, masks.raw];
            assert!(forms.iter().all(|mask| mask.count_ones() >= 12) && staging.held() == !masks.zero, "{masks:?}");
        }
        // By then every buffer has its size.
        if pass == 0 {
            before = ALLOCATIONS.get();
        }
    }
    assert_eq!(ALLOCATIONS.get(), before);
}

/// Both ends in one thread: what is written at once fits into the socket's buffer.
#[cfg(feature = "tls")]
#[test]
fn bytes_are_sealed_and_opened_without_allocating() {
    use std::io::{Read, Write};
    use std::time::Duration;

    use pageferry::transport::{ClientSecurity, ClientTls, Deadline, Listener, Route, ServerSecurity, ServerTls};

    let (keys, patience) = (certificates::good(), Duration::from_secs(20));
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let security = ClientSecurity::Tls(ClientTls::from_directory(keys.path()).unwrap());
    let route = Route { endpoint: listener.endpoint().clone(), security };
    let client = std::thread::spawn(move || route.connect(patience).unwrap());
    let security = ServerSecurity::Tls(ServerTls::from_directory(keys.path()).unwrap());
    let mut server = security.accept(listener.accept(patience).unwrap().expect("a connection"), Deadline::within(patience)).unwrap();
    let mut client = client.join().unwrap();
    let (sent, mut arrived) = (vec![5; 256 << 10], vec![0; 256 << 10]);
    let mut before = 0;
    for turn in 0..40 {
        for (sent, arrived) in sent.chunks(48 << 10).zip(arrived.chunks_mut(48 << 10)) {
            client.write_all(sent).unwrap();
            server.read_exact(arrived).unwrap();
        }
        // By then every buffer has its size.
        if turn == 20 {
            before = ALLOCATIONS.get();
        }
    }
    assert_eq!(ALLOCATIONS.get(), before);
}

/// Nine words that repeat: LZ4 finds that, and they have no columns.
const TEXT: [u64; 9] = [u64::MAX / 3, 7, u64::MAX / 5, 1 << 40, 11 << 50, 3, u64::MAX / 7, u64::MAX / 11, 5 << 55];

/// Each fifth page is zero, uniform, compressible and never changed, compressible with one word changed, and random.
fn write_all(memory: &GuestMemory, round: u16) {
    for page in 0..u32::try_from(memory.layout().pages().0).unwrap() {
        let seed = if page % 5 == 4 { u64::from(page) << 16 | u64::from(round) } else { 0 };
        for index in 0..512 {
            let scrambled = (seed + index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let scrambled = (scrambled ^ scrambled >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let changed = u64::from(round) * u64::from(index == 100);
            let word =
                [0, u64::from(round) + 7, TEXT[index % TEXT.len()], index as u64 % 4 + changed, scrambled ^ scrambled >> 31][page as usize % 5];
            memory.chunk(ChunkIndex(page / 64)).store_word(page % 64, index, word);
        }
    }
}
