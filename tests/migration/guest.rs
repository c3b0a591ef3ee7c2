//! A guest made of one thread that stamps pages, and a factory that takes it in.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pageferry::destination::{Arrival, Ending, GuestFactory, Placed, Refusal};
use pageferry::dirty::Marks;
use pageferry::guest::{Guest, GuestError, RunShare};
use pageferry::memory::{Backing, GuestMemory, MemoryLayout};
use pageferry::units::{ByteCount, GuestAddr, PageCount, PageIndex};
use pageferry::wire::Offer;

/// Stamps the pages of its memory in turn with a growing number, and marks what it wrote.
pub(crate) struct Stamper {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) marks: Marks,
    running: Option<Running>,
    pub(crate) fail_to_resume: bool,
    /// Thousandths of the time that it may run, and whether it can be told to.
    pub(crate) share: Arc<AtomicU32>,
    pub(crate) can_be_throttled: bool,
    /// Pages between two naps.
    pub(crate) burst: u64,
    /// So many pages at the front it writes to, if not to all.
    pub(crate) working_set: Option<u64>,
    /// What it says of the size of its state.
    pub(crate) told_state: ByteCount,
}

struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Stamper {
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        let marks = Marks::new(memory.layout());
        Self {
            memory,
            marks,
            running: None,
            fail_to_resume: false,
            share: Arc::new(AtomicU32::new(1000)),
            can_be_throttled: true,
            burst: 64,
            working_set: None,
            told_state: ByteCount(0),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

impl Guest for Stamper {
    fn pause(&mut self) -> Result<(), GuestError> {
        if let Some(Running { stop, thread }) = self.running.take() {
            stop.store(true, Ordering::Relaxed);
            thread.join().unwrap();
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        if self.fail_to_resume {
            return Err(GuestError::new("resume", "told to fail"));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (memory, marks, stopped) = (Arc::clone(&self.memory), self.marks.clone(), Arc::clone(&stop));
        let (share, burst, working_set) = (Arc::clone(&self.share), self.burst, self.working_set);
        let thread = std::thread::spawn(move || {
            let pages = working_set.unwrap_or(memory.layout().pages().0);
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // Not between two regions.
                let Some(page) = memory.layout().page_at(GuestAddr(n * 7 % pages * 4096)) else { continue };
                memory.chunk(page.chunk()).store_word(page.bit(), 5, n);
                marks.mark_pages(page, PageCount(1));
                if n % burst == 0 {
                    let share = u64::from(share.load(Ordering::Relaxed)).max(1);
                    std::thread::sleep(std::time::Duration::from_micros(200 * 1000 / share));
                }
            }
        });
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        Ok(b"registers".to_vec())
    }

    fn state_bytes(&self) -> ByteCount {
        self.told_state
    }

    fn throttle(&mut self, share: RunShare) -> Result<(), GuestError> {
        if !self.can_be_throttled {
            return Err(GuestError::new("be slowed down", "told to fail"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 10 to 1000")]
        self.share.store((share.value() * 1000.0) as u32, Ordering::Relaxed);
        Ok(())
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        if state == b"registers" { Ok(()) } else { Err(GuestError::new("load its state", "not its registers")) }
    }
}

impl Drop for Stamper {
    fn drop(&mut self) {
        let _ = self.pause();
    }
}

/// Memory with something in it: every third page is empty.
pub(crate) fn filled(layout: MemoryLayout) -> Arc<GuestMemory> {
    let memory = Arc::new(GuestMemory::allocate(layout, Backing::Anonymous).unwrap());
    let mut x = 1u64;
    for chunk in 0..memory.layout().chunks() {
        let chunk = pageferry::units::ChunkIndex(chunk);
        for bit in 0..memory.chunk(chunk).pages() {
            for index in 0..512 {
                x = x.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                match bit % 3 {
                    0 => memory.chunk(chunk).store_word(bit, index, x),
                    1 => memory.chunk(chunk).store_word(bit, index, x >> 60),
                    _ => {}
                }
            }
        }
    }
    memory
}

/// A copy of every page.
pub(crate) fn image(memory: &GuestMemory) -> Vec<[u8; 4096]> {
    let layout = memory.layout();
    (0..layout.chunks())
        .map(pageferry::units::ChunkIndex)
        .flat_map(|chunk| (0..memory.chunk(chunk).pages()).map(move |bit| chunk.page(bit)))
        .map(|page: PageIndex| {
            let mut copy = [0; 4096];
            memory.chunk(page.chunk()).copy_out(page.bit(), &mut copy);
            copy
        })
        .collect()
}

/// What a destination keeps for the test to look at.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) image: Option<Vec<[u8; 4096]>>,
    pub(crate) ending: Option<Ending>,
    pub(crate) ran: bool,
}

/// Takes stampers in.
#[derive(Default)]
pub(crate) struct Factory {
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) fail_to_resume: bool,
    pub(crate) fail_when_placed: bool,
    pub(crate) other_layout: Option<MemoryLayout>,
    pub(crate) backing: Backing,
    pub(crate) working_set: Option<u64>,
}

impl GuestFactory for Factory {
    fn backing(&self, _offer: &Offer) -> Backing {
        self.backing
    }

    fn admit(&self, offer: &Offer) -> Result<Box<dyn Arrival>, Refusal> {
        let layout = self.other_layout.clone().unwrap_or_else(|| offer.layout.clone());
        let memory = Arc::new(GuestMemory::allocate(layout, self.backing).unwrap());
        let mut guest = Stamper::new(memory);
        guest.fail_to_resume = self.fail_to_resume;
        guest.working_set = self.working_set;
        Ok(Box::new(Arriving { guest, seen: Arc::clone(&self.seen), fail_when_placed: self.fail_when_placed }))
    }
}

struct Arriving {
    guest: Stamper,
    seen: Arc<Mutex<Seen>>,
    fail_when_placed: bool,
}

impl Arrival for Arriving {
    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.guest.memory)
    }

    fn guest(&mut self) -> &mut dyn Guest {
        &mut self.guest
    }

    fn placed(&mut self, _placed: Placed) -> io::Result<()> {
        if self.fail_when_placed {
            return Err(io::Error::other("no room for the image"));
        }
        self.seen.lock().unwrap().image = Some(image(&self.guest.memory));
        Ok(())
    }

    fn ended(self: Box<Self>, ending: Ending) {
        let mut seen = self.seen.lock().unwrap();
        seen.ran = self.guest.is_running();
        seen.ending = Some(ending);
    }
}
