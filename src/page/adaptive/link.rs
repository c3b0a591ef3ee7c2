//! How fast the connection takes bytes, and which end it waits for.
//!
//! Writes alone tell little: the socket's buffer hides a slow link for hundreds of milliseconds. What counts is bytes
//! acknowledged over time, and only while some were under way all the time; otherwise the link could have taken more, and
//! how much more is found out by hoping: the rate is taken to be higher, step by step, until there is something under way
//! all the time again. So a rate that changes is noticed in either direction. Hope goes only little beyond what was seen of
//! late: each step has to show in what arrives before the next one is taken, unless the link idles, which what a slow sender
//! packs tightly lets it do for ever. And it takes a while to begin: a sender whose
//! processor is about as fast as the link leaves gaps, and one that hoped at each of them would send more bytes than the
//! link takes half of the time. A link that is full again at the rate of late is as it was.
//!
//! Where processors are short, threads of both ends and the network's own wait for their turn, and bytes arrive in bursts
//! with gaps between. That is no slow link, and compression would widen the gaps. A link is as fast as it was at its best
//! in the last fraction of a second (as in BBR, <https://queue.acm.org/detail.cfm?id=3022184>); the very best is left
//! out, because one lost packet lets all that came after it count at once.
//!
//! Where the sender waits for a processor, somebody else has it: the receiver and the network's threads if they are on the
//! same host, the guest. What these do for a byte they do whatever method it is packed with. So such waits are no method's
//! own cost, but one that each plain byte has ([`Link::overhead`]).
//!
//! A connection takes the link to be as fast as its fair share of what arrives on all of them ([`path`](super::path)).
//!
//! A receiver that is short of processor time looks like a slow link, and compression would make it worse. It shows in
//! its window, which shrinks as data waits there to be read.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::path::{Path, Share};

/// What a worker sees of its connection after a write.
#[derive(Clone, Copy, Debug)]
pub struct LinkSample {
    /// Bytes written since the connection began.
    pub written: u64,
    /// How many of them the peer's host has not acknowledged.
    pub unacknowledged: u64,
    /// Time spent in writes since the last sample.
    pub blocked: Duration,
    /// Time spent waiting for a turn to write, where the rate is limited.
    pub waited: Duration,
    /// Bytes the peer's host has room for, where the system says.
    pub peer_window: Option<u64>,
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Link {
    share: Share,
    /// Bytes a second.
    rate: f64,
    /// Whether that was measured, not hoped.
    is_measured: bool,
    /// Whether it ever was, ...
    was_measured: bool,
    /// ... and how many windows ago.
    since_measured: usize,
    /// Bytes a second that arrived in the last few windows, the latest at the front.
    seen: [f64; WINDOWS],
    /// Seconds a written byte costs the sender.
    write_cost: f64,
    /// Seconds a plain byte costs the sender whatever is done with it, waits for a processor included.
    overhead: f64,
    /// Times the usual that the receiver takes for its work.
    slowness: f64,
    /// The largest window seen.
    widest: u64,
    /// Windows in a row in which bytes were under way all the time.
    saturated: u32,
    /// How long that was in all, seconds.
    saturated_for: f64,
    /// Windows in a row in which they were not, ...
    free: u32,
    /// ... and in which there was hardly ever anything under way that the receiver had room for.
    idle: u32,
    last: Option<Last>,
    /// When the worker was last seen at work: before a chunk or after a write.
    at_work: Option<Instant>,
    /// Since the last sample.
    encoded: Encoded,
    /// Seconds that the latest chunk took to pack.
    latest_took: f64,
    window: Window,
}

/// The last sample.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    written: u64,
    acknowledged: u64,
}

/// Work that was done between two samples.
#[derive(Clone, Copy, Debug, Default)]
struct Encoded {
    plain: f64,
    took: f64,
    /// Seconds that a receiver with time to itself needs for it.
    receiver: f64,
}

/// What is gathered until it is enough for a judgement. Seconds and bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    elapsed: f64,
    arrived: f64,
    /// Since all connections began, when it was opened.
    total_before: Option<u64>,
    busy: f64,
    busy_bytes: f64,
    /// Of the busy time, that in which the receiver was behind, and the work it was given then.
    behind: f64,
    behind_work: f64,
}

impl Link {
    pub(super) fn new(path: Arc<Path>) -> Self {
        Self {
            share: Share::new(path),
            rate: FIRST_HOPE,
            is_measured: false,
            was_measured: false,
            since_measured: 0,
            seen: [0.0; WINDOWS],
            write_cost: 0.4e-9,
            overhead: 0.3e-9,
            slowness: 1.0,
            widest: 0,
            saturated: 0,
            saturated_for: 0.0,
            free: 0,
            idle: 0,
            last: None,
            at_work: None,
            encoded: Encoded::default(),
            latest_took: 0.0,
            window: Window::default(),
        }
    }

    /// That of another connection of `path`: expected to be like this one has been of late, for a few windows, until it shows
    /// otherwise.
    pub(super) fn successor(&self, path: Arc<Path>) -> Self {
        let Self { rate, write_cost, overhead, .. } = *self;
        let mut seen = [0.0; WINDOWS];
        seen[WINDOWS - INHERITED..].fill(self.seen_at_best());
        Self { rate, seen, write_cost, overhead, ..Self::new(path) }
    }

    /// Bytes a second to expect of it.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Whether it was seen to be what the sender waits for, within the last few windows of work.
    pub(super) fn is_bottleneck(&self) -> bool {
        self.was_measured && self.since_measured < WINDOWS
    }

    /// Seconds that writing a byte takes when there is room.
    pub(super) fn write_cost(&self) -> f64 {
        self.write_cost
    }

    /// Seconds that the sender spends on a plain byte beside compression.
    pub(super) fn overhead(&self) -> f64 {
        self.overhead
    }

    /// Times the usual that the receiver takes for its work.
    pub(super) fn receiver_slowness(&self) -> f64 {
        self.slowness
    }

    /// Takes note of work on the way to the link.
    pub(super) fn encoded(&mut self, plain: f64, took: f64, receiver: f64) {
        self.latest_took = took;
        self.encoded.plain += plain;
        self.encoded.took += took;
        self.encoded.receiver += receiver;
    }

    /// Call before work: a sender that had nothing to do says nothing about the link.
    pub(super) fn resume(&mut self, now: Instant) {
        self.share.work();
        // Since the last chunk, not the last write: of small frames many make one.
        if let Some(at_work) = self.at_work.replace(now)
            && now.saturating_duration_since(at_work).as_secs_f64() > PAUSE + 4.0 * self.latest_took
        {
            self.last = None;
            self.encoded = Encoded::default();
        }
    }

    /// Call when there is nothing to do for now.
    pub(super) fn rest(&mut self) {
        self.last = None;
        self.share.rest();
    }

    /// Takes note of how the connection stands.
    pub(super) fn sample(&mut self, now: Instant, sample: LinkSample) {
        self.at_work = Some(now);
        let encoded = std::mem::take(&mut self.encoded);
        let written = sample.written;
        let acknowledged = written.saturating_sub(sample.unacknowledged);
        let Some(last) = self.last.replace(Last { at: now, written, acknowledged }) else { return };
        let elapsed = now.saturating_duration_since(last.at).as_secs_f64();
        let blocked = sample.blocked.as_secs_f64();
        let (out, arrived) = (written.saturating_sub(last.written) as f64, acknowledged.saturating_sub(last.acknowledged));
        self.window.total_before.get_or_insert_with(|| self.share.total());
        self.share.arrived(arrived);
        let arrived = arrived as f64;
        self.widest = self.widest.max(sample.peer_window.unwrap_or(0));

        self.window.elapsed += elapsed;
        self.window.arrived += arrived;
        let waited = sample.waited.as_secs_f64();
        if acknowledged + DELAYED < last.written || waited > elapsed * PACED {
            self.window.busy += elapsed;
            self.window.busy_bytes += arrived;
            if sample.peer_window.is_none_or(|window| window < self.widest / 3) {
                self.window.behind += elapsed;
                self.window.behind_work += encoded.receiver;
            }
        } else if out > 0.0 {
            // Who is woken by the bytes may take this thread's processor at once: the low figures are the true ones.
            let cost = (blocked / out).min(HIGHEST_WRITE_COST);
            self.write_cost += (cost - self.write_cost) / if cost < self.write_cost { 8.0 } else { 64.0 };
        }
        if encoded.plain > 0.0 {
            // The sum counts, gaps and all: others that are at work on these bytes have their turns in the gaps.
            let rest = (elapsed - blocked - waited - encoded.took).min(LONGEST_GAP) / encoded.plain;
            self.overhead += (rest.max(FREE) - self.overhead) * (encoded.plain / OVERHEAD_BYTES).min(1.0);
        }
        let is_enough = self.window.busy_bytes >= ENOUGH || self.window.busy < self.window.elapsed / 2.0 || self.window.busy >= STALL;
        if self.window.elapsed >= (if self.was_measured { WINDOW } else { FIRST_WINDOW }) && is_enough {
            let window = std::mem::take(&mut self.window);
            self.judge(&window);
        }
    }

    fn judge(&mut self, window: &Window) {
        let slowness = window.behind / window.behind_work;
        let is_likely = if self.widest == 0 { window.arrived > window.elapsed * LIKELY_RECEIVER } else { slowness < IMPLAUSIBLE };
        let is_behind = window.behind > window.busy / 2.0 && window.behind > window.elapsed / 4.0 && is_likely;
        let slowness = if is_behind { slowness.max(1.0) } else { 1.0 };
        self.slowness += (slowness - self.slowness) * if is_behind { 0.5 } else { 0.25 };

        let is_full = window.busy > window.elapsed * SATURATED && !is_behind;
        (self.saturated, self.free) = if is_full { (self.saturated + 1, 0) } else { (0, self.free.saturating_add(1)) };
        self.saturated_for = if is_full { self.saturated_for + window.elapsed } else { 0.0 };
        let is_idle = window.busy - if is_behind { window.behind } else { 0.0 } < window.elapsed * IDLE;
        self.idle = if is_idle { self.idle.saturating_add(1) } else { 0 };
        self.remember(window);
        let known = self.seen_at_best();
        // Now and then something is under way all the time by chance, above all where processors are short.
        let is_sure = if self.was_measured { self.saturated >= IN_A_ROW } else { self.saturated >= 2 && self.saturated_for >= FIRST_SURE };
        self.since_measured = if is_sure { 0 } else { self.since_measured.saturating_add(1) };
        self.was_measured |= is_sure;
        // One that was full a moment ago, and now is with no more than it carried then, is full again.
        let is_full_again = is_full && self.is_bottleneck() && self.seen[0] < known * AGAIN;
        self.is_measured = is_sure || is_full_again;
        // What nothing speaks for is not hoped for: it would fill the buffers on the way before it shows to be wrong. Nor
        // does a moment in which less was sent speak for a link that carries more.
        let hoped = match (self.was_measured, self.free) {
            (_, 0) => self.rate,
            // However little arrived: that says how slow the sender is.
            (false, _) if self.idle >= IN_A_ROW => self.rate * FIRST_STEP,
            (true, _) if is_behind => (self.rate * LIMIT).min(known * LIMIT),
            (true, ..IN_A_ROW) => self.rate.min(known * LIMIT),
            (false, _) => (self.rate.min(known) * FIRST_STEP).max(FIRST_HOPE),
            (true, _) => (self.rate * HOPE).min(known * LIMIT),
        };
        self.rate = if self.is_measured { known } else { hoped.max(known) }.clamp(SLOWEST, FASTEST);
    }

    /// Takes note of what arrived in a window; one that took long fills the places of several.
    fn remember(&mut self, window: &Window) {
        let seen = self.share.fair(self.share.total() - window.total_before.unwrap_or_default()) / window.elapsed;
        let places = (1..WINDOWS / 2).take_while(|&places| window.elapsed > WINDOW * (places as f64 - 0.5)).count().max(1);
        self.seen.rotate_right(places);
        self.seen[..places].fill(seen);
    }

    /// The second best of the last few windows.
    fn seen_at_best(&self) -> f64 {
        let (_, second) = self.seen.iter().fold((0.0f64, 0.0f64), |(best, second), &rate| (best.max(rate), second.max(rate.min(best))));
        second
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_measured { "measured" } else { "hoped" };
        write!(f, "{:.1} MB/s ({how}), receiver {:.1}", self.rate / 1e6, self.slowness)
    }
}

/// Seconds after which the samples are judged, ...
const WINDOW: f64 = 0.025;
/// ... and as long as the link has never been the bottleneck.
const FIRST_WINDOW: f64 = 0.002;
/// Of a window, the part in which bytes must be under way if the link is the bottleneck, ...
const SATURATED: f64 = 0.9;
/// And if it idles.
const IDLE: f64 = 0.1;
/// So it is in how many windows. After as many in which they were not, the link may have become faster.
const IN_A_ROW: u32 = 3;
/// Two windows are enough for a link of which nothing is known, if they are so many seconds.
const FIRST_SURE: f64 = 4.0 * FIRST_WINDOW;
/// Up to so many times what a full link carried of late, it carries no more than that.
const AGAIN: f64 = 1.1;
/// How many windows a link is remembered for at its best.
const WINDOWS: usize = 12;
/// How many of them a connection takes over from the one before it: they count until all but one are gone.
const INHERITED: usize = 4;
/// Bytes a second to begin with: little enough to begin with compression, which does no harm for so short.
const FIRST_HOPE: f64 = 40e6;
/// By how much more is hoped for at a time to begin with, ...
const FIRST_STEP: f64 = 2.0;
/// ... and later, ...
const HOPE: f64 = 1.15;
/// ... but at most so many times what arrived of late.
const LIMIT: f64 = 1.5;
/// A busy time is judged once so many bytes have arrived in it, ...
const ENOUGH: f64 = 32768.0;
/// ... or after so many seconds: a lost packet can hold all others up.
const STALL: f64 = 0.25;
/// A gap in the sender's work counts for so many seconds at most: a longer one is a host that was stopped.
const LONGEST_GAP: f64 = 5e-3;
/// How many plain bytes the sender's overhead is the mean of, about.
const OVERHEAD_BYTES: f64 = 8e6;
/// Bytes that may be under way for no other reason than that their acknowledgement waits for company.
const DELAYED: u64 = 32 << 10;
/// Of the time between two samples, that spent waiting for a turn if the limit is the bottleneck.
const PACED: f64 = 0.3;
/// Seconds without work that make a pause.
const PAUSE: f64 = 10e-3;
/// A receiver that seems to take so many times the usual is not the reason.
const IMPLAUSIBLE: f64 = 20.0;
/// A connection that does not tell its window is one within a host, unless it is slower than this: bytes a second.
const LIKELY_RECEIVER: f64 = 150e6;
/// Bytes a second that no link is taken to exceed ...
const FASTEST: f64 = 8e9;
/// ... or to fall short of.
const SLOWEST: f64 = 1e4;
/// Seconds that writing a byte costs at most: a copy, and TCP over this very host.
const HIGHEST_WRITE_COST: f64 = 0.8e-9;
/// Seconds that a byte costs at least.
const FREE: f64 = 0.02e-9;
