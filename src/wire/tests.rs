//! Messages: golden bytes of each, and what becomes of altered, cut and hostile ones.

use std::time::Duration;

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::memory::{MemoryLayout, RegionSpec};
use crate::page::Codecs;
use crate::units::{ByteCount, GuestAddr, PageCount, PageIndex};

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}

/// The body of a message, in hexadecimal.
fn body(message: &Message) -> String {
    encode(message)[MESSAGE_HEADER_BYTES..].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An envelope around `body` with the right checksums.
fn envelope(version: u16, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"PGFERRY\n".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(xxh3_64(body).to_le_bytes());
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn offer() -> Offer {
    let regions = [(0, 160), (0x10_0000, 1)].map(|(start, pages)| RegionSpec { start: GuestAddr(start), pages: PageCount(pages) });
    Offer {
        session: SessionId([0xa1; 16]),
        token: Token([0xb2; 16]),
        channels: 4,
        codecs: Codecs::LZ4.or(Codecs::DELTA),
        features: Features::POST_COPY,
        layout: MemoryLayout::new(regions.to_vec()).unwrap(),
        guest_kind: "kvm".to_owned(),
        description: "memory=1MiB".to_owned(),
    }
}

fn accept() -> Message {
    Message::Accept { channels: 2, codecs: Codecs::LZ4, features: Features::POST_COPY, granule: HUGE_GRANULE }
}

fn one_of_each() -> [(Message, String); 24] {
    let (session, token) = (SessionId([0xa1; 16]), Token([0xb2; 16]));
    let ids = "a1".repeat(16) + &"b2".repeat(16);
    let totals = ChannelTotals { frames: 1, pages: PageCount(2), bytes: ByteCount(3), digest: 4 };
    let extent = Extent { chunks: 6, pages: PageCount(9) };
    let extent_bytes = "060000000900000000000000";
    let numbers = ["0100000000000000", "0200000000000000", "0300000000000000", "0400000000000000"].concat();
    let regions = ["0000000000000000", "a000000000000000", "0000100000000000", "0100000000000000"].concat();
    let hello = format!("{ids}040005000000010000000200{regions}03006b766d0b006d656d6f72793d314d6942");
    [
        (Message::Hello(offer()), hello),
        (accept(), "020001000000010000000002".to_owned()),
        (Message::Refuse { reason: RefuseReason::Busy, detail: "no".to_owned() }, "070002006e6f".to_owned()),
        (Message::Attach { session, token, lane: Lane::Bulk(63), generation: 1 }, format!("{ids}3f0001000000")),
        (Message::Attached { lane: Lane::Urgent }, "ffff".to_owned()),
        (Message::Ping, String::new()),
        (Message::Progress { frames: 1, bytes: ByteCount(2) }, numbers[..32].to_owned()),
        (Message::Finish { totals: vec![totals], state: vec![0xff; 3], missing: Some(extent) }, format!("0100{numbers}0100{extent_bytes}ffffff")),
        (Message::Ready, String::new()),
        (Message::Commit { paused_for: Duration::from_nanos(0x0102) }, "0201000000000000".to_owned()),
        (Message::Running, String::new()),
        (Message::Released, String::new()),
        (Message::Abort { reason: "é".to_owned() }, "0200c3a9".to_owned()),
        (Message::Failed { reason: String::new() }, "0000".to_owned()),
        (Message::Query { session, token }, ids.clone()),
        (Message::Answer(AnswerStatus::NeverStarted), "0200".to_owned()),
        (Message::Missing { first: ChunkIndex(5), words: vec![1, 2] }, format!("05000000{}", &numbers[..32])),
        (Message::Fetch { pages: vec![PageIndex(1), PageIndex(2)] }, numbers[..32].to_owned()),
        (Message::Resume { session, token }, ids),
        (Message::Arrived { first: ChunkIndex(5), words: vec![1, 2] }, format!("05000000{}", &numbers[..32])),
        (Message::Resumed { generation: 7, arrived: extent }, format!("07000000{extent_bytes}")),
        (Message::Complete { pages: PageCount(2) }, numbers[16..32].to_owned()),
        (Message::Stale { totals: vec![totals], stale: extent }, format!("0100{numbers}{extent_bytes}")),
        (Message::Discarded, String::new()),
    ]
}

#[test]
fn every_message_has_its_golden_bytes_and_comes_back() {
    for (number, (message, golden)) in (1..).zip(one_of_each()) {
        assert_eq!(body(&message), golden, "{}", message.name());
        let bytes = encode(&message);
        assert_eq!(bytes, envelope(1, number, &bytes[MESSAGE_HEADER_BYTES..]), "{}", message.name());
        assert_eq!(decode_message(&bytes), Ok(Some((message, bytes.len()))));
    }
}

#[test]
fn a_whole_message_has_its_golden_bytes() {
    let golden = [
        "50474645525259 0a", // magic
        "0100 0200",         // version, kind
        "0c000000",          // length of the body
        "01b4a51df3511954",  // xxh3 of the body
        "4831bd91b818d16d",  // xxh3 of all this
        "0200 01000000",     // channels, forms of pages
        "01000000 0002",     // features, granule
    ];
    let bytes: String = encode(&accept()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(bytes, golden.concat().replace(' ', ""));
}

#[test]
fn a_finish_that_does_not_switch_has_no_extent() {
    let message = Message::Finish { totals: vec![ChannelTotals::default()], state: vec![0xff; 3], missing: None };
    assert_eq!(body(&message), format!("0100{}0000ffffff", "0".repeat(64)));
    let bytes = encode(&message);
    assert_eq!(decode_message(&bytes), Ok(Some((message, bytes.len()))));
}

#[test]
fn a_cut_message_asks_for_more_and_a_flipped_bit_is_an_error() {
    for (message, _) in one_of_each() {
        let mut bytes = encode(&message);
        for length in 0..bytes.len() {
            assert_eq!(decode_message(&bytes[..length]), Ok(None), "{} cut to {length}", message.name());
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_message(&bytes).is_err(), "{} with bit {bit} flipped", message.name());
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn other_protocols_and_versions_are_recognised() {
    let not_pageferry = |first: &[u8]| Err(WireError::NotPageferry { first: first.to_vec() });
    assert_eq!(decode_message(b"GET / HTTP/1.1\r\n"), not_pageferry(b"GET / HT"));
    assert_eq!(decode_message(b"PGX"), not_pageferry(b"PGX"));
    assert_eq!(decode_message(&envelope(2, 1, b"whatever")), Err(WireError::Version { theirs: 2 }));
    assert_eq!(decode_message(&envelope(2, 99, &[])), Err(WireError::Version { theirs: 2 }));
    let refuse = envelope(2, 3, &[0xff, 0xff, 3, 0, b'w', b'h', b'y']);
    let expected = Message::Refuse { reason: RefuseReason::Other, detail: "why".to_owned() };
    assert_eq!(decode_message(&refuse), Ok(Some((expected, refuse.len()))));
}

#[test]
fn hostile_bodies_are_refused() {
    let field = |message, field| Err(WireError::Field { message, field });
    let hello = encode(&Message::Hello(offer()))[MESSAGE_HEADER_BYTES..].to_vec();
    let hello_with = |at: usize, bytes: &[u8]| {
        let mut hello = hello.clone();
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        hello
    };
    let finish_with = |tail: &[u8]| [[1, 0].as_slice(), &[0; 32], tail].concat();
    let cases = [
        (1, hello_with(32, &[0, 0]), field("Hello", "number of channels")),
        (1, hello_with(32, &[65, 0]), field("Hello", "number of channels")),
        (1, hello_with(42, &[0, 0]), field("Hello", "memory layout")),
        (1, hello_with(42, &[3, 0]), field("Hello", "memory layout")),
        (1, hello_with(42, &[0xff, 0xff]), field("Hello", "number of regions")),
        (1, hello_with(42, &[0, 4]), field("Hello", "region")),
        (1, hello_with(44, &[1]), field("Hello", "memory layout")),
        (1, hello_with(76, &[65]), field("Hello", "guest kind")),
        (1, hello_with(78, &[0xff]), field("Hello", "guest kind")),
        (1, hello_with(81, &[12]), field("Hello", "description")),
        (1, hello_with(81, &[10]), field("Hello", "length")),
        (2, vec![1], field("Accept", "number of channels")),
        (2, vec![], field("Accept", "number of channels")),
        (2, vec![1, 0, 1], field("Accept", "forms of pages")),
        (2, vec![1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0], field("Accept", "granule")),
        (2, vec![1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0], field("Accept", "granule")),
        (4, [[0; 32].as_slice(), &[64, 0, 0, 0, 0, 0]].concat(), field("Attach", "lane")),
        (4, [[0; 32].as_slice(), &[0xfe, 0xff, 0, 0, 0, 0]].concat(), field("Attach", "lane")),
        (4, [[0; 32].as_slice(), &[0xff, 0xff]].concat(), field("Attach", "generation")),
        (5, vec![64, 0], field("Attached", "lane")),
        (6, vec![0], Err(WireError::MessageLength { message: "Ping", length: 1, limit: 0 })),
        (8, vec![2, 0, 1, 1], field("Finish", "totals")),
        (8, finish_with(&[2, 0]), field("Finish", "switch")),
        (8, finish_with(&[1, 0, 1, 0, 0, 0, 1]), field("Finish", "extent")),
        (13, vec![1, 4], field("Abort", "reason")),
        (16, vec![4, 0], field("Answer", "status")),
        (17, vec![0; 4], field("Missing", "words")),
        (17, vec![0; 15], field("Missing", "words")),
        (17, vec![0; 3], field("Missing", "first chunk")),
        (17, vec![0; 4 + 8193 * 8], Err(WireError::MessageLength { message: "Missing", length: 65548, limit: 65540 })),
        (18, vec![], field("Fetch", "pages")),
        (18, vec![0; 9], field("Fetch", "pages")),
        (18, vec![0; 65 * 8], Err(WireError::MessageLength { message: "Fetch", length: 520, limit: 512 })),
        (19, vec![0; 31], field("Resume", "token")),
        (20, vec![0; 5], field("Arrived", "words")),
        (21, vec![0; 15], field("Resumed", "extent")),
        (22, vec![0; 7], field("Complete", "number of pages")),
        (22, vec![0; 9], Err(WireError::MessageLength { message: "Complete", length: 9, limit: 8 })),
        (0, vec![], Err(WireError::UnknownMessage { kind: 0 })),
        (23, vec![0, 0], field("Stale", "number of channels")),
        (23, [[1, 0].as_slice(), &[0; 31]].concat(), field("Stale", "totals")),
        (23, [[1, 0].as_slice(), &[0; 32 + 11]].concat(), field("Stale", "extent")),
        (24, vec![0], Err(WireError::MessageLength { message: "Discarded", length: 1, limit: 0 })),
        (25, vec![], Err(WireError::UnknownMessage { kind: 25 })),
    ];
    for (kind, body, expected) in cases {
        assert_eq!(decode_message(&envelope(VERSION, kind, &body)), expected, "kind {kind}");
    }
}

#[test]
fn a_length_without_end_is_refused() {
    let mut endless = envelope(VERSION, 8, &[]);
    endless[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let checksum = xxh3_64(&endless[..24]).to_le_bytes();
    endless[24..32].copy_from_slice(&checksum);
    assert!(matches!(decode_message(&endless), Err(WireError::MessageLength { message: "Finish", length: u32::MAX, .. })));
}

#[test]
fn only_a_guests_state_makes_a_message_long() {
    let long: Vec<_> = kind::Kind::ALL.into_iter().filter(|kind| kind.max_body_bytes() > SHORT_BODY_BYTES).map(kind::Kind::name).collect();
    assert_eq!(long, ["Finish"]);
}

#[test]
fn an_envelope_announces_its_message_before_the_body_is_there() {
    let bytes = encode(&Message::Missing { first: ChunkIndex(0), words: vec![1; 100] });
    let (before, whole) = (announced_message(&bytes[..MESSAGE_HEADER_BYTES - 1]), announced_message(&bytes[..MESSAGE_HEADER_BYTES]));
    assert_eq!((before, whole), (Ok(None), Ok(Some(Announced { message: "Missing", length: 804 }))));
    let mut altered = bytes;
    altered[12] ^= 1;
    assert_eq!(announced_message(&altered), Err(WireError::HeaderChecksum));
}

#[test]
fn the_longest_parts_fit_and_longer_ones_do_not() {
    let regions = (0..1024).map(|index| RegionSpec { start: GuestAddr(index * 8192), pages: PageCount(1) }).collect();
    let longest = Offer {
        channels: MAX_CHANNELS,
        layout: MemoryLayout::new(regions).unwrap(),
        guest_kind: "k".repeat(MAX_GUEST_KIND_BYTES),
        description: "d".repeat(MAX_DESCRIPTION_BYTES),
        ..offer()
    };
    let totals = vec![ChannelTotals::default(); usize::from(MAX_CHANNELS)];
    let fits = [
        Message::Hello(longest.clone()),
        Message::Finish { totals: totals.clone(), state: vec![1; MAX_STATE_BYTES], missing: Some(Extent::default()) },
        Message::Stale { totals: totals.clone(), stale: Extent::default() },
        Message::Missing { first: ChunkIndex(0), words: vec![1; MAX_BITMAP_WORDS] },
        Message::Arrived { first: ChunkIndex(0), words: vec![1; MAX_BITMAP_WORDS] },
        Message::Fetch { pages: vec![PageIndex(0); MAX_FETCH_PAGES] },
    ];
    for message in fits {
        let bytes = encode(&message);
        assert_eq!(decode_message(&bytes), Ok(Some((message, bytes.len()))));
    }
    let too_long = [
        Message::Hello(Offer { description: "d".repeat(MAX_DESCRIPTION_BYTES + 1), ..longest.clone() }),
        Message::Hello(Offer { guest_kind: "k".repeat(MAX_GUEST_KIND_BYTES + 1), ..longest }),
        Message::Finish { totals, state: vec![0; MAX_STATE_BYTES + 1], missing: None },
        Message::Missing { first: ChunkIndex(0), words: vec![1; MAX_BITMAP_WORDS + 1] },
        Message::Arrived { first: ChunkIndex(0), words: vec![1; MAX_BITMAP_WORDS + 1] },
        Message::Fetch { pages: vec![PageIndex(0); MAX_FETCH_PAGES + 1] },
    ];
    for message in too_long {
        let mut bytes = vec![7];
        assert!(matches!(message.encode(&mut bytes), Err(WireError::TooLong { .. })), "{}", message.name());
        assert_eq!(bytes, [7], "nothing is appended");
    }
    let cut = encode(&Message::Failed { reason: "é".repeat(600) + "x" });
    assert_eq!(decode_message(&cut), Ok(Some((Message::Failed { reason: "é".repeat(512) }, cut.len()))));
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_an_error_or_the_beginning_of_one(kind in 0u16..27, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = envelope(VERSION, kind, &body);
        if let Ok(Some((message, length))) = decode_message(&bytes) {
            prop_assert_eq!(length, bytes.len());
            // A Refuse may hold a reason that only a later version knows.
            prop_assert!(kind == 3 || encode(&message) == bytes);
        }
    }

    #[test]
    fn channels_share_the_chunks_fairly(channels in 1..=MAX_CHANNELS, first in 0u32..1 << 20) {
        let mut counts = vec![0u32; usize::from(channels)];
        (first..first + 4096).for_each(|chunk| counts[usize::from(channel_of(ChunkIndex(chunk), channels))] += 1);
        let fair = 4096 / u32::from(channels);
        prop_assert!(counts.iter().all(|count| (fair * 3 / 4..=fair * 5 / 4 + 2).contains(count)), "{:?}", counts);
    }
}
