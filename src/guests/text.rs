//! Pages that read like text: a program's logs, pages of the web, source code.
//!
//! What matters to a compressor is how often words come and come again. There are 4096 made-up words, the common ones
//! short, and the chance of a word falls as its rank rises, as in any language; and a page comes back to a few phrases
//! of its own, as documents do. LZ4 makes about half of such a page, zstd about a third of a chunk of them. Everything
//! follows from integers, so that any two hosts make the same text.

use super::pages::Page;
use super::pattern::mix;
use crate::units::{PAGE_SIZE, PAGE_WORDS};

/// The words, of which all text is made.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    letters: Vec<u8>,
    /// Where each word ends in `letters`.
    ends: Vec<usize>,
}

impl Vocabulary {
    pub(super) fn new() -> Self {
        let mut vocabulary = Self { letters: Vec::new(), ends: Vec::new() };
        for rank in 0..WORDS {
            vocabulary.invent(rank);
        }
        vocabulary
    }

    /// Adds the word of `rank`: the rarer, the longer.
    fn invent(&mut self, rank: u64) {
        let mut dice = Dice(mix(LANGUAGE, rank + 1));
        let syllables = (1 + (u64::from(rank.max(1).ilog2()) + dice.roll(3)) / 4).max(1);
        for _ in 0..syllables {
            self.letters.push(dice.pick(b"tnshrdlcmwfgypbvk"));
            self.letters.push(dice.pick(b"eaoiu"));
            if dice.roll(3) == 0 {
                self.letters.push(dice.pick(b"nrstld"));
            }
        }
        self.ends.push(self.letters.len());
    }

    /// The word that the number `x` falls on: half the chance for twice the rank.
    fn word(&self, x: u64) -> &[u8] {
        let octave = (x >> 40) % u64::from(WORDS.ilog2());
        let rank = usize::try_from(1 << octave | x & ((1 << octave) - 1)).expect("less than the number of words");
        &self.letters[self.ends[rank - 1]..self.ends[rank]]
    }

    /// Page `page` of the text that `seed` names.
    pub(super) fn page(&self, seed: u64, page: u64, out: &mut Page) {
        let mut text = [0; PAGE_SIZE];
        let (mut end, start, topic) = (0, mix(seed, page), mix(seed, !page));
        for n in 1.. {
            let x = mix(start, n);
            if x >> 56 < PHRASES {
                let phrase = mix(topic, (x >> 48) % TOPICS);
                (0..PHRASE_WORDS).for_each(|n| self.append(mix(phrase, n), &mut text, &mut end));
            } else {
                self.append(x, &mut text, &mut end);
            }
            if end == PAGE_SIZE {
                break;
            }
        }
        let words: &[[u8; 8]; PAGE_WORDS] = text.as_chunks().0.try_into().expect("a page has so many words");
        *out = words.map(u64::from_le_bytes);
    }

    /// Appends the word that `x` falls on, as far as there is room.
    fn append(&self, x: u64, text: &mut [u8], end: &mut usize) {
        let space = if (x >> 50).is_multiple_of(LINE_WORDS) { b'\n' } else { b' ' };
        for letter in self.word(x).iter().copied().chain([space]) {
            if let Some(place) = text.get_mut(*end) {
                *place = letter;
                *end += 1;
            }
        }
    }
}

/// A number to draw from, a little at a time.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        let rolled = self.0 % sides;
        self.0 /= sides;
        rolled
    }

    fn pick(&mut self, letters: &[u8]) -> u8 {
        letters[usize::try_from(self.roll(letters.len() as u64)).expect("an index")]
    }
}

/// How many words there are, a power of two.
const WORDS: u64 = 1 << 12;
/// What the words come from.
const LANGUAGE: u64 = 7;
/// Of 256 draws, those that are a phrase of the page's own.
const PHRASES: u64 = 72;
/// Phrases of its own that a page has.
const TOPICS: u64 = 12;
/// Words of such a phrase.
const PHRASE_WORDS: u64 = 3;
/// Words of a line, on average.
const LINE_WORDS: u64 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_words_with_spaces_between() {
        let mut page = [0; PAGE_WORDS];
        Vocabulary::new().page(1, 4096, &mut page);
        let text: Vec<u8> = page.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert!(text.iter().all(|letter| letter.is_ascii_lowercase() || b" \n".contains(letter)));
        let words: Vec<_> = text.split(|letter| b" \n".contains(letter)).collect();
        assert!((600..1200).contains(&words.len()), "{} words", words.len());
        let mut distinct = words.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!((150..500).contains(&distinct.len()), "{} distinct ones", distinct.len());
    }

    #[test]
    fn lz4_makes_about_half_of_it() {
        let vocabulary = Vocabulary::new();
        let mut packed = 0;
        for number in 0..64 {
            let mut page = [0; PAGE_WORDS];
            vocabulary.page(1, number, &mut page);
            let bytes: Vec<u8> = page.iter().flat_map(|word| word.to_le_bytes()).collect();
            packed += lz4_flex::block::compress(&bytes).len();
        }
        let ratio = 64.0 * PAGE_SIZE as f64 / packed as f64;
        assert!((1.7..2.1).contains(&ratio), "{ratio}");
    }
}
