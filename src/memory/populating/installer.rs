//! Pages that are filled before they are the guest's.
//!
//! Populating a small page means two passes of the kernel over it, one to clear it and one to look whether that worked,
//! and a third pass fills it. `UFFDIO_COPY` takes a page that is filled already and puts it in its place in one. The
//! memory must be registered for that, and then a thread that touches a missing page of it waits. So only
//! [`Placement`](crate::memory::Placement) touches it, which knows what it has installed, until the registration is
//! [ended](Installer::end).
//!
//! <https://docs.kernel.org/admin-guide/mm/userfaultfd.html>

use std::ops::Range;

use crate::sys::huge;
use crate::sys::missing_pages::{MissingPages, NotFilled, PageKind};

/// Installs pages in memory of this process.
#[derive(Debug)]
pub(super) struct Installer {
    /// Taken on drop only.
    pages: Option<MissingPages>,
}

impl Installer {
    /// If this host lets it, and would not rather have had huge pages here by itself.
    pub(super) fn on_this_host() -> Option<Self> {
        if huge::by_default().private {
            return None;
        }
        let opened = MissingPages::open_untouched().inspect_err(|error| tracing::debug!(%error, "pages are populated, not installed"));
        Some(Self { pages: Some(opened.ok()?) })
    }

    /// Makes the missing pages of `range`, small ones of private memory, wait for [`Installer::install`]; says whether they
    /// do. Nobody may be touching them.
    pub(super) fn begin(&self, range: &Range<usize>) -> bool {
        // SAFETY: no reference to guest memory claims anything about its contents (see the module's head).
        let registered = unsafe { self.pages().register(range, PageKind::Small) };
        if let Err(error) = &registered {
            tracing::debug!(%error, "not to be installed");
            // A part of it may be registered, unless it is someone else's.
            if error.raw_os_error() != Some(libc::EBUSY) {
                self.end(range);
            }
        }
        registered.is_ok()
    }

    /// Installs whole pages from address `to` on. How many bytes of them: fewer when one is there already. `None` when the
    /// kernel would not: some may be installed then, and the rest is to be waited for as long as it is registered.
    pub(super) fn install(&self, to: usize, pages: &[u8]) -> Option<usize> {
        let mut installed = 0;
        while installed < pages.len() {
            match self.pages().copy(to + installed, &pages[installed..]) {
                Ok(bytes) => installed += bytes,
                Err(NotFilled::Present) => break,
                Err(reason) => {
                    tracing::debug!(?reason, "not installed");
                    return None;
                }
            }
        }
        Some(installed)
    }

    /// Nothing of `range` is waited for any more.
    pub(super) fn end(&self, range: &Range<usize>) {
        if let Err(error) = self.pages().unregister(range) {
            tracing::error!(%error, "memory stays registered");
        }
    }

    fn pages(&self) -> &MissingPages {
        self.pages.as_ref().expect("until it is dropped")
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        // Nobody waits: sessions hold this until they have ended what is registered of their memory.
        if let Some(pages) = self.pages.take() {
            pages.close();
        }
    }
}
