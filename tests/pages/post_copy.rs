//! Post-copy: from the source's memory through frames into a staging buffer.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use pageferry::bitmap::PageBitmap;
use pageferry::memory::{GuestMemory, MemoryLayout, PageSink, RegionSpec, Staging};
use pageferry::page::{Codecs, Decoder, Encoder, EncoderSettings, Masks, Method, PageKey, Pages, Work};
use pageferry::units::{ByteCount, ChunkIndex, GuestAddr, PAGE_SIZE, PageCount};
use pageferry::wire::{FRAME_HEADER_BYTES, FrameBody, FrameError, FrameReader, FrameWriter, WireError};
use proptest::prelude::*;

use crate::content::*;
use crate::frames::{CHUNK, CONTENTS, sign};

const CODECS: Codecs = Codecs::LZ4.or(Codecs::DELTA);
const METHODS: [Method; 3] = [Method::Raw, Method::Lz4, Method::Zstd(1)];

fn encoder(codecs: Codecs, chunks: u32) -> Encoder {
    Encoder::new(EncoderSettings { codecs, key: PageKey::derive(&[3; 16]), delta_cache: ByteCount(1 << 20) }, chunks)
}

fn decoder(chunks: u32) -> Decoder {
    Decoder::new(PageKey::derive(&[3; 16]), PageBitmap::new(chunks))
}

fn work(memory: &GuestMemory, chunk: ChunkIndex, mask: u64, method: Method) -> Work<'_> {
    Work { round: 7, chunk, memory: memory.chunk(chunk), mask, method }
}

/// Memory of a chunk of four pages that hold [`CONTENTS`].
fn four_pages() -> GuestMemory {
    let memory = memory(4);
    fill(&memory, CHUNK, &CONTENTS, 0b1111);
    memory
}

/// The first frame of post-copy: the pages of `mask` of [`four_pages`].
fn frame(mask: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameWriter::post_copy(encoder(CODECS, 1)).push_chunk(&mut bytes, work(&four_pages(), CHUNK, mask, Method::Lz4));
    bytes
}

/// A channel on which `pages` of [`four_pages`] and the switch have come, at both ends.
fn switched(memory: &GuestMemory, pages: u64) -> (FrameWriter, FrameReader) {
    let (mut writer, mut bytes) = (FrameWriter::new(encoder(CODECS, 1)), Vec::new());
    writer.push_chunk(&mut bytes, Work { round: 0, ..work(&four_pages(), CHUNK, pages, Method::Lz4) });
    let chunk_bytes = bytes.len();
    writer.push_switch(&mut bytes, 0);
    let mut reader = FrameReader::new(0, 1, CODECS, decoder(1)).granting_post_copy();
    reader.apply_bytes(&bytes, memory.layout(), &mut memory.placement()).unwrap().unwrap();
    let header = reader.apply_bytes(&bytes[chunk_bytes..], memory.layout(), &mut memory.placement()).unwrap().unwrap();
    assert_eq!((header.round, header.body), (0, FrameBody::Switch));
    assert_eq!(reader.totals(), writer.totals());
    (writer, reader)
}

/// What a reader says of `bytes`, which are wrong or not all there.
fn verdict(mut reader: FrameReader, layout: &MemoryLayout, bytes: &[u8]) -> Result<Option<Vec<u8>>, FrameError> {
    let mut staging = Staging::new();
    match reader.apply_bytes(bytes, layout, &mut staging) {
        Ok(header) => Ok(header.map(|_| bits(staging.held()).flat_map(|bit| staging.pages(bit, 1).to_vec()).collect())),
        Err(WireError::Frame { source, .. }) => Err(source),
        Err(other) => panic!("not an error of a frame: {other}"),
    }
}

/// The pages staged are those of `mask` in the memory of the source.
fn expect_staged(staging: &Staging, memory: &GuestMemory, chunk: ChunkIndex, masks: &Masks, mask: u64) {
    assert_eq!((staging.chunk(), staging.zeros(), staging.held()), (Some(chunk), masks.zero, mask & !masks.zero));
    for (bit, page) in (0..).zip(pages_of(memory, chunk)) {
        match (staging.held() >> bit & 1, staging.zeros() >> bit & 1) {
            (1, 0) => assert!(staging.pages(bit, 1) == page, "page {bit}"),
            (0, 1) => assert!(page == [0; PAGE_SIZE], "page {bit} is not zeros"),
            _ => assert_eq!(mask >> bit & 1, 0, "page {bit} is missing"),
        }
    }
}

#[test]
fn frames_of_post_copy_have_their_golden_bytes() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let memory = four_pages();
    let mut writer = FrameWriter::new(encoder(CODECS, 1));
    let mut bytes = Vec::new();
    writer.push_round_end(&mut bytes, 0);
    bytes.clear();
    writer.push_switch(&mut bytes, 1);
    let golden = ["50474652 03 00 0100", "0100000000000000", &"00".repeat(80), "865f31c47815c708"];
    assert_eq!(hex(&bytes), golden.concat().replace(' ', ""));

    bytes.clear();
    let mut writer = writer.into_post_copy();
    writer.push_chunk(&mut bytes, work(&memory, CHUNK, 0b1011, Method::Lz4));
    let golden = [
        "50474652 04 00 0000", // magic, kind, packing, round
        "0000000000000000",    // sequence
        "00000000 08000000",   // chunk, meta bytes
        "0100000000000000",    // zero
        "0200000000000000",    // uniform
        &"00".repeat(5 * 8),   // unchanged, delta, columns, LZ4, Zstandard
        "0800000000000000",    // raw
        "c4d1f9be6f1e4eab",    // xxh3 of the payload
        "223cf483d57ed251",    // xxh3 of all this
    ];
    assert_eq!(hex(&bytes[..FRAME_HEADER_BYTES]), golden.concat().replace(' ', ""));
    assert_eq!(hex(&bytes[FRAME_HEADER_BYTES + PAGE_SIZE..]), "0807060504030201", "the word");
    let mut signed = bytes.clone();
    sign(&mut signed);
    assert!(signed == bytes, "another implementation comes to the same checksums");
    assert_eq!((writer.totals().frames, writer.totals().pages), (1, PageCount(3)));
}

#[test]
fn a_cut_frame_asks_for_more_and_an_altered_byte_is_an_error() {
    let mut frame = frame(0b1111);
    let memory = memory(4);
    let reader = || FrameReader::post_copy(0, CODECS);
    for length in 0..frame.len() {
        assert_eq!(verdict(reader(), memory.layout(), &frame[..length]), Ok(None), "cut to {length}");
    }
    for at in 0..frame.len() {
        for change in [1, 0x80, 0xff] {
            frame[at] ^= change;
            assert!(verdict(reader(), memory.layout(), &frame).is_err(), "byte {at} altered by {change:#x}");
            frame[at] ^= change;
        }
    }
    let staged = verdict(reader(), memory.layout(), &frame).unwrap().unwrap();
    assert!(staged == pages_of(&four_pages(), CHUNK)[1..].concat());
}

#[test]
fn a_switch_that_was_not_granted_is_refused() {
    let mut bytes = Vec::new();
    FrameWriter::new(encoder(CODECS, 1)).push_switch(&mut bytes, 0);
    let reader = || FrameReader::new(0, 1, CODECS, decoder(1));
    let layout = MemoryLayout::flat(PageCount(4)).unwrap();
    assert_eq!(verdict(reader(), &layout, &bytes), Err(FrameError::Misplaced { kind: 3 }));
    assert_eq!(verdict(reader().granting_post_copy(), &layout, &bytes), Ok(Some(Vec::new())));
    for (at, expected) in [(5, FrameError::Reserved), (16, FrameError::Reserved), (95, FrameError::Reserved), (6, FrameError::RoundEnd { found: 1 })]
    {
        let mut bytes = bytes.clone();
        bytes[at] = 1;
        sign(&mut bytes);
        assert_eq!(verdict(reader().granting_post_copy(), &layout, &bytes), Err(expected), "byte {at}");
    }
}

#[test]
fn no_frame_comes_between_the_switch_and_post_copy_and_none_of_a_round_after() {
    let memory = memory(4);
    let whole = frame(0b1000);
    for kind in 1..=4 {
        let (_, reader) = switched(&memory, 0b0010);
        let mut bytes = if kind % 3 == 1 { whole.clone() } else { whole[..FRAME_HEADER_BYTES].to_vec() };
        bytes[4] = kind;
        if kind % 3 != 1 {
            bytes[16..].fill(0);
        }
        let signed = |sequence: u8, round: u8| {
            let mut bytes = bytes.clone();
            (bytes[6], bytes[8]) = (round, sequence);
            sign(&mut bytes);
            bytes
        };
        assert_eq!(verdict(reader, memory.layout(), &signed(2, 1)), Err(FrameError::Misplaced { kind }), "after the switch");
        let (_, reader) = switched(&memory, 0b0010);
        let after = verdict(reader.into_post_copy(), memory.layout(), &signed(0, 0));
        let expected = if kind == 4 { Ok(Some(pages_of(&four_pages(), CHUNK)[3].to_vec())) } else { Err(FrameError::Misplaced { kind }) };
        assert_eq!(after, expected, "kind {kind} in post-copy");
    }
}

#[test]
fn post_copy_numbers_its_frames_from_zero_and_has_no_rounds() {
    let memory = memory(4);
    let (writer, reader) = switched(&memory, 0b1111);
    let (mut writer, mut reader) = (writer.into_post_copy(), reader.into_post_copy());
    let (source, mut staging) = (four_pages(), Staging::new());
    for sequence in 0..3 {
        let mut bytes = Vec::new();
        let masks = writer.push_chunk(&mut bytes, work(&source, CHUNK, 0b1111, Method::Lz4)).pages.masks;
        assert_eq!(u64::from_le_bytes(*bytes[8..].first_chunk().unwrap()), sequence);
        let header = reader.apply_bytes(&bytes, memory.layout(), &mut staging).unwrap().unwrap();
        assert_eq!(header.round, 0);
        // Although all of it was sent before the switch.
        expect_staged(&staging, &source, CHUNK, &masks, 0b1111);
    }
    assert_eq!(reader.totals(), writer.totals());
    let mut bytes = frame(1);
    bytes[6] = 1;
    sign(&mut bytes);
    assert_eq!(verdict(FrameReader::post_copy(0, CODECS), memory.layout(), &bytes), Err(FrameError::Reserved));
}

#[test]
fn pages_that_refer_to_earlier_ones_are_refused_though_agreed_on() {
    let memory = memory(4);
    let (_, reader) = switched(&memory, 0b1111);
    let mut reader = Some(reader.into_post_copy());
    // The mask of unchanged pages, then that of deltas, with meta bytes that would do for one.
    for (at, meta) in [(40, 0u32), (48, 16)] {
        let reader = reader.take().unwrap_or_else(|| FrameReader::post_copy(0, CODECS));
        let mut bytes = frame(0b0001);
        bytes[24] = 0;
        bytes[at] = 0b0100;
        bytes[20..24].copy_from_slice(&meta.to_le_bytes());
        bytes.extend_from_slice(&vec![1; meta as usize]);
        sign(&mut bytes);
        assert_eq!(verdict(reader, memory.layout(), &bytes), Err(FrameError::Relative { chunk: CHUNK, bit: 2 }), "mask at {at}");
    }
}

#[test]
fn a_decoder_of_post_copy_refuses_what_refers_to_earlier_pages_by_itself() {
    let mut staging = Staging::new();
    staging.begin(CHUNK, 0);
    for masks in [Masks { unchanged: 0b10, ..Masks::default() }, Masks { delta: 0b10, ..Masks::default() }] {
        for mut decoder in [Decoder::post_copy(), decoder(1).into_post_copy()] {
            let error = decoder.place_meta(&mut staging, CHUNK, &Pages { masks, ..Pages::default() }, &[]).unwrap_err();
            assert_eq!(error, pageferry::page::PageError::NeverSent { bit: 1 });
        }
    }
}

#[test]
fn a_uniform_page_of_zeros_is_staged_as_any_other() {
    let mut bytes = frame(0b0010);
    bytes[FRAME_HEADER_BYTES..].fill(0);
    sign(&mut bytes);
    let layout = MemoryLayout::flat(PageCount(4)).unwrap();
    assert_eq!(verdict(FrameReader::post_copy(0, CODECS), &layout, &bytes), Ok(Some(vec![0; PAGE_SIZE])));
}

#[test]
#[should_panic(expected = "pages 0x4 are not held")]
fn what_an_earlier_frame_has_left_is_not_shown() {
    let (mut staging, layout) = (Staging::new(), MemoryLayout::flat(PageCount(4)).unwrap());
    let mut reader = FrameReader::post_copy(0, CODECS);
    reader.apply_bytes(&frame(0b1100), &layout, &mut staging).unwrap().unwrap();
    assert_eq!(staging.pages(2, 2), pages_of(&four_pages(), CHUNK)[2..].concat());
    let mut bytes = frame(0b1000);
    bytes[8] = 1;
    sign(&mut bytes);
    reader.apply_bytes(&bytes, &layout, &mut staging).unwrap().unwrap();
    let _ = staging.pages(2, 2);
}

#[test]
#[should_panic(expected = "no pages between the switch and post-copy")]
fn no_pages_are_made_between_the_switch_and_post_copy() {
    let mut writer = FrameWriter::new(encoder(CODECS, 1));
    writer.push_switch(&mut Vec::new(), 0);
    writer.push_chunk(&mut Vec::new(), work(&four_pages(), CHUNK, 1, Method::Raw));
}

#[test]
#[should_panic(expected = "rounds are of pre-copy")]
fn no_round_ends_in_post_copy() {
    FrameWriter::post_copy(encoder(CODECS, 1)).push_round_end(&mut Vec::new(), 0);
}

/// Reads one frame as a receiver does: raw pages from the descriptor into the buffer, then the rest.
fn receive(reader: &mut FrameReader, layout: &MemoryLayout, staging: &mut Staging, stream: &mut UnixStream) -> FrameBody {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).unwrap();
    let header = reader.parse(&header, layout).unwrap();
    let FrameBody::Chunk { chunk, pages } = header.body else { panic!("pages") };
    staging.begin(chunk, pages.masks.filled());
    let mut meta = vec![0; header.meta_bytes()];
    let (mut pages_there, mut meta_there) = (0, 0);
    while pages_there < header.raw_bytes() || meta_there < meta.len() {
        let progress = staging.read_from(stream.as_fd(), chunk, pages.masks.raw, pages_there, &mut meta[meta_there..]).unwrap();
        pages_there += progress.pages_bytes;
        meta_there += progress.tail_bytes;
    }
    reader.apply(&header, staging, &meta).unwrap();
    header.body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_a_frame_stages_is_what_the_source_holds(
        frames in prop::collection::vec((0u32..3, prop::collection::vec(content(), 64), 1u64.., prop::sample::select(&METHODS[..])), 1..8),
        codecs in (0u32..16).prop_map(Codecs::from_bits),
        pre_copied in any::<bool>(),
        piece in 1usize..100_000,
    ) {
        let regions = [(0, 70), (1 << 20, 10)].map(|(start, pages)| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) });
        let layout = MemoryLayout::new(regions.to_vec()).unwrap();
        let source = GuestMemory::allocate(layout.clone(), pageferry::memory::Backing::Anonymous).unwrap();
        let mut pre_copy = FrameWriter::new(encoder(codecs, 3));
        if pre_copied {
            // What the encoder remembers of pre-copy must not show.
            (0..3).map(ChunkIndex).for_each(|chunk| {
                fill(&source, chunk, &[Content::Random(chunk.0.into()); 64], layout.valid_mask(chunk));
                pre_copy.push_chunk(&mut Vec::new(), work(&source, chunk, layout.valid_mask(chunk), Method::Lz4));
            });
        }
        let mut writer = pre_copy.into_post_copy();
        let mut reader = FrameReader::post_copy(u16::MAX, codecs);
        let mut staging = Staging::new();
        for (chunk, contents, mask, method) in frames {
            let (chunk, mut bytes) = (ChunkIndex(chunk), Vec::new());
            let mask = mask & layout.valid_mask(chunk) | 1;
            fill(&source, chunk, &contents, mask);
            let sent = writer.push_chunk(&mut bytes, work(&source, chunk, mask, method)).pages;
            let (mut near, mut far) = UnixStream::pair().unwrap();
            let body = std::thread::scope(|scope| {
                scope.spawn(move || bytes.chunks(piece).for_each(|piece| near.write_all(piece).unwrap()));
                receive(&mut reader, &layout, &mut staging, &mut far)
            });
            prop_assert_eq!(body, FrameBody::Chunk { chunk, pages: sent });
            prop_assert_eq!(sent.masks.unchanged | sent.masks.delta, 0);
            expect_staged(&staging, &source, chunk, &sent.masks, mask);
        }
        prop_assert_eq!(reader.totals(), writer.totals());
    }

    #[test]
    fn no_meta_bytes_make_the_decoder_panic(masks: [u64; 8], packing in 0u8..3, meta in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut taken = 0;
        let masks = masks.map(|mask| {
            let mask = mask & !taken & 0x00ff_0000_00ff_000f;
            taken |= mask;
            mask
        });
        let packing = [pageferry::page::Packing::Plain, pageferry::page::Packing::Lz4, pageferry::page::Packing::Zstd][usize::from(packing)];
        let pages = Pages { masks: Masks::from_array(masks), packing, meta_bytes: u32::try_from(meta.len()).unwrap() };
        let mut staging = Staging::new();
        staging.begin(CHUNK, pages.masks.filled());
        let _ = Decoder::post_copy().place_meta(&mut staging, CHUNK, &pages, &meta);
    }
}
