//! A lane in post-copy: frames into a buffer, and from there under the running guest.
//!
//! A frame is whole and checked before any of its pages is shown to the guest. What is wrong with one ends the lane, and
//! with it this generation of lanes; the guest waits where it must, and the source may come back.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::bulk::BulkReport;
use super::faults::Incomplete;
use super::lane::LaneReader;
use super::shared::{Arriving, Shared};
use crate::error::Error;
use crate::memory::Staging;
use crate::page::Codecs;
use crate::stats::Encodings;
use crate::sys::priority;
use crate::transport::Stream;
use crate::units::{ByteCount, PageCount};
use crate::wire::{FrameBody, FrameReader, Lane};

/// What lanes have brought in post-copy, those that have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Followed {
    pub(super) pages: PageCount,
    pub(super) bytes: ByteCount,
    pub(super) encodings: Encodings,
}

/// Receives on a lane that is attached for post-copy alone: the urgent one, and all of later generations.
pub(super) fn receive(stream: Stream, lane: Lane, generation: u32, arriving: &Arriving, shared: &Shared) {
    let frames = FrameReader::post_copy(channel_number(lane), arriving.codecs.without(Codecs::DELTA));
    let requests = stream.share();
    if lane != Lane::Urgent {
        stream.keep_unread_short();
    }
    let reader = LaneReader::new(stream, frames, Arc::clone(&arriving.memory), lane.to_string(), Arc::clone(&shared.arrived.reads));
    if lane == Lane::Urgent
        && let Some(incomplete) = shared.incomplete.wait()
    {
        incomplete.connect(requests);
    }
    follow(reader, lane, generation, shared);
}

/// Installs what comes on `reader` until it ends. Waits for post-copy to begin.
pub(super) fn follow(mut reader: LaneReader, lane: Lane, generation: u32, shared: &Shared) {
    let Some(incomplete) = shared.incomplete.wait() else { return };
    match lane {
        Lane::Urgent => {
            priority::raise();
        }
        Lane::Bulk(_) => priority::lower(),
    }
    let mut followed = Followed::default();
    let error = install(&mut reader, lane, incomplete, shared, &mut followed);
    {
        let mut all = shared.followed.lock().unwrap_or_else(PoisonError::into_inner);
        all.pages += followed.pages;
        all.bytes += followed.bytes;
        all.encodings += followed.encodings;
    }
    // A session that is gone does not need to know.
    let _ = shared.reports.send(BulkReport::Broken { generation, error });
}

/// Installs frames until there are no more; says why.
fn install(reader: &mut LaneReader, lane: Lane, incomplete: &Arc<Incomplete>, shared: &Shared, followed: &mut Followed) -> Error {
    let mut staging = Staging::new();
    let mut installer = incomplete.installer(lane);
    loop {
        let header = match reader.next_frame(&mut staging) {
            Ok(header) => header,
            Err(error) => return error,
        };
        let FrameBody::Chunk { pages, .. } = header.body else { unreachable!("a lane of post-copy carries pages only") };
        // Relaxed: counters for display and heartbeat.
        shared.arrived.frames.fetch_add(1, Ordering::Relaxed);
        shared.arrived.bytes.fetch_add(header.frame_bytes() as u64, Ordering::Relaxed);
        followed.pages += pages.masks.pages();
        followed.bytes += ByteCount(header.frame_bytes() as u64);
        followed.encodings += pages.masks.encodings();
        match installer.install(&staging) {
            Ok(PageCount(0)) => {
                let _ = shared.reports.send(BulkReport::Complete);
            }
            Ok(_) => {}
            Err(error) => return error.into(),
        }
    }
}

/// How errors in frames call the lane.
fn channel_number(lane: Lane) -> u16 {
    match lane {
        Lane::Bulk(channel) => channel,
        Lane::Urgent => u16::MAX,
    }
}
