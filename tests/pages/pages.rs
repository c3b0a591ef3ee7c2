//! Encoder and decoder against each other.

use pageferry::bitmap::PageBitmap;
use pageferry::page::{Compression, Decoder, Encoder, Masks, PageError};
use pageferry::units::ChunkIndex;
use proptest::prelude::*;

use crate::content::*;

const CHUNK: ChunkIndex = ChunkIndex(0);

/// As a receiver does it: raw pages first, then the rest.
fn place(decoder: &mut Decoder, memory: &pageferry::memory::GuestMemory, masks: &Masks, payload: &[u8]) -> Result<(), PageError> {
    let mut placement = memory.placement();
    let (raw, meta) = payload.split_at(masks.raw_bytes());
    placement.write_front(CHUNK, masks.raw, raw);
    decoder.place_meta(&mut placement, CHUNK, masks, meta)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pages_arrive_as_they_were(
        rounds in prop::collection::vec((prop::collection::vec(content(), 64), any::<u64>()), 1..4),
        pages in 1usize..=64,
        compression in prop_oneof![Just(Compression::None), Just(Compression::Lz4)],
    ) {
        let (source, destination) = (memory(pages), memory(pages));
        let valid = u64::MAX >> (64 - pages);
        let mut encoder = Encoder::new(compression, 1);
        let mut decoder = Decoder::new(PageBitmap::new(1));
        for (contents, mask) in rounds {
            let mask = mask & valid;
            fill(&source, CHUNK, &contents, mask);
            let mut payload = Vec::new();
            let encoded = encoder.encode(CHUNK, source.chunk(CHUNK), mask, &mut payload);
            prop_assert_eq!(encoded.masks.all(), mask);
            prop_assert!(encoded.masks.is_disjoint());
            prop_assert_eq!(encoded.masks.raw_bytes() + encoded.meta_bytes as usize, payload.len());
            prop_assert!(encoded.masks.meta_bounds().contains(&(encoded.meta_bytes as usize)));
            prop_assert!(compression == Compression::Lz4 || encoded.masks.lz4 == 0);
            prop_assert_eq!(place(&mut decoder, &destination, &encoded.masks, &payload), Ok(()));
            prop_assert!(pages_of(&source, CHUNK) == pages_of(&destination, CHUNK));
        }
    }
}
