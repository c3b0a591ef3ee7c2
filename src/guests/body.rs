//! What both kinds of test guest are made of: memory, description, and the way from one host to the other.

use std::sync::Arc;

use super::check::{self, CheckError, Program};
use super::control::{self, Control, Field};
use super::fill::Fill;
use super::spec::GuestSpec;
use super::state::SavedState;
use super::{GuestBuildError, pages};
use crate::dirty::Marks;
use crate::guest::GuestError;
use crate::memory::{Backing, GuestMemory, MemoryError, MemoryLayout};
use crate::units::{PAGE_WORDS, PageCount};

/// A test guest without what makes it run.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) marks: Marks,
    pub(super) spec: GuestSpec,
    arrival: Arrival,
}

/// How far the guest has come into being here.
#[derive(Debug)]
enum Arrival {
    /// It has not: its state is awaited.
    Awaited,
    /// Its state is here, and it has not run here yet.
    Loaded(SavedState),
    /// It was built here or has run here.
    Done,
}

impl Body {
    /// Empty memory, for a guest that is to arrive.
    pub(super) fn empty(spec: &GuestSpec, backing: Backing) -> Result<Self, GuestBuildError> {
        let layout = MemoryLayout::flat(spec.memory().pages()).map_err(MemoryError::from)?;
        let memory = Arc::new(GuestMemory::allocate(layout, backing)?);
        // These guests give no page back, so trackers need not look for discards.
        Ok(Self { marks: Marks::new(memory.layout()).with_discards(), memory, spec: spec.clone(), arrival: Arrival::Awaited })
    }

    /// Fills the memory of a guest that begins here. `clock_scale` as in the control page.
    pub(super) fn fill(&mut self, program: &Program, clock_scale: u64) {
        let fill = Fill::new(&self.spec);
        let mut page = [0; PAGE_WORDS];
        for number in fill.range() {
            fill.page(number, &mut page);
            pages::store(&self.memory, number, &page);
        }
        program.iter().for_each(|(number, page)| pages::store(&self.memory, *number, page));
        self.control().build(&self.spec);
        self.control().store(Field::ClockScale, clock_scale);
        self.arrival = Arrival::Done;
    }

    pub(super) fn control(&self) -> Control<'_> {
        Control::new(&self.memory)
    }

    /// To be called before the guest runs, every time: the first time at a destination it sets the guest's clock,
    /// which is the first write to the memory that arrived.
    pub(super) fn start(&mut self, clock_scale: u64, local_ns: u64) -> Result<(), GuestError> {
        match &self.arrival {
            Arrival::Done => {}
            Arrival::Awaited => return Err(GuestError::new("resume", "its state has not arrived")),
            Arrival::Loaded(state) => {
                self.arrived_whole(state).map_err(|error| GuestError::new("resume", error))?;
                self.control().rebase_clock(clock_scale, local_ns, state.guest_ns_now());
                self.marks.mark_pages(control::PAGE, PageCount(1));
            }
        }
        self.arrival = Arrival::Done;
        Ok(())
    }

    /// The state to send, of a paused guest.
    pub(super) fn save(&self, local_ns: u64, machine: Vec<u8>) -> Vec<u8> {
        let guest_ns = local_ns.wrapping_add(self.control().load(Field::ClockOffset));
        SavedState::now(self.spec.kind(), self.control().load(Field::Writes), guest_ns, machine).encode()
    }

    /// Takes over a state and gives the machine's part of it. Memory is not looked at: it may not be complete yet.
    pub(super) fn load(&mut self, machine_bytes: usize, bytes: &[u8]) -> Result<Vec<u8>, GuestError> {
        let refuse = |why: Box<dyn std::error::Error + Send + Sync>| GuestError::new("load its state", why);
        if matches!(self.arrival, Arrival::Done) {
            return Err(refuse("it has one already".into()));
        }
        let mut state = SavedState::decode(self.spec.kind(), machine_bytes, bytes).map_err(|error| refuse(error.into()))?;
        let machine = std::mem::take(&mut state.machine);
        self.arrival = Arrival::Loaded(state);
        Ok(machine)
    }

    /// Checks the memory of a paused guest.
    pub(super) fn check(&self, program: &Program) -> Result<(), CheckError> {
        if let Arrival::Loaded(state) = &self.arrival {
            self.arrived_whole(state)?;
        }
        check::check(&self.memory, &self.spec, program)
    }

    /// Whether memory and state are of the same moment.
    fn arrived_whole(&self, state: &SavedState) -> Result<(), CheckError> {
        let memory = self.control().load(Field::Writes);
        if memory == state.writes { Ok(()) } else { Err(CheckError::Apart { memory, state: state.writes }) }
    }
}
