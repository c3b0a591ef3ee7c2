//! One channel's receiver: frames into memory, and what there is to report of them to its session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::Sender;
use crossbeam::utils::CachePadded;

use super::follow;
use super::lane::LaneReader;
use super::shared::{Arriving, Shared};
use crate::error::Error;
use crate::page::Decoder;
use crate::stats::Encodings;
use crate::sys::priority::ShortTurns;
use crate::transport::Stream;
use crate::units::ByteCount;
use crate::wire::{ChannelTotals, FrameBody, FrameReader, Lane};

/// What all channels of a session have brought, for progress.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) frames: CachePadded<AtomicU64>,
    pub(super) bytes: CachePadded<AtomicU64>,
    /// Reads that brought something, of whatever size: of large frames on slow channels none may be whole for long.
    pub(super) reads: Arc<CachePadded<AtomicU64>>,
}

impl Arrived {
    /// Frames and their bytes so far.
    pub(super) fn now(&self) -> (u64, ByteCount) {
        (self.frames.load(Ordering::Relaxed), ByteCount(self.bytes.load(Ordering::Relaxed)))
    }

    /// How often something has come so far.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Something came of a message that is not whole yet.
    pub(super) fn note_part(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a bulk worker reports to its session.
#[derive(Debug)]
pub(super) enum BulkReport {
    /// A round is complete on this channel.
    RoundEnd { channel: u16, totals: ChannelTotals, encodings: Encodings },
    /// A round is complete on this channel, and so is pre-copy: the worker does not place pages in memory any more.
    Switched { channel: u16, totals: ChannelTotals, encodings: Encodings },
    /// A lane of post-copy is of no more use.
    Broken { generation: u32, error: Error },
    /// The last missing page is in place.
    Complete,
    /// The worker has stopped and will not touch the memory again.
    Stopped { channel: u16, totals: ChannelTotals, error: Error },
}

/// Receives frames until the connection ends or something is wrong with one. After the switch it follows the guest.
pub(super) fn receive(stream: Stream, channel: u16, arriving: &Arriving, shared: &Shared, mut turns: ShortTurns) {
    let (memory, reports, arrived) = (&arriving.memory, &shared.reports, &shared.arrived);
    let decoder = match memory.populated() {
        Ok(populated) => Decoder::new(arriving.key.clone(), populated),
        Err(error) => {
            return report_stopped(reports, channel, ChannelTotals::default(), error.into());
        }
    };
    let mut frames = FrameReader::new(channel, arriving.channels, arriving.codecs, decoder);
    if arriving.post_copy {
        frames = frames.granting_post_copy();
        stream.keep_unread_short();
    }
    let mut lane = LaneReader::new(stream, frames, Arc::clone(memory), format!("bulk {channel}"), Arc::clone(&arrived.reads));
    // Post-copy takes pages out one by one.
    let supply = &arriving.supply;
    let supplier = if arriving.post_copy { supply.with_small_pages() } else { supply.with_huge_pages() };
    let mut placement = memory.placement().supplied_by(supplier, arriving.channels);
    let mut encodings = Encodings::default();
    let error = loop {
        match lane.next_frame(&mut placement) {
            Ok(header) => {
                // Relaxed: counters for display and heartbeat.
                arrived.frames.fetch_add(1, Ordering::Relaxed);
                arrived.bytes.fetch_add(header.frame_bytes() as u64, Ordering::Relaxed);
                match header.body {
                    FrameBody::Chunk { pages, .. } => {
                        encodings += pages.masks.encodings();
                        turns.give_way();
                    }
                    FrameBody::RoundEnd => {
                        let totals = lane.totals();
                        let _ = reports.send(BulkReport::RoundEnd { channel, totals, encodings });
                    }
                    FrameBody::Switch => {
                        // No frame is placed in guest memory after this one; see `follow`.
                        let totals = lane.totals();
                        let _ = reports.send(BulkReport::Switched { channel, totals, encodings });
                        drop(turns);
                        return follow::follow(lane.into_post_copy(), Lane::Bulk(channel), 0, shared);
                    }
                }
            }
            Err(error) => break error,
        }
    };
    report_stopped(reports, channel, lane.totals(), error);
}

/// A channel's last report.
pub(super) fn report_stopped(reports: &Sender<BulkReport>, channel: u16, totals: ChannelTotals, error: Error) {
    // A session that is gone does not need to know.
    let _ = reports.send(BulkReport::Stopped { channel, totals, error });
}
