//! Which method the next chunk is packed with.
//!
//! Compression pays where the link is the bottleneck and costs where a processor is, and neither is known in advance or
//! stays as it is. So a [`Chooser`] measures what each method costs and saves on the pages at hand ([`costs`]) and what
//! the connections take ([`link`], [`path`]), and mixes two methods so that neither the processor nor the link waits for the
//! other ([`plan`]). It does no input or output and has no clock: time comes in as an argument.
//!
//! Pages are alike where they are neighbours, and a worker walks memory in order, so the last few chunks say what the
//! next one will be like. A method that is not in use is tried on one chunk now and then, the more rarely the more that
//! costs: all tries together may take a few hundredths of the time.

mod costs;
mod link;
mod path;
mod plan;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::{Compression, Keep, Packed};
use costs::Costs;
use link::Link;
use plan::{Demand, Plan};

pub use link::LinkSample;
pub use path::Path;

/// What to do with the pages of a chunk that have no cheaper form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Nothing.
    Raw,
    /// LZ4, page by page.
    Lz4,
    /// zstd at this level, all of them as one unit.
    Zstd(i32),
}

/// Picks methods for one worker.
#[derive(Debug)]
pub struct Chooser {
    setting: Compression,
    costs: [Costs; LADDER.len()],
    link: Link,
    plan: Plan,
    /// Owed to the heavier of the plan's two methods, in chunks.
    credit: f64,
    /// Plain bytes of a chunk, on average.
    chunk_bytes: f64,
    /// Chunks since one was used to try a method.
    untried: u32,
    /// The method used last.
    latest: usize,
}

impl Chooser {
    /// A chooser for a worker whose connection is one of those of `path`; a fixed setting always answers the same.
    #[must_use]
    pub fn new(setting: Compression, path: Arc<Path>) -> Self {
        Self { setting, costs: PRIORS, link: Link::new(path), plan: Plan::only(0), credit: 0.0, chunk_bytes: 65536.0, untried: 0, latest: 0 }
    }

    /// A chooser for another worker, on a connection of its own, that begins with what this one has learned of pages and
    /// link. Those that it meets may be others: that shows as it goes.
    #[must_use]
    pub fn successor(&self, setting: Compression, path: Arc<Path>) -> Self {
        let Self { costs, chunk_bytes, latest, .. } = *self;
        let link = self.link.successor(Arc::clone(&path));
        Self { costs, chunk_bytes, latest, link, ..Self::new(setting, path) }
    }

    /// The method for the next chunk.
    pub fn method(&mut self, now: Instant) -> Method {
        self.link.resume(now);
        match self.setting {
            Compression::None => Method::Raw,
            Compression::Lz4 => Method::Lz4,
            Compression::Zstd => FIXED_ZSTD,
            Compression::Auto => {
                let index = self.choose(now);
                self.costs[index].use_at(now);
                LADDER[index]
            }
        }
    }

    /// A copy of a page is worth its making for the bytes that it may save later where the link is what all wait for, and not so
    /// fast that it carries them in less time. A hash costs a tenth of that, and is worth it unless processors are what all
    /// wait for: then it would delay every page, and most do not come back. What is kept goes to memory that was never
    /// touched, which is expensive.
    #[must_use]
    pub fn keep(&self) -> Keep {
        match (self.link.is_bottleneck(), self.link.rate()) {
            (true, rate) if rate < FAST => Keep::Copies,
            (true, rate) if rate < FASTER => Keep::Hashes,
            (false, rate) if rate < FAST => Keep::Hashes,
            _ => Keep::HashesOfReturning,
        }
    }

    /// Takes note of what `method` made of a chunk, and how long it had a processor for that.
    pub fn encoded(&mut self, method: Method, packed: Packed) {
        let Packed { plain_bytes, raw_bytes, packed_bytes, took } = packed;
        let Some(index) = LADDER.iter().position(|known| *known == method) else { return };
        if plain_bytes == 0 {
            return;
        }
        let (plain, took) = (plain_bytes as f64, took.as_secs_f64());
        self.chunk_bytes += (plain - self.chunk_bytes) / 8.0;
        // Every chunk tells what raw would have made of it.
        self.costs[RAW].learn(plain, raw_bytes as f64, 0.0);
        let change = if index == RAW { 1.0 } else { self.costs[index].learn(plain, packed_bytes as f64, took) };
        for other in (0..LADDER.len()).filter(|other| *other != index && family(*other) == family(index)) {
            self.costs[other].scale(change);
        }
        self.latest = index;
        self.link.encoded(plain, took, plain * RECEIVER[index]);
    }

    /// Says that there is nothing to send for now.
    pub fn rest(&mut self) {
        self.link.rest();
    }

    /// Takes note of how the connection stands after a write.
    pub fn link(&mut self, now: Instant, sample: LinkSample) {
        self.link.sample(now, sample);
    }

    fn choose(&mut self, now: Instant) -> usize {
        if let Some(index) = FIRST.into_iter().find(|index| !self.costs[*index].is_known()) {
            return index;
        }
        let demands: [Demand; LADDER.len()] = std::array::from_fn(|index| self.demand(index));
        self.plan = plan::best(&demands);
        if let Some(index) = self.most_overdue(&demands, now) {
            self.untried = 0;
            return index;
        }
        self.untried += 1;
        self.credit += self.plan.share;
        if self.credit >= 1.0 {
            self.credit -= 1.0;
            self.plan.heavy
        } else {
            self.plan.light
        }
    }

    /// What a plain byte asks of each stage on its way.
    fn demand(&self, index: usize) -> Demand {
        let costs = &self.costs[index];
        // What was measured last is of the pages at hand: a tighter method makes no more of them, a faster one no less.
        let (raw, latest) = (self.costs[RAW].ratio(), self.costs[self.latest].ratio());
        let ratio = match family(index).cmp(&family(self.latest)) {
            _ if index == RAW => raw,
            Ordering::Less => costs.ratio().max(latest).min(raw),
            Ordering::Equal => costs.ratio().min(raw),
            Ordering::Greater => costs.ratio().min(latest),
        };
        Demand {
            sender: self.link.overhead() + costs.seconds() + ratio * self.link.write_cost(),
            link: ratio * if index == RAW { BLIND } else { 1.0 } / self.link.rate(),
            receiver: RECEIVER[index] * self.link.receiver_slowness(),
        }
    }

    /// A method that the plan does not use and that is to be tried on the next chunk.
    fn most_overdue(&self, demands: &[Demand; LADDER.len()], now: Instant) -> Option<usize> {
        if self.untried < TRY_APART {
            return None;
        }
        let overdue = |index: usize| {
            let extra = (demands[index].time() - self.plan.time).max(0.0) * self.chunk_bytes;
            self.costs[index].unused_for(now) / (extra * TRY_EVERY).clamp(SHORTEST_WAIT, LONGEST_WAIT)
        };
        let is_far = |index: usize| index > FIXED_ZSTD_INDEX && self.plan.heavy < FIXED_ZSTD_INDEX;
        let unused = (RAW + 1..LADDER.len()).filter(|index| !self.plan.uses(*index) && !is_far(*index));
        unused.max_by(|a, b| overdue(*a).total_cmp(&overdue(*b))).filter(|index| overdue(*index) >= 1.0)
    }
}

impl fmt::Display for Chooser {
    /// What it chooses and why, for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { light, heavy, share, .. } = self.plan;
        match (self.setting, share > 0.0 && share < 1.0) {
            (Compression::Auto, true) => write!(f, "{:.0} % {:?}, {:?}", share * 100.0, LADDER[heavy], LADDER[light])?,
            (Compression::Auto, false) => write!(f, "{:?}", LADDER[heavy])?,
            (setting, _) => return write!(f, "{setting:?}"),
        }
        write!(f, " at {}", self.link)
    }
}

/// Bytes a second of a link that carries what a copy saves, a few hundred bytes, in the time that making one takes, a few
/// microseconds (`pageferry bench --scenario busy-unshaped`: round 1 took twice as long with copies).
const FAST: f64 = 200e6;
/// And of one so fast that, whatever a measurement says, processors are what is waited for about as often.
const FASTER: f64 = 400e6;

/// Methods of a family move together when the pages change.
fn family(index: usize) -> u8 {
    match LADDER[index] {
        Method::Raw => 0,
        Method::Lz4 => 1,
        Method::Zstd(_) => 2,
    }
}

/// The methods to choose from, from the fastest to the tightest.
const LADDER: [Method; 5] = [Method::Raw, Method::Lz4, Method::Zstd(1), Method::Zstd(3), Method::Zstd(6)];
const RAW: usize = 0;
/// What the methods of [`LADDER`] are taken to cost before they are tried: seconds per plain byte, and what remains.
const PRIORS: [Costs; LADDER.len()] =
    [Costs::prior(0.0, 1.0), Costs::prior(1.4e-9, 0.5), Costs::prior(3e-9, 0.35), Costs::prior(4e-9, 0.34), Costs::prior(10e-9, 0.32)];
/// Seconds that a receiver takes for a plain byte, its own reading and placing included.
const RECEIVER: [f64; LADDER.len()] = [0.6e-9, 1.1e-9, 1.5e-9, 1.6e-9, 1.6e-9];
/// Tried before anything else.
const FIRST: [usize; 2] = [FIXED_ZSTD_INDEX, 1];
/// The method of [`Compression::Zstd`]. Tighter ones are looked at only once this one pays.
const FIXED_ZSTD: Method = LADDER[FIXED_ZSTD_INDEX];
const FIXED_ZSTD_INDEX: usize = 2;
/// A try may cost one part in so many of the time since the last.
const TRY_EVERY: f64 = 128.0;
/// What raw pages count more than they are, because they go unseen: nothing would tell that the next ones compress.
const BLIND: f64 = 1.02;
/// Chunks between two tries of any methods at least.
const TRY_APART: u32 = 4;
/// Seconds between two tries of a method at least, ...
const SHORTEST_WAIT: f64 = 2e-3;
/// ... and at most.
const LONGEST_WAIT: f64 = 0.5;
