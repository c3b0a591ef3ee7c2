//! Before post-copy: pages that will be missing in any case are discarded at the destination while the guest still runs.
//!
//! What the guest has written to since it was sent last is stale there, and has to go before the guest may run on that
//! memory. Giving pages back to the host takes a fraction of a microsecond each, which adds up: done after the pause it
//! would be most of the downtime. Done before, only what the guest writes to meanwhile is left for then.

use super::driver::Driver;
use super::pump::Command;
use super::session::Session;
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::protocol::SourceEvent;
use crate::units::PageCount;
use crate::wire::ChannelTotals;

impl Driver<'_> {
    /// Has the destination discard what is `pending` after so much was sent, and waits until that is done; or says that it
    /// is not worth the wait. Once it is done there is no way back to pre-copy.
    pub(super) fn discard_ahead(&mut self, session: &Session<'_>, totals: Vec<ChannelTotals>, pending: &PageBitmap) -> Result<bool, Error> {
        if pending.count() < WORTH_IT {
            return Ok(false);
        }
        let stale = self.missing(pending, session.terms.granule);
        session.pump.command(Command::Announce { totals, stale });
        self.await_word(session, &SourceEvent::Discarded)?;
        Ok(true)
    }
}

/// Pages that take about half a millisecond to discard.
const WORTH_IT: PageCount = PageCount(2048);
