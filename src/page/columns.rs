//! Pages of records: columns of words that are alike.
//!
//! Much of memory is arrays of structures, tables and counters: read as rows of a few 64-bit words, each column holds
//! values that share their high bytes (pointers, small numbers, flags), repeat, or count up. A general compressor finds
//! that too, at a few hundred megabytes a second; looking for it takes a tenth of a microsecond a page and coding it not
//! much more, so it pays on any link. Word `i` of a column is
//!
//! ```text
//! base + i * step + residual i        (mod 2^64)
//! ```
//!
//! with residuals of as many bytes as the largest needs, often none. Kin to base-delta-immediate compression
//! (Pekhimenko et al., PACT 2012) and to WKdm (Wilson, Kaplan, Smaragdakis, USENIX 1999), turned by columns.
//!
//! ```text
//! words in a row: 1 | for each column:  widths: 2 | base | step | residuals
//! ```
//!
//! where the widths are the bytes of a residual (bits 0 to 3), of the base (4 to 7) and of the step (8 to 11), each 0 to
//! 8, and numbers are little-endian.

use crate::units::{PAGE_SIZE, PAGE_WORDS};

/// The longest form in columns that is worth anything.
pub const MAX_COLUMNS_BYTES: usize = PAGE_SIZE / 4 * 3;

/// Appends `page` in columns to `out`; nothing, and false, when it has none, or that would take more than `limit` bytes.
pub(super) fn encode(page: &[u8; PAGE_SIZE], limit: usize, out: &mut Vec<u8>) -> bool {
    match row_of(page) {
        Some(5) => encode_rows::<5>(page, limit, out),
        Some(6) => encode_rows::<6>(page, limit, out),
        Some(7) => encode_rows::<7>(page, limit, out),
        Some(_) => encode_rows::<8>(page, limit, out),
        None => false,
    }
}

/// How many bytes `page` takes in columns, if it has such.
#[must_use]
pub fn columns_bytes(page: &[u8; PAGE_SIZE]) -> Option<usize> {
    let mut out = Vec::new();
    encode(page, MAX_COLUMNS_BYTES, &mut out).then_some(out.len())
}

/// Fills `page` from what [`encode`] made of it. `None` when it is not that: the page may be filled in part then.
#[must_use]
pub(super) fn decode(bytes: &[u8], page: &mut [u8; PAGE_SIZE]) -> Option<()> {
    let (&row, mut rest) = bytes.split_first()?;
    let row = usize::from(row);
    if !(1..=MAX_ROW).contains(&row) {
        return None;
    }
    let words = page.as_chunks_mut::<8>().0;
    let (mut bases, mut steps) = ([0; MAX_ROW], [0; MAX_ROW]);
    let mut residuals = [(0, [].as_slice()); MAX_ROW];
    let (rows, longer) = (PAGE_WORDS / row, PAGE_WORDS % row);
    for column in 0..row {
        let (widths, after) = rest.split_first_chunk()?;
        let widths = Widths::from_bits(u16::from_le_bytes(*widths))?;
        rest = after;
        (bases[column], steps[column]) = (take(&mut rest, widths.base)?, take(&mut rest, widths.step)?);
        let (bytes, after) = rest.split_at_checked((rows + usize::from(column < longer)) * widths.residual)?;
        residuals[column] = (widths.residual, bytes);
        rest = after;
    }
    count_up(words, row, &bases, &steps);
    for (column, &(width, bytes)) in residuals[..row].iter().enumerate() {
        let add = match width {
            0 => continue,
            1 => add_residuals::<1>,
            2 => add_residuals::<2>,
            3 => add_residuals::<3>,
            4 => add_residuals::<4>,
            5 => add_residuals::<5>,
            6 => add_residuals::<6>,
            7 => add_residuals::<7>,
            _ => add_residuals::<8>,
        };
        add(&mut words[column..], row, bytes);
    }
    rest.is_empty().then_some(())
}

/// Sets `words` to columns without residuals.
fn count_up(words: &mut [[u8; 8]], row: usize, bases: &[u64; MAX_ROW], steps: &[u64; MAX_ROW]) {
    match row {
        5 => count_up_rows::<5>(words, bases, steps),
        6 => count_up_rows::<6>(words, bases, steps),
        7 => count_up_rows::<7>(words, bases, steps),
        8 => count_up_rows::<8>(words, bases, steps),
        row => {
            let mut values = *bases;
            for words in words.chunks_mut(row) {
                for (word, (value, step)) in words.iter_mut().zip(values.iter_mut().zip(steps)) {
                    *word = value.to_le_bytes();
                    *value = value.wrapping_add(*step);
                }
            }
        }
    }
}

/// The same for rows that [`encode`] makes, [`SIDE_BY_SIDE`] columns at a time.
fn count_up_rows<const ROW: usize>(words: &mut [[u8; 8]], bases: &[u64; MAX_ROW], steps: &[u64; MAX_ROW]) {
    for start in (0..ROW).step_by(SIDE_BY_SIDE) {
        let (words, bases, steps) = (&mut words[start..], &bases[start..], &steps[start..]);
        if start + SIDE_BY_SIDE <= ROW {
            count_up_columns::<ROW, SIDE_BY_SIDE>(words, bases, steps);
        } else {
            count_up_columns::<ROW, 1>(words, bases, steps);
        }
    }
}

/// The same for the first `COLUMNS` columns.
fn count_up_columns<const ROW: usize, const COLUMNS: usize>(words: &mut [[u8; 8]], bases: &[u64], steps: &[u64]) {
    let mut values: [u64; COLUMNS] = std::array::from_fn(|column| bases[column]);
    let steps: [u64; COLUMNS] = std::array::from_fn(|column| steps[column]);
    let mut rows = words.chunks_exact_mut(ROW);
    for row in &mut rows {
        for column in 0..COLUMNS {
            row[column] = values[column].to_le_bytes();
            values[column] = values[column].wrapping_add(steps[column]);
        }
    }
    rows.into_remainder().iter_mut().zip(values).for_each(|(word, value)| *word = value.to_le_bytes());
}

/// Adds residuals of `WIDTH` bytes to every `row`th of `words`, from the first on: known to the compiler, each is a load or
/// two.
fn add_residuals<const WIDTH: usize>(words: &mut [[u8; 8]], row: usize, residuals: &[u8]) {
    for (word, bytes) in words.iter_mut().step_by(row).zip(residuals.as_chunks::<WIDTH>().0) {
        let mut residual = [0; 8];
        residual[..WIDTH].copy_from_slice(bytes);
        *word = u64::from_le_bytes(*word).wrapping_add(u64::from_le_bytes(residual)).to_le_bytes();
    }
}

/// How many words a row of `page` has, by how many of its first words have a like one before them at that distance. Rows
/// of one, two and four words show at eight.
fn row_of(page: &[u8; PAGE_SIZE]) -> Option<usize> {
    let words: &[[u8; 8]; LOOK_WORDS + 8] = page.as_chunks().0.first_chunk().expect("a page is longer");
    // Words that share their high bytes.
    let alike = |row: usize| {
        let pairs = words[8..].iter().zip(&words[8 - row..]);
        pairs.map(|(word, before)| u64::from((u64::from_le_bytes(*word) ^ u64::from_le_bytes(*before)) >> 40 == 0)).sum::<u64>()
    };
    let (mut best, mut row) = (alike(8), 8);
    if best == LOOK_WORDS as u64 {
        return Some(8);
    }
    for (other, alike) in [(7, alike(7)), (6, alike(6)), (5, alike(5))] {
        if alike > best {
            (best, row) = (alike, other);
        }
    }
    (best >= ENOUGH_ALIKE).then_some(row)
}

/// Bytes of the numbers of a column.
#[derive(Clone, Copy)]
struct Widths {
    residual: usize,
    base: usize,
    step: usize,
}

impl Widths {
    fn from_bits(bits: u16) -> Option<Self> {
        let field = |at: u16| usize::from(bits >> at & 0xf);
        let widths = Self { residual: field(0), base: field(4), step: field(8) };
        (bits >> 12 == 0 && [widths.residual, widths.base, widths.step].iter().all(|width| *width <= 8)).then_some(widths)
    }

    fn bits(self) -> u16 {
        let field = |width: usize, at: u16| u16::try_from(width).expect("at most 8") << at;
        field(self.residual, 0) | field(self.base, 4) | field(self.step, 8)
    }
}

fn encode_rows<const ROW: usize>(page: &[u8; PAGE_SIZE], limit: usize, out: &mut Vec<u8>) -> bool {
    let mut columns = [Column::default(); ROW];
    for (first, columns) in (0..).step_by(SIDE_BY_SIDE).zip(columns.chunks_mut(SIDE_BY_SIDE)) {
        match columns {
            [one, other] => [*one, *other] = look_at::<ROW, SIDE_BY_SIDE>(page, first),
            last => last.copy_from_slice(&look_at::<ROW, 1>(page, first)),
        }
    }
    let length = |(column, parts): (usize, &Column)| parts.bytes(words_in::<ROW>(column));
    let total = 1 + columns.iter().enumerate().map(length).sum::<usize>();
    if total > limit {
        return false;
    }
    out.push(u8::try_from(ROW).expect("a short row"));
    for (column, parts) in columns.iter().enumerate() {
        parts.push(out);
        let words = &page.as_chunks::<8>().0[column..];
        match parts.residual {
            0 => {}
            1 => push_residuals::<ROW, 1>(words, parts, out),
            2 => push_residuals::<ROW, 2>(words, parts, out),
            3 => push_residuals::<ROW, 3>(words, parts, out),
            4 => push_residuals::<ROW, 4>(words, parts, out),
            5 => push_residuals::<ROW, 5>(words, parts, out),
            6 => push_residuals::<ROW, 6>(words, parts, out),
            7 => push_residuals::<ROW, 7>(words, parts, out),
            _ => push_residuals::<ROW, 8>(words, parts, out),
        }
    }
    true
}

/// What `COLUMNS` columns of `page` from column `start` on have in common.
fn look_at<const ROW: usize, const COLUMNS: usize>(page: &[u8; PAGE_SIZE], start: usize) -> [Column; COLUMNS] {
    let words = &page.as_chunks::<8>().0[start..];
    let word = |at: usize| u64::from_le_bytes(words[at]);
    let first: [u64; COLUMNS] = std::array::from_fn(word);
    let steps: [u64; COLUMNS] = std::array::from_fn(|column| word(ROW + column).wrapping_sub(first[column]));
    // The bits in which words differ from the first, and from where counting up would get them.
    let (mut differs, mut strays, mut counted) = ([0u64; COLUMNS], [0u64; COLUMNS], first);
    let mut look = |column: usize, bytes: [u8; 8]| {
        let value = u64::from_le_bytes(bytes);
        differs[column] |= value ^ first[column];
        strays[column] |= value.wrapping_sub(counted[column]);
        counted[column] = counted[column].wrapping_add(steps[column]);
    };
    let rows = words.chunks_exact(ROW);
    let last_row = rows.remainder();
    rows.for_each(|row| (0..COLUMNS).for_each(|column| look(column, row[column])));
    last_row.iter().take(COLUMNS).enumerate().for_each(|(column, bytes)| look(column, *bytes));
    std::array::from_fn(|column| {
        let (alike, counting) = (width(differs[column]), width(strays[column]));
        if counting < alike {
            Column { base: first[column], step: steps[column], residual: counting }
        } else {
            // The bytes in which they differ are all in the residuals.
            let kept = if alike == 8 { 0 } else { u64::MAX << (alike * 8) };
            Column { base: first[column] & kept, step: 0, residual: alike }
        }
    })
}

/// Appends what is left of every `ROW`th of `words`, from the first on, in `WIDTH` bytes each: known to the compiler, each
/// is a store or two.
fn push_residuals<const ROW: usize, const WIDTH: usize>(words: &[[u8; 8]], column: &Column, out: &mut Vec<u8>) {
    const { assert!(ROW >= LEAST_ROW) }
    let mut residuals = [[0; WIDTH]; PAGE_WORDS.div_ceil(LEAST_ROW)];
    let mut value = column.base;
    let mut used = 0;
    for (bytes, to) in words.iter().step_by(ROW).zip(&mut residuals) {
        let residual = u64::from_le_bytes(*bytes).wrapping_sub(value).to_le_bytes();
        to.copy_from_slice(&residual[..WIDTH]);
        value = value.wrapping_add(column.step);
        used += 1;
    }
    out.extend_from_slice(residuals[..used].as_flattened());
}

/// What the words of a column have in common.
#[derive(Clone, Copy, Default)]
struct Column {
    base: u64,
    step: u64,
    /// Bytes of what they do not.
    residual: usize,
}

impl Column {
    fn widths(&self) -> Widths {
        Widths { residual: self.residual, base: width(self.base), step: width(self.step) }
    }

    /// Bytes of a column of so many words.
    fn bytes(&self, words: usize) -> usize {
        let Widths { residual, base, step } = self.widths();
        2 + base + step + residual * words
    }

    /// Appends all but the residuals.
    fn push(&self, out: &mut Vec<u8>) {
        let widths = self.widths();
        out.extend(widths.bits().to_le_bytes());
        out.extend_from_slice(&self.base.to_le_bytes()[..widths.base]);
        out.extend_from_slice(&self.step.to_le_bytes()[..widths.step]);
    }
}

/// Words in a column.
const fn words_in<const ROW: usize>(column: usize) -> usize {
    (PAGE_WORDS - column).div_ceil(ROW)
}

/// Bytes that a number needs.
fn width(number: u64) -> usize {
    8 - number.leading_zeros() as usize / 8
}

/// A number of `width` bytes, at most 8, from the front of `bytes`.
fn take(bytes: &mut &[u8], width: usize) -> Option<u64> {
    let (taken, rest) = bytes.split_at_checked(width)?;
    *bytes = rest;
    let mut number = [0; 8];
    number[..width].copy_from_slice(taken);
    Some(u64::from_le_bytes(number))
}

/// Words of a row that [`encode`] looks for at least.
const LEAST_ROW: usize = 5;
/// Words of a row at most.
const MAX_ROW: usize = 16;
/// Columns that are worked on at a time: one of the vectors that every processor has holds a word of each.
const SIDE_BY_SIDE: usize = 2;
/// Words looked at to find the length of a row.
const LOOK_WORDS: usize = 24;
/// Of them so many must be like one before.
const ENOUGH_ALIKE: u64 = 14;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(word: impl Fn(usize) -> u64) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        page.as_chunks_mut::<8>().0.iter_mut().enumerate().for_each(|(at, bytes)| *bytes = word(at).to_le_bytes());
        page
    }

    /// Scrambles a number (the finalizer of splitmix64).
    fn mix(number: usize) -> u64 {
        let number = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^ (number >> 31)
    }

    fn there_and_back(page: &[u8; PAGE_SIZE]) -> Option<usize> {
        let mut out = b"before".to_vec();
        let encoded = encode(page, MAX_COLUMNS_BYTES, &mut out);
        assert!(out.starts_with(b"before"));
        if !encoded {
            assert_eq!(out.len(), 6, "nothing is left of a try");
            return None;
        }
        let mut decoded = [0xa5; PAGE_SIZE];
        assert_eq!(decode(&out[6..], &mut decoded), Some(()));
        assert!(decoded == *page);
        Some(out.len() - 6)
    }

    #[test]
    fn records_take_a_fraction_of_their_page() {
        type Word = fn(usize) -> u64;
        let table: [(&str, Word, usize); 6] = [
            ("a number of the page, a counter, 16 random bits, zero", |at| [77, at as u64 / 4 * 4 + 1, mix(at) & 0xffff, 0][at % 4], 290),
            ("pointers into one heap", |at| 0x7f12_3400_0000 | mix(at) & 0xff_fff8, 512 * 3 + 90),
            ("counting words", |at| (1 << 40) + at as u64 * 24, 120),
            ("records of five words", |at| [mix(at) & 0xff, 1 << 50, at as u64, 3, 0][at % 5], 103 + 70),
            ("records of six words", |at| [mix(at) & 0xff, 1 << 50, at as u64, 3, 0, 9][at % 6], 86 + 70),
            ("counting down", |at| 1_000_000 - at as u64, 150),
        ];
        for (name, word, most) in table {
            let bytes = there_and_back(&page(word));
            assert!(bytes.is_some_and(|bytes| bytes <= most), "{name}: {bytes:?}");
        }
    }

    #[test]
    fn pages_without_columns_have_no_such_form() {
        assert_eq!(there_and_back(&page(mix)), None);
        let text = b"memory is copied while the guest that writes to it runs on, round after round. ";
        assert_eq!(there_and_back(&page(|at| u64::from_le_bytes(std::array::from_fn(|byte| text[(at * 8 + byte) % text.len()])))), None);
        let changes_its_mind = page(|at| if at < 100 { 5 } else { mix(at) });
        assert_eq!(there_and_back(&changes_its_mind), None);
    }

    #[test]
    fn columns_have_their_golden_bytes() {
        let mut out = Vec::new();
        assert!(encode(&page(|at| if at % 8 == 0 { 0x0100 + at as u64 } else { 0 }), MAX_COLUMNS_BYTES, &mut out));
        // Rows of 8: the first column counts from 0x100 by 8 and needs nothing else, the others are zeros.
        let expected = [[8].as_slice(), &[0x20, 0x01, 0x00, 0x01, 8], &[0; 14]].concat();
        assert_eq!(out, expected);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let mut page = [0; PAGE_SIZE];
        let one = |widths: u16, rest: &[u8]| [[1].as_slice(), &widths.to_le_bytes(), rest].concat();
        for bad in
            [vec![], vec![0], vec![17], vec![1], vec![1, 0], one(0x1000, &[]), one(9, &[]), one(0x90, &[]), one(1, &[0; 511]), one(1, &[0; 513])]
        {
            assert_eq!(decode(&bad, &mut page), None, "{bad:?}");
        }
        assert_eq!(decode(&one(1, &[7; 512]), &mut page), Some(()));
        assert_eq!(page[..16], [7, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn whatever_has_columns_comes_back(
            row in 1usize..=8,
            columns in prop::collection::vec((any::<u64>(), any::<u64>(), 0u32..64), 8),
            strays in prop::collection::vec((0..PAGE_WORDS, any::<u64>()), 0..3),
        ) {
            let mut page = page(|at| {
                let (base, step, shift) = columns[at % row];
                base.wrapping_add(step >> shift).wrapping_mul(1 + (at / row) as u64 * (step & 1)).wrapping_add(mix(at) >> shift >> 1)
            });
            for (at, word) in strays {
                page[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
            }
            there_and_back(&page);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes, &mut [0; PAGE_SIZE]);
        }
    }
}
