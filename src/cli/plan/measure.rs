//! `pageferry plan --measure`: the guest runs here for a moment and is looked at.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::{PlanError, Planned};
use crate::cli::args::UsageError;
use crate::dirty::{self, Choice};
use crate::guests::{self, GuestSpec};
use crate::memory::Backing;
use crate::policy::{Bounds, Limits, MeasuredGuest, ModelInput, VolumeLimit, predict_measured};
use crate::source::survey;
use crate::units::{ByteCount, BytesPerSec, PAGE_SIZE, PageCount};

/// What was measured, and how.
pub(super) struct Measured {
    pub(super) guest: MeasuredGuest,
    pub(super) tracker: &'static str,
}

/// Builds the guest that `spec` describes, lets it run, and looks at it for `time`.
pub(super) fn measure(spec: &str, time: Duration) -> Result<Measured, PlanError> {
    let wrong = |error: guests::SpecError| UsageError { flag: "--measure", value: spec.to_owned(), problem: error.to_string() };
    look(&spec.parse().map_err(wrong)?, time).map_err(PlanError::Measure)
}

fn look(spec: &GuestSpec, time: Duration) -> anyhow::Result<Measured> {
    let mut guest = guests::build_source(spec, Backing::Anonymous).context("it cannot be built")?;
    let memory = Arc::clone(guest.memory());
    let mut tracker = dirty::open(Choice::Auto, &guest.tracked())?;
    guest.resume()?;
    std::thread::sleep(WARM_UP);
    let measured = survey(&mut *guest, &memory, &mut *tracker, time)?;
    Ok(Measured { guest: measured, tracker: tracker.kind().name() })
}

impl Measured {
    /// How moving it over a link of `bandwidth` would go.
    pub(super) fn plan(&self, bandwidth: BytesPerSec, limits: Limits, fixed_cost: Option<Duration>) -> Planned {
        let guest = &self.guest;
        let fixed_cost = fixed_cost.unwrap_or(FIXED_COST);
        let first = guest.first_over(bandwidth);
        let input = |memory: PageCount, page_bytes: f64| ModelInput {
            memory: memory.bytes(),
            dirty_rate: guest.curve.first_rate(),
            bandwidth: BytesPerSec((bandwidth.0 / page_bytes).min(first.processors.0) * PAGE_SIZE as f64),
            working_set: Some(guest.curve.most()),
            fixed_cost,
            // In times of all memory, of which the model is told only what is in use.
            limits: Limits { max_volume: VolumeLimit::Bytes(limits.max_volume.for_guest(guest.memory)), ..limits },
        };
        let used = input(guest.pages, first.bytes);
        // What is sent again may be dearer than it was the first time, and more than it was then.
        let at_worst = input(guest.reach.max(guest.pages), first.bytes.max(guest.again_bytes));
        let Bounds { least_total, least_downtime, .. } = used.bounds();
        let bounds = Bounds { least_total, least_downtime, ..at_worst.bounds() };
        Planned { input: used, bounds, prediction: predict_measured(guest, bandwidth, limits, fixed_cost) }
    }

    /// Wire bytes of everything once, over a link of `bandwidth`.
    pub(super) fn wire_bytes(&self, bandwidth: BytesPerSec) -> ByteCount {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float to integer cast saturates")]
        ByteCount((self.guest.pages.0 as f64 * self.guest.first_over(bandwidth).bytes) as u64)
    }
}

/// The guest settles down before it is looked at.
const WARM_UP: Duration = Duration::from_millis(300);
/// What handovers cost that were measured.
const FIXED_COST: Duration = Duration::from_millis(3);
