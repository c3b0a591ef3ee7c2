//! A source whose guest has gone ahead of its memory, driven by hand: to Commit and beyond, and back after a loss.

use pageferry::bitmap::PageBitmap;
use pageferry::page::{Encoder, EncoderSettings, Method, PageKey, Work};
use pageferry::units::{ByteCount, ChunkIndex, PageIndex};
use pageferry::wire::{Extent, Features, FrameWriter, Lane, Message, channel_of};

use crate::guest::image;
use crate::honest::{Host, Record};
use crate::source::{CHANNELS, CODECS, COMMIT, EvilSource, Stage};
use crate::talk::Talk;

/// A session with post-copy.
pub(crate) struct Following {
    pub(crate) source: EvilSource,
    /// Of the first generation.
    pub(crate) urgent: Talk,
    pub(crate) missing: PageBitmap,
}

impl Following {
    /// Everything is sent and round 0 has ended. `None` where the receiver has no userfaultfd.
    pub(crate) fn copied(host: &Host) -> Option<Self> {
        let mut source = EvilSource::at(Stage::Connected, &host.endpoint);
        source.offer.features = Features::POST_COPY;
        source.control.say(&Message::Hello(source.offer.clone()));
        let Some(Message::Accept { features, granule: 1, .. }) = source.control.hear() else { panic!("not accepted") };
        if features != Features::POST_COPY {
            source.control.say(&Message::Abort { reason: "no post-copy".into() });
            return None;
        }
        source.bulk = (0..CHANNELS).map(|channel| attach(&source, Lane::Bulk(channel), 0).into_stream()).collect();
        let urgent = attach(&source, Lane::Urgent, 0);
        for chunk in 0..source.offer.layout.chunks() {
            let frame = source.frame(chunk);
            source.send(channel_of(ChunkIndex(chunk), CHANNELS), &frame);
        }
        for channel in 0..CHANNELS {
            let mut end = Vec::new();
            source.frames[usize::from(channel)].push_round_end(&mut end, 0);
            source.send(channel, &end);
        }
        let mut missing = PageBitmap::new(source.offer.layout.chunks());
        for (chunk, pages) in [(0, 0xffff), (1, u64::MAX), (4, 0xf << 40)] {
            missing.insert_word(ChunkIndex(chunk), pages);
        }
        // What was sent of them is stale from now on.
        for (chunk, pages) in missing.occupied() {
            (0..64).filter(|bit| pages >> bit & 1 == 1).for_each(|bit| source.memory.chunk(chunk).store_word(bit, 6, FRESH));
        }
        Some(Self { source, urgent, missing })
    }

    /// The same, and the guest runs at the receiver.
    pub(crate) fn running(host: &Host) -> Option<Self> {
        let mut following = Self::copied(host)?;
        following.switch();
        following.say_missing();
        let finish = following.finish(following.extent());
        let control = &mut following.source.control;
        control.say(&finish);
        assert_eq!(control.hear(), Some(Message::Ready));
        control.say(&COMMIT);
        assert_eq!(control.hear(), Some(Message::Running));
        Some(following)
    }

    /// Ends the last round on all channels.
    pub(crate) fn switch(&mut self) {
        for channel in 0..CHANNELS {
            let mut switch = Vec::new();
            self.source.frames[usize::from(channel)].push_switch(&mut switch, 1);
            self.source.send(channel, &switch);
        }
    }

    pub(crate) fn say_missing(&mut self) {
        self.source.control.say(&Message::Missing { first: ChunkIndex(0), words: self.missing.words().to_vec() });
    }

    pub(crate) fn extent(&self) -> Extent {
        Extent { chunks: self.missing.chunks(), pages: self.missing.count() }
    }

    pub(crate) fn finish(&self, missing: Extent) -> Message {
        Message::Finish { totals: self.source.totals(), state: b"registers".to_vec(), missing: Some(missing) }
    }

    /// The first frame of post-copy on a lane, with one page that is missing.
    pub(crate) fn first_frame(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.push(&mut self.writer(), &mut bytes, FIRST.chunk(), 1 << FIRST.bit());
        bytes
    }

    /// The rightful source comes back on other connections, finds `arrived`, and brings the rest.
    pub(crate) fn recover(&self, name: &str, arrived: &PageBitmap, record: &Record) {
        let (mut control, generation) = self.resume(name, arrived);
        let mut lanes = [Lane::Bulk(0), Lane::Bulk(1), Lane::Urgent].map(|lane| attach(&self.source, lane, generation));
        let mut rest = self.missing.clone();
        rest.subtract(arrived);
        self.bring(&rest, &mut lanes);
        self.expect_whole(name, &mut control, record);
    }

    /// The rightful source comes back, and is told that `arrived` has and that the guest runs: on which connection, and which
    /// generation that begins.
    pub(crate) fn resume(&self, name: &str, arrived: &PageBitmap) -> (Talk, u32) {
        let offer = &self.source.offer;
        let mut control = Talk::to(&self.source.endpoint);
        control.say(&Message::Resume { session: offer.session, token: offer.token });
        let mut found = PageBitmap::new(arrived.chunks());
        let generation = loop {
            match control.hear() {
                Some(Message::Arrived { first, words }) => {
                    (first.0..).zip(words).for_each(|(chunk, word)| found.insert_word(ChunkIndex(chunk), word));
                }
                Some(Message::Resumed { generation, arrived }) => {
                    assert_eq!(arrived, Extent { chunks: found.chunks(), pages: found.count() }, "{name}");
                    break generation;
                }
                heard => panic!("{name}: {heard:?} to Resume"),
            }
        };
        assert_eq!(found.words(), arrived.words(), "{name}: what has arrived");
        assert_eq!(control.hear(), Some(Message::Running), "{name}");
        (control, generation)
    }

    /// Sends all of `pages`, by turns on the lanes, none of which has carried a frame of post-copy.
    pub(crate) fn bring(&self, pages: &PageBitmap, lanes: &mut [Talk]) {
        let mut writers: Vec<_> = lanes.iter().map(|_| self.writer()).collect();
        for (index, (chunk, pages)) in pages.occupied().enumerate() {
            let (lane, mut bytes) = (index % lanes.len(), Vec::new());
            self.push(&mut writers[lane], &mut bytes, chunk, pages);
            lanes[lane].say_bytes(&bytes);
        }
    }

    /// The receiver says on `control` that all pages are there, and the guest has them.
    pub(crate) fn expect_whole(&self, name: &str, control: &mut Talk, record: &Record) {
        assert_eq!(control.hear(), Some(Message::Complete { pages: self.missing.count() }), "{name}");
        control.say(&Message::Released);
        assert_eq!(record.ending(), None, "{name}: the guest is lost");
        assert_eq!(record.resumes(), 1, "{name}");
        let (mut there, mut here) = (record.seen.lock().unwrap().image.clone().expect("placed"), image(&self.source.memory));
        // The guest stamps its pages there.
        there.iter_mut().chain(&mut here).for_each(|page| page[5 * 8..6 * 8].fill(0));
        assert!(there == here, "{name}: the guest's memory was harmed");
    }

    fn writer(&self) -> FrameWriter {
        let key = PageKey::derive(&self.source.offer.token.0);
        let settings = EncoderSettings { codecs: CODECS, key, delta_cache: ByteCount(0) };
        FrameWriter::post_copy(Encoder::new(settings, self.source.offer.layout.chunks()))
    }

    fn push(&self, writer: &mut FrameWriter, bytes: &mut Vec<u8>, chunk: ChunkIndex, mask: u64) {
        writer.push_chunk(bytes, Work { round: 0, chunk, memory: self.source.memory.chunk(chunk), mask, method: Method::Lz4 });
    }
}

/// Opens a lane that is taken in.
fn attach(source: &EvilSource, lane: Lane, generation: u32) -> Talk {
    let mut talk = Talk::to(&source.endpoint);
    talk.say(&Message::Attach { session: source.offer.session, token: source.offer.token, lane, generation });
    assert_eq!(talk.hear(), Some(Message::Attached { lane }));
    talk
}

/// A page that is missing, and comes first.
pub(crate) const FIRST: PageIndex = PageIndex(0);
/// What missing pages hold where they held something else.
const FRESH: u64 = 0xf7e5_4f7e_54f7_e54f;
