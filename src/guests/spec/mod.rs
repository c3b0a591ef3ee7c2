//! The description of a test guest: `KIND:key=value,...`.
//!
//! The same text is a command-line flag at the source and, in the handshake, the instructions from which the
//! destination builds the same guest. So it is parsed once, into a [`GuestSpec`] that is known to make sense, and it is
//! treated as what it is at the destination: bytes from a peer.

mod error;

use std::fmt;
use std::str::FromStr;

pub use error::SpecError;

use super::PROGRAM_BYTES;
use super::fill::Content;
use super::pattern::Pattern;
use crate::units::text::{Exact, parse_size};
use crate::units::{ByteCount, PAGE_SIZE, PageCount};

/// Guest memory a description may ask for at most.
pub const MAX_GUEST_BYTES: ByteCount = ByteCount(512 << 30);
/// Writes a second a paced guest may be asked for at most.
pub const MAX_RATE: u64 = 100_000_000;
/// What the messages say is accepted as a size.
const SIZE: &str = "a size in whole pages, such as 64MiB, 1.5GiB or 4096";

/// Who does the writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestKind {
    /// A thread of this process.
    Workload,
    /// The vCPU of a KVM guest.
    Kvm,
}

impl GuestKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Workload, Self::Kvm];

    /// The name in descriptions, flags and the handshake.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Kvm => "kvm",
        }
    }
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GuestKind {
    type Err = SpecError;

    fn from_str(name: &str) -> Result<Self, SpecError> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| SpecError::Kind { found: name.to_owned() })
    }
}

/// How often a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// This many times a second, 1 to [`MAX_RATE`].
    Paced(u64),
    /// As often as it can.
    Max,
}

impl Rate {
    /// Nanoseconds between two writes, 0 when unpaced.
    #[must_use]
    pub fn period_ns(self) -> u64 {
        match self {
            Self::Paced(rate) => 1_000_000_000 / rate,
            Self::Max => 0,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paced(rate) => write!(f, "{rate}"),
            Self::Max => f.write_str("max"),
        }
    }
}

/// A test guest, described. Everything in it fits together: fill and working set lie inside the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpec {
    kind: GuestKind,
    memory: ByteCount,
    fill: ByteCount,
    random_every: u64,
    content: Content,
    working_set: ByteCount,
    rate: Rate,
    pattern: Pattern,
    seed: u64,
}

impl GuestSpec {
    /// The guest of `kind` that `keys` (`key=value,...`, may be empty) describes. Keys left out have their defaults:
    /// `memory=256MiB`, `fill` half of it (what fits), `random-every=2`, `content=records`, `working-set=16MiB`,
    /// `rate=20000`, `pattern=sweep`, `seed=1`.
    ///
    /// # Errors
    /// Names the key, its value and what is accepted.
    pub fn from_parts(kind: &str, keys: &str) -> Result<Self, SpecError> {
        let mut spec = Self {
            kind: kind.parse()?,
            memory: ByteCount(256 << 20),
            fill: ByteCount(0),
            random_every: 2,
            content: Content::Records,
            working_set: ByteCount(16 << 20),
            rate: Rate::Paced(20_000),
            pattern: Pattern::Sweep,
            seed: 1,
        };
        let mut seen = [false; KEYS.len()];
        for pair in keys.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| SpecError::NotAPair { found: pair.to_owned() })?;
            let index = KEYS.iter().position(|known| *known == key).ok_or_else(|| SpecError::Key { found: key.to_owned() })?;
            if std::mem::replace(&mut seen[index], true) {
                return Err(SpecError::Twice { key: KEYS[index] });
            }
            spec.set(KEYS[index], value)?;
        }
        if !seen[FILL] {
            let room = spec.memory.0.saturating_sub(PROGRAM_BYTES.0);
            spec.fill = ByteCount((spec.memory.0 / 2).min(room) & !(PAGE_SIZE as u64 - 1));
        }
        spec.check_fit()?;
        Ok(spec)
    }

    fn set(&mut self, key: &'static str, value: &str) -> Result<(), SpecError> {
        let bad = |accepted| SpecError::Value { key, found: value.to_owned(), accepted };
        let size = || parse_size(value).ok().filter(|size| size.0 % PAGE_SIZE as u64 == 0).ok_or_else(|| bad(SIZE));
        match key {
            "memory" => self.memory = size()?,
            "fill" => self.fill = size()?,
            "working-set" => self.working_set = size()?,
            "random-every" => self.random_every = value.parse().map_err(|_| bad("a number of pages, 0 for no random page"))?,
            "content" => {
                let content = Content::ALL.into_iter().find(|content| content.name() == value);
                self.content = content.ok_or_else(|| bad("records, text or sparse"))?;
            }
            "rate" if value == "max" => self.rate = Rate::Max,
            "rate" => {
                let rate = value.parse().ok().filter(|rate| (1..=MAX_RATE).contains(rate));
                self.rate = Rate::Paced(rate.ok_or_else(|| bad("pages a second from 1 to 100000000, or max"))?);
            }
            "pattern" => {
                let pattern = Pattern::ALL.into_iter().find(|pattern| pattern.name() == value);
                self.pattern = pattern.ok_or_else(|| bad("sweep, random, rewrite or hot-cold"))?;
            }
            "seed" => self.seed = value.parse().map_err(|_| bad("a number of 64 bits"))?,
            _ => unreachable!("every key of KEYS has its arm"),
        }
        Ok(())
    }

    fn check_fit(&self) -> Result<(), SpecError> {
        let least = ByteCount(PROGRAM_BYTES.0 + PAGE_SIZE as u64);
        if self.memory < least || self.memory > MAX_GUEST_BYTES {
            return Err(SpecError::Memory { found: self.memory, least });
        }
        let room = ByteCount(self.memory.0 - PROGRAM_BYTES.0);
        if self.fill > room {
            return Err(SpecError::Room { key: "fill", found: self.fill, room });
        }
        if self.working_set > room || self.working_set.0 == 0 {
            return Err(SpecError::Room { key: "working-set", found: self.working_set, room });
        }
        Ok(())
    }

    /// Who does the writing.
    #[must_use]
    pub fn kind(&self) -> GuestKind {
        self.kind
    }

    /// All of the guest's memory.
    #[must_use]
    pub fn memory(&self) -> ByteCount {
        self.memory
    }

    /// How much of it is filled before the guest starts, from 16 MiB on.
    #[must_use]
    pub fn fill(&self) -> ByteCount {
        self.fill
    }

    /// Every how many pages of the fill one is random; 0 for none.
    #[must_use]
    pub fn random_every(&self) -> u64 {
        self.random_every
    }

    /// What the other pages of the fill hold.
    #[must_use]
    pub fn content(&self) -> Content {
        self.content
    }

    /// How much of it the guest writes to, from 16 MiB on.
    #[must_use]
    pub fn working_set(&self) -> ByteCount {
        self.working_set
    }

    /// The working set in pages, at least one.
    #[must_use]
    pub fn working_set_pages(&self) -> PageCount {
        self.working_set.pages()
    }

    /// How often it writes.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Where it writes.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// What its random choices and words come from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The canonical `key=value,...`: with [`GuestKind::name`] all that a destination needs.
    #[must_use]
    pub fn keys(&self) -> String {
        format!(
            "memory={},fill={},random-every={},content={},working-set={},rate={},pattern={},seed={}",
            Exact(self.memory),
            Exact(self.fill),
            self.random_every,
            self.content,
            Exact(self.working_set),
            self.rate,
            self.pattern,
            self.seed
        )
    }
}

impl FromStr for GuestSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (kind, keys) = text.split_once(':').unwrap_or((text, ""));
        Self::from_parts(kind, keys)
    }
}

impl fmt::Display for GuestSpec {
    /// The canonical form, with every key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.keys())
    }
}

const KEYS: [&str; 8] = ["memory", "fill", "random-every", "content", "working-set", "rate", "pattern", "seed"];
const FILL: usize = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn defaults_are_the_documented_ones() {
        let spec: GuestSpec = "workload".parse().unwrap();
        assert_eq!(
            spec.to_string(),
            "workload:memory=256MiB,fill=128MiB,random-every=2,content=records,working-set=16MiB,rate=20000,pattern=sweep,seed=1"
        );
        assert_eq!("kvm:memory=40MiB".parse::<GuestSpec>().unwrap().fill(), ByteCount(20 << 20));
        assert_eq!("kvm:memory=20MiB,working-set=4096".parse::<GuestSpec>().unwrap().fill(), ByteCount(4 << 20));
    }

    #[test]
    fn the_canonical_form_is_read_back_as_the_same_guest() {
        for text in [
            "kvm:memory=1.5GiB,fill=64MiB,random-every=0,rate=max,pattern=hot-cold,seed=18446744073709551615",
            "workload:memory=16781312,fill=0,content=text,working-set=4KiB,pattern=rewrite,rate=1",
        ] {
            let spec: GuestSpec = text.parse().unwrap();
            assert_eq!(spec.to_string().parse::<GuestSpec>().unwrap(), spec, "{text}");
            assert_eq!(GuestSpec::from_parts(spec.kind().name(), &spec.keys()).unwrap(), spec);
        }
    }

    #[test]
    fn mistakes_are_named_with_what_is_accepted() {
        for (text, says) in [
            ("vm:memory=1GiB", "there is no guest kind \"vm\": workload and kvm are accepted"),
            ("kvm:memory", "\"memory\" is not of the form key=value"),
            ("kvm:size=1", "there is no guest key \"size\": accepted are memory, fill,"),
            ("kvm:seed=1,seed=2", "the guest key seed is given twice"),
            ("kvm:memory=1MB", "guest key memory=1MB: a size in whole pages, such as 64MiB"),
            ("kvm:memory=17MiB", "guest key working-set=16MiB: 4096 to 1MiB is accepted"),
            ("kvm:memory=16MiB", "guest key memory=16MiB: from 16388KiB to 512GiB is accepted"),
            ("kvm:memory=1TiB", "guest key memory=1TiB: from 16388KiB to 512GiB is accepted"),
            ("kvm:fill=241MiB", "guest key fill=241MiB: 0 to 240MiB is accepted"),
            ("kvm:working-set=0", "guest key working-set=0: 4096 to 240MiB is accepted"),
            ("kvm:working-set=5000", "guest key working-set=5000: a size in whole pages"),
            ("kvm:rate=0", "guest key rate=0: pages a second from 1 to 100000000, or max"),
            ("kvm:content=music", "guest key content=music: records, text or sparse"),
            ("kvm:pattern=zigzag", "guest key pattern=zigzag: sweep, random, rewrite or hot-cold"),
            ("kvm:memory=99999999999999999999", "guest key memory="),
            ("kvm:memory=18446744073709551615TiB", "guest key memory="),
        ] {
            let error = text.parse::<GuestSpec>().unwrap_err().to_string();
            assert!(error.starts_with(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}", key in prop::sample::select(&KEYS[..])) {
            let _ = text.parse::<GuestSpec>();
            let _ = GuestSpec::from_parts("kvm", &format!("{key}={text}"));
        }
    }
}
