//! The least that a migration of a guest can put on the wire, and how long that takes.
//!
//! Every page once, none that is zeros, and each as small as the best of columns, LZ4 and zstd's fast levels makes it,
//! together with its neighbours. The contents are those that the guest's own writes have left when the migration begins. No two pages of a
//! test guest are the same, so nothing is saved by finding such. Memory is sampled evenly: it is of one kind all
//! through.

use std::time::Duration;

use super::results::Floor;
use crate::guests::{GuestImage, GuestSpec, Rate};
use crate::page::columns_bytes;
use crate::units::{PAGE_SIZE, PAGE_WORDS};

/// The floor of a guest that has run for `time`, on a link of `bytes_per_s`.
pub(super) fn floor(image: &GuestImage, guest: &GuestSpec, time: Duration, bytes_per_s: f64) -> Floor {
    let done = match guest.rate() {
        Rate::Paced(rate) => u64::try_from(u128::from(rate) * time.as_nanos() / NANOS_A_SECOND).unwrap_or(u64::MAX),
        Rate::Max => u64::MAX,
    };
    let bytes = least_bytes(image, done);
    Floor { bytes, total_ms: bytes as f64 / bytes_per_s * 1e3 }
}

fn least_bytes(image: &GuestImage, done: u64) -> u64 {
    let (filled, written) = (image.filled(), image.written());
    let end = filled.end.max(written.start.saturating_add(done).min(written.end));
    let pages = end - filled.start;
    let stride = (pages.div_ceil(UNIT_PAGES)).div_ceil(SAMPLES).max(1);
    let (mut sampled, mut bytes) = (0, 0);
    let mut content = Vec::with_capacity(1 << 20);
    for first in (filled.start..end).step_by(step(stride)) {
        content.clear();
        let mut page = [0; PAGE_WORDS];
        for number in first..(first + UNIT_PAGES).min(end) {
            image.page_after(done, number, &mut page);
            content.extend(page.iter().flat_map(|word| word.to_le_bytes()));
        }
        sampled += (content.len() / PAGE_SIZE) as u64;
        bytes += least(&content) as u64;
    }
    (bytes * pages).checked_div(sampled).unwrap_or(0)
}

/// The pages from one sample to the next.
fn step(stride: u64) -> usize {
    usize::try_from(stride * UNIT_PAGES).expect("a guest's pages can be counted")
}

/// The smallest that any of the compressors makes of it, or columns of the pages that have such and a compressor of the
/// rest.
fn least(content: &[u8]) -> usize {
    let (mut in_columns, mut rest) = (0, Vec::with_capacity(content.len()));
    for page in content.as_chunks::<PAGE_SIZE>().0 {
        match columns_bytes(page) {
            Some(bytes) => in_columns += bytes,
            None => rest.extend_from_slice(page),
        }
    }
    least_compressed(content).min(in_columns + least_compressed(&rest))
}

fn least_compressed(content: &[u8]) -> usize {
    let lz4 = lz4_flex::block::compress(content).len();
    zstd(content).into_iter().chain([lz4, content.len()]).min().unwrap_or_default()
}

#[cfg(feature = "zstd")]
fn zstd(content: &[u8]) -> Vec<usize> {
    (1..=3).filter_map(|level| zstd::bulk::compress(content, level).ok()).map(|packed| packed.len()).collect()
}

#[cfg(not(feature = "zstd"))]
fn zstd(_content: &[u8]) -> Vec<usize> {
    Vec::new()
}

const NANOS_A_SECOND: u128 = 1_000_000_000;
/// A mebibyte: more than either engine compresses as one.
const UNIT_PAGES: u64 = 256;
const SAMPLES: u64 = 48;

#[cfg(test)]
mod tests {
    use super::*;

    fn image(keys: &str) -> GuestImage {
        GuestImage::with_clock(&format!("kvm:memory=128MiB,{keys}").parse().unwrap(), 1)
    }

    #[test]
    fn random_pages_count_whole_and_records_hardly() {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let half = mib(least_bytes(&image("fill=64MiB,random-every=2,working-set=1MiB"), 0));
        assert!((32.0..44.0).contains(&half), "{half}");
        let records = mib(least_bytes(&image("fill=64MiB,random-every=0,working-set=1MiB"), 0));
        assert!(records < 24.0, "{records}");
        assert_eq!(least_bytes(&image("fill=0,working-set=1MiB"), 0), 0);
    }

    #[test]
    fn what_the_guest_rewrote_is_random() {
        let image = image("fill=64MiB,random-every=0,working-set=64MiB,pattern=rewrite");
        let (before, after) = (least_bytes(&image, 0), least_bytes(&image, 16384));
        assert!(before < 24 << 20 && after >= 64 << 20, "{before} {after}");
    }
}
