//! Who holds the guest: the one thing that must be right however a migration ends.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The end that may run the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestOwner {
    /// The source: the guest runs there, or may be resumed there.
    Source,
    /// The destination: the source must never run the guest again.
    Destination,
    /// Not known to the source, so it does not run the guest: the destination may.
    InDoubt,
}

impl GuestOwner {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::InDoubt => "in-doubt",
        }
    }
}

impl fmt::Display for GuestOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
