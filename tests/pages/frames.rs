//! Frames: whole, altered, cut and hostile ones.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use pageferry::bitmap::PageBitmap;
use pageferry::memory::{GuestMemory, MemoryLayout, PageSink, RegionSpec};
use pageferry::page::{Codecs, Decoder, Encoder, EncoderSettings, Masks, Method, PageKey, Pages, Work};
use pageferry::units::{ByteCount, ChunkIndex, GuestAddr, PAGE_SIZE, PageCount};
use pageferry::wire::{FRAME_HEADER_BYTES, FrameBody, FrameError, FrameReader, FrameWriter, WireError, channel_of};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::content::*;

pub(crate) const CHUNK: ChunkIndex = ChunkIndex(0);

/// A page of each form, the raw one small enough to flip every bit of the frame.
pub(crate) const CONTENTS: [Content; 4] = [Content::Zero, Content::Uniform(0x0102_0304_0506_0708), Content::Records(9), Content::Random(5)];

/// Without columns, so that records go by LZ4.
const CODECS: Codecs = Codecs::LZ4.or(Codecs::ZSTD).or(Codecs::DELTA);

fn writer(chunks: u32) -> FrameWriter {
    let settings = EncoderSettings { codecs: CODECS, key: PageKey::derive(&[3; 16]), delta_cache: ByteCount(1 << 20) };
    FrameWriter::new(Encoder::new(settings, chunks))
}

fn reader(memory: &GuestMemory) -> FrameReader {
    FrameReader::new(0, 1, Codecs::built_in(), decoder(memory.layout().chunks()))
}

fn decoder(chunks: u32) -> Decoder {
    Decoder::new(PageKey::derive(&[3; 16]), PageBitmap::new(chunks))
}

/// Appends a frame with the pages of `mask`; how they go.
fn push(writer: &mut FrameWriter, bytes: &mut Vec<u8>, round: u16, memory: &GuestMemory, chunk: ChunkIndex, mask: u64) -> Masks {
    writer.push_chunk(bytes, Work { round, chunk, memory: memory.chunk(chunk), mask, method: Method::Lz4 }).pages.masks
}

/// The frame of a chunk of four pages that hold [`CONTENTS`].
fn frame() -> Vec<u8> {
    let memory = memory(4);
    fill(&memory, CHUNK, &CONTENTS, 0b1111);
    let mut bytes = Vec::new();
    let masks = push(&mut writer(1), &mut bytes, 7, &memory, CHUNK, 0b1111);
    assert_eq!(masks, Masks { zero: 1, uniform: 2, lz4: 4, raw: 8, ..Masks::default() });
    bytes
}

/// Makes the checksums of an altered frame right again.
pub(crate) fn sign(frame: &mut [u8]) {
    let payload = xxh3_64(&frame[FRAME_HEADER_BYTES..]);
    if matches!(frame[4], 1 | 4) {
        frame[88..96].copy_from_slice(&payload.to_le_bytes());
    }
    let header = xxh3_64(&frame[..96]);
    frame[96..104].copy_from_slice(&header.to_le_bytes());
}

/// What a reader with nothing behind it says of `bytes`.
fn verdict(memory: &GuestMemory, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    match reader(memory).apply_bytes(bytes, memory.layout(), &mut memory.placement()) {
        Ok(header) => Ok(header.map(|header| header.frame_bytes())),
        Err(WireError::Frame { channel: 0, sequence: 0, source }) => Err(source),
        Err(other) => panic!("not an error of the first frame: {other}"),
    }
}

#[test]
fn frames_have_their_golden_bytes() {
    let memory = memory(4);
    fill(&memory, CHUNK, &CONTENTS, 0b1111);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut writer = writer(1);
    let mut bytes = Vec::new();
    push(&mut writer, &mut bytes, 7, &memory, CHUNK, 0b1011);
    let golden = [
        "50474652 01 00 0700", // magic, kind, packing, round
        "0000000000000000",    // sequence
        "00000000 08000000",   // chunk, meta bytes
        "0100000000000000",    // zero
        "0200000000000000",    // uniform
        "0000000000000000",    // unchanged
        "0000000000000000",    // delta
        "0000000000000000",    // columns
        "0000000000000000",    // LZ4
        "0000000000000000",    // Zstandard
        "0800000000000000",    // raw
        "c4d1f9be6f1e4eab",    // xxh3 of the payload
        "fa5a43be537897c3",    // xxh3 of all this
    ];
    assert_eq!(hex(&bytes[..FRAME_HEADER_BYTES]), golden.concat().replace(' ', ""));
    assert_eq!(hex(&bytes[FRAME_HEADER_BYTES + PAGE_SIZE..]), "0807060504030201", "the word");

    bytes.clear();
    writer.push_round_end(&mut bytes, 7);
    let golden = ["50474652 02 00 0700", "0100000000000000", &"00".repeat(80), "2d6a37c1e4ca0000"];
    assert_eq!(hex(&bytes), golden.concat().replace(' ', ""));
    assert_eq!(writer.totals().digest, 7781132114057839075, "the digest");
}

#[test]
fn a_block_made_by_hand_decompresses_to_its_page() {
    // A literal byte and a match of it 4090 times over, then the five last literals that the format demands.
    let block = [[0x1f, b'a', 1, 0].as_slice(), &[255; 15], &[246, 0x50], b"aaaab"].concat();
    let masks = Masks { lz4: 1, ..Masks::default() };
    let meta = [&u16::try_from(block.len()).unwrap().to_le_bytes(), block.as_slice()].concat();
    let memory = memory(1);
    let pages = Pages { masks, meta_bytes: u32::try_from(meta.len()).unwrap(), ..Pages::default() };
    decoder(1).place_meta(&mut memory.placement(), CHUNK, &pages, &meta).unwrap();
    let mut page = [b'a'; PAGE_SIZE];
    page[PAGE_SIZE - 1] = b'b';
    assert!(pages_of(&memory, CHUNK) == [page]);
}

#[test]
fn a_cut_frame_asks_for_more_and_a_flipped_bit_is_an_error() {
    let mut frame = frame();
    let memory = memory(4);
    for length in 0..frame.len() {
        assert_eq!(verdict(&memory, &frame[..length]), Ok(None), "cut to {length}");
    }
    for bit in 0..frame.len() * 8 {
        frame[bit / 8] ^= 1 << (bit % 8);
        assert!(verdict(&memory, &frame).is_err(), "bit {bit} flipped");
        frame[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(verdict(&memory, &frame), Ok(Some(frame.len())));
}

#[test]
fn hostile_headers_are_refused() {
    let whole = frame();
    let memory = memory(4);
    let chunk = CHUNK;
    let masks = FrameError::Masks { chunk };
    let length = |length| FrameError::MetaLength { chunk, length };
    let block_bytes = u32::from(u16::from_le_bytes([whole[FRAME_HEADER_BYTES + PAGE_SIZE + 8], whole[FRAME_HEADER_BYTES + PAGE_SIZE + 9]]));
    let cases: [(usize, &[u8], FrameError); 17] = [
        (0, b"HTTP", FrameError::Magic { first: *b"HTTP" }),
        (4, &[0], FrameError::UnknownKind { kind: 0 }),
        (4, &[5], FrameError::UnknownKind { kind: 5 }),
        (4, &[3], FrameError::Misplaced { kind: 3 }),
        (4, &[4], FrameError::Misplaced { kind: 4 }),
        (4, &[2], FrameError::Reserved),
        (5, &[1], length(8 + 2 + block_bytes)),
        (5, &[3], FrameError::Packing { chunk, code: 3 }),
        (8, &[1], FrameError::Sequence { found: 1 }),
        (16, &[1], FrameError::Outside { chunk: ChunkIndex(1) }),
        (20, &[0, 0], length(0)),
        (20, &[10, 0], length(10)),
        (20, &[11, 14], length(3584 + 11)),
        (20, &[0xff; 4], length(u32::MAX)),
        (24, &[0b10000], masks.clone()),
        (24, &[0b11], masks.clone()),
        (24, &[0; 64], masks),
    ];
    for (at, bytes, expected) in cases {
        let mut frame = whole.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        sign(&mut frame);
        assert_eq!(verdict(&memory, &frame), Err(expected), "{bytes:?} at {at}");
    }
}

#[test]
fn hostile_payloads_are_refused() {
    let whole = frame();
    let memory = memory(4);
    let lengths = FRAME_HEADER_BYTES + PAGE_SIZE + 8;
    let block = u16::from_le_bytes([whole[lengths], whole[lengths + 1]]);
    // An empty block, one longer than a page may become, one longer than the payload, ones that end early, and garbage.
    for altered in [0, 3585, block + 1, block - 1, 1] {
        let mut frame = whole.clone();
        frame[lengths..lengths + 2].copy_from_slice(&altered.to_le_bytes());
        sign(&mut frame);
        assert!(matches!(verdict(&memory, &frame), Err(FrameError::Pages { .. })), "a block of {altered}");
    }
    let mut frame = whole.clone();
    frame[lengths + 2..].fill(0xf0);
    sign(&mut frame);
    assert!(matches!(verdict(&memory, &frame), Err(FrameError::Pages { .. })), "garbage");
}

#[test]
fn a_chunk_on_the_wrong_channel_is_refused() {
    let frame = frame();
    let belongs = channel_of(CHUNK, 4);
    let memory = memory(4);
    for channel in (0..4).filter(|&channel| channel != belongs) {
        let mut reader = FrameReader::new(channel, 4, Codecs::built_in(), decoder(1));
        let source = FrameError::Channel { chunk: CHUNK, belongs };
        assert_eq!(reader.apply_bytes(&frame, memory.layout(), &mut memory.placement()), Err(WireError::Frame { channel, sequence: 0, source }));
    }
}

#[test]
fn lost_doubled_and_swapped_frames_are_noticed() {
    let memory = memory(4);
    let mut writer = writer(1);
    let frames: Vec<Vec<u8>> = (0..3)
        .map(|_| {
            let mut bytes = Vec::new();
            push(&mut writer, &mut bytes, 0, &memory, CHUNK, 1);
            bytes
        })
        .collect();
    for (order, wrong_at) in [([0, 2, 1], 1), ([0, 0, 1], 1), ([1, 0, 2], 0), ([0, 1, 1], 2)] {
        let mut reader = reader(&memory);
        for (at, index) in order.into_iter().enumerate() {
            let result = reader.apply_bytes(&frames[index], memory.layout(), &mut memory.placement());
            assert_eq!(result.is_ok(), at < wrong_at);
            if at == wrong_at {
                break;
            }
        }
    }
}

#[test]
fn zero_frames_do_not_populate_memory() {
    let (source, destination) = (memory(128), memory(128));
    let (mut writer, mut reader) = (writer(2), reader(&destination));
    let mut bytes = Vec::new();
    for chunk in [ChunkIndex(0), ChunkIndex(1)] {
        bytes.clear();
        push(&mut writer, &mut bytes, 0, &source, chunk, u64::MAX);
        assert_eq!(bytes.len(), FRAME_HEADER_BYTES);
        reader.apply_bytes(&bytes, destination.layout(), &mut destination.placement()).unwrap().unwrap();
    }
    assert!(destination.populated().unwrap().is_empty());
    assert_eq!(reader.totals(), writer.totals());
    assert_eq!(writer.totals().pages, PageCount(128));
    assert_eq!(writer.totals().bytes, ByteCount(2 * FRAME_HEADER_BYTES as u64));
}

#[test]
fn pages_that_become_zero_again_are_cleared() {
    let (source, destination) = (memory(4), memory(4));
    let (mut writer, mut reader) = (writer(1), reader(&destination));
    for contents in [CONTENTS, [Content::Zero; 4], CONTENTS, [Content::Zero; 4]] {
        fill(&source, CHUNK, &contents, 0b1111);
        let mut bytes = Vec::new();
        push(&mut writer, &mut bytes, 0, &source, CHUNK, 0b1111);
        reader.apply_bytes(&bytes, destination.layout(), &mut destination.placement()).unwrap().unwrap();
        assert!(pages_of(&source, CHUNK) == pages_of(&destination, CHUNK));
    }
}

/// Reads one frame as a receiver does: raw pages from the descriptor into place, then the rest.
fn receive(reader: &mut FrameReader, memory: &GuestMemory, stream: &mut UnixStream) -> FrameBody {
    use std::io::Read;
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).unwrap();
    let header = reader.parse(&header, memory.layout()).unwrap();
    let mut placement = memory.placement();
    let mut meta = vec![0; header.meta_bytes()];
    let (mut pages_there, mut meta_there) = (0, 0);
    if let FrameBody::Chunk { chunk, pages } = header.body {
        while pages_there < header.raw_bytes() || meta_there < meta.len() {
            let progress = placement.read_from(stream.as_fd(), chunk, pages.masks.raw, pages_there, &mut meta[meta_there..]).unwrap();
            pages_there += progress.pages_bytes;
            meta_there += progress.tail_bytes;
        }
    }
    reader.apply(&header, &mut placement, &meta).unwrap();
    header.body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn frames_through_a_socket_in_pieces_rebuild_the_memory(
        rounds in prop::collection::vec(prop::collection::vec((prop::collection::vec(content(), 64), 1u64..), 3), 1..3),
        piece in 1usize..100_000,
    ) {
        let regions = [(0, 70), (1 << 20, 10)].map(|(start, pages)| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) });
        let layout = MemoryLayout::new(regions.to_vec()).unwrap();
        let [source, destination] = [(); 2].map(|()| GuestMemory::allocate(layout.clone(), pageferry::memory::Backing::Memfd).unwrap());
        let (mut writer, mut reader) = (writer(3), reader(&destination));
        for (round, chunks) in (0..).zip(rounds) {
            let mut bytes = Vec::new();
            for (chunk, (contents, mask)) in (0..).map(ChunkIndex).zip(chunks) {
                let mask = mask & layout.valid_mask(chunk) | 1;
                fill(&source, chunk, &contents, mask);
                push(&mut writer, &mut bytes, round, &source, chunk, mask);
            }
            writer.push_round_end(&mut bytes, round);
            let (mut near, mut far) = UnixStream::pair().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || bytes.chunks(piece).for_each(|piece| near.write_all(piece).unwrap()));
                while receive(&mut reader, &destination, &mut far) != FrameBody::RoundEnd {}
            });
            for chunk in (0..3).map(ChunkIndex) {
                prop_assert!(pages_of(&source, chunk) == pages_of(&destination, chunk));
            }
            prop_assert_eq!(reader.totals(), writer.totals());
        }
    }
}
