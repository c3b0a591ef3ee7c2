//! The ways in which QEMU can be told to migrate.

use serde_json::{Value, json};

use crate::units::ByteCount;

/// A set of capabilities and parameters that make sense together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As it comes, but for the limits that would make it slow.
    PreCopy,
    /// Two channels.
    Multifd,
    /// Two channels that compress.
    MultifdZstd,
    /// Differences to cached pages.
    Xbzrle,
    /// Post-copy from the start, with a channel of its own for the pages that the guest waits for.
    PostCopy,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::PreCopy, Self::Multifd, Self::MultifdZstd, Self::Xbzrle, Self::PostCopy];

    /// The name in tables, results and `--modes`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PreCopy => "pre-copy",
            Self::Multifd => "multifd",
            Self::MultifdZstd => "multifd-zstd",
            Self::Xbzrle => "xbzrle",
            Self::PostCopy => "post-copy",
        }
    }

    /// The mode of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Whether the guest runs at the destination before its memory is there.
    #[must_use]
    pub fn is_post_copy(self) -> bool {
        self == Self::PostCopy
    }

    /// Arguments of `migrate-set-capabilities`, the same at both ends.
    pub(super) fn capabilities(self) -> Value {
        let own: &[&str] = match self {
            Self::PreCopy => &[],
            Self::Multifd | Self::MultifdZstd => &["multifd"],
            Self::Xbzrle => &["xbzrle"],
            Self::PostCopy => &["postcopy-ram", "postcopy-preempt"],
        };
        let all: Vec<_> = ["events", "return-path"].iter().chain(own).map(|name| json!({ "capability": name, "state": true })).collect();
        json!({ "capabilities": all })
    }

    /// Arguments of `migrate-set-parameters`, the same at both ends, for a guest with so much memory.
    pub(super) fn parameters(self, memory: ByteCount) -> Value {
        let mut parameters = json!({ "max-bandwidth": 0, "max-postcopy-bandwidth": 0, "downtime-limit": DOWNTIME_LIMIT_MS });
        match self {
            Self::PreCopy | Self::PostCopy => {}
            Self::Multifd => parameters["multifd-channels"] = json!(CHANNELS),
            Self::MultifdZstd => {
                parameters["multifd-channels"] = json!(CHANNELS);
                parameters["multifd-compression"] = json!("zstd");
                parameters["multifd-zstd-level"] = json!(1);
            }
            Self::Xbzrle => parameters["xbzrle-cache-size"] = json!(CACHE.min(memory.0 / 2)),
        }
        parameters
    }
}

const CHANNELS: u32 = 2;
/// The default of both engines.
const DOWNTIME_LIMIT_MS: u32 = 300;
const CACHE: u64 = 512 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_found_by_their_names() {
        for mode in Mode::ALL {
            assert_eq!(Mode::named(mode.name()), Some(mode));
        }
        assert_eq!(Mode::named("teleport"), None);
    }

    #[test]
    fn no_mode_is_held_back_by_a_default() {
        for mode in Mode::ALL {
            let parameters = mode.parameters(ByteCount(1 << 30));
            assert_eq!(parameters["max-bandwidth"], 0);
            assert_eq!(parameters["downtime-limit"], 300);
            let text = mode.capabilities().to_string();
            assert!(text.contains("return-path") && text.contains("events"), "{text}");
        }
        assert_eq!(Mode::Xbzrle.parameters(ByteCount(1 << 29))["xbzrle-cache-size"], 1 << 28);
        assert_eq!(Mode::Xbzrle.parameters(ByteCount(8 << 30))["xbzrle-cache-size"], 1 << 29);
    }
}
