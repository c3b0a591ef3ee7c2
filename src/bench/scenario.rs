//! The guests and links that are measured.
//!
//! Sizes and rates are chosen so that each scenario shows one thing: what an idle guest costs, what a busy one does on a
//! link that processors or that bytes limit, one that QEMU's pre-copy never finishes, one whose writes no compression
//! and no difference makes smaller, and one that is large.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::guests::{GuestKind, GuestSpec, PROGRAM_BYTES, Rate};
use crate::units::text::Exact;
use crate::units::{ByteCount, BytesPerSec};

/// One guest on one link.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Short name: as `--scenario` takes it, or `own`.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// As it is unless small ones are asked for.
    guest: GuestSpec,
    /// What the link is shaped to, bits a second; `None` is unshaped.
    pub link: Option<u64>,
    /// How long the guest runs before it is migrated.
    pub warm_up: Duration,
    /// Whether QEMU's pre-copy cannot finish it: then there are limits of its own to meet.
    pub heavy: bool,
    /// Whether this engine is run in post-copy as well.
    pub post_copy: bool,
}

impl Scenario {
    /// All that have names, in the order they are run.
    #[must_use]
    pub fn all() -> Vec<Self> {
        vec![
            Self::named("idle-1gbit", "an idle guest, 1 Gbit/s", "memory=1GiB,fill=512MiB,working-set=64KiB,rate=1000"),
            Self { link: None, ..Self::named("idle-unshaped", "an idle guest, unshaped", "memory=1GiB,fill=512MiB,working-set=64KiB,rate=1000") },
            Self {
                link: None,
                post_copy: true,
                ..Self::named("busy-unshaped", "64 MiB written at 100000 pages/s, unshaped", "memory=2GiB,fill=1GiB,working-set=64MiB,rate=100000")
            },
            Self::named("busy-1gbit", "64 MiB written at 10000 pages/s, 1 Gbit/s", "memory=1GiB,fill=256MiB,working-set=64MiB,rate=10000"),
            Self {
                heavy: true,
                post_copy: true,
                ..Self::named("heavy-1gbit", "256 MiB written at 100000 pages/s, 1 Gbit/s", "memory=1GiB,fill=512MiB,working-set=256MiB,rate=100000")
            },
            Self {
                // Once through the working set.
                warm_up: Duration::from_secs(4),
                ..Self::named(
                    "rewrite-1gbit",
                    "64 MiB of random words rewritten at 5000 pages/s, 1 Gbit/s",
                    "memory=1GiB,fill=256MiB,working-set=64MiB,rate=5000,pattern=rewrite",
                )
            },
            Self {
                link: None,
                post_copy: true,
                ..Self::named(
                    "large-unshaped",
                    "an 8 GiB guest, 4 GiB filled, 64 MiB written at 20000 pages/s, unshaped",
                    "memory=8GiB,fill=4GiB,working-set=64MiB,rate=20000",
                )
            },
        ]
    }

    /// A KVM guest of these keys on a link of 1 Gbit/s.
    fn named(name: &str, title: &str, keys: &str) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            guest: GuestSpec::from_parts("kvm", keys).expect("a guest that makes sense"),
            link: Some(GIGABIT),
            warm_up: Duration::from_secs(1),
            heavy: false,
            post_copy: false,
        }
    }

    /// Any `guest` on any `link` (`None` is unshaped), when it has run for `warm_up`.
    ///
    /// # Errors
    /// Says why the two engines could not be given the same guest.
    pub fn own(guest: GuestSpec, link: Option<BytesPerSec>, warm_up: Duration) -> Result<Self, String> {
        if guest.kind() != GuestKind::Kvm {
            return Err("QEMU has guests of KVM only: it has to be kvm:...".to_owned());
        }
        if !guest.memory().0.is_multiple_of(MEBIBYTE) {
            return Err(format!("QEMU has memory in whole mebibytes only, not {} B", guest.memory().0));
        }
        let most = ByteCount(PC_HOLE.0 - PROGRAM_BYTES.0);
        if guest.working_set() > most {
            return Err(format!("working-set={}: a PC has {most} for it, below its hole for devices", guest.working_set()));
        }
        if warm_up < LEAST_WARM_UP {
            return Err(format!("--warm-up {}: at least {}, so that its pace can be seen", Exact(warm_up), Exact(LEAST_WARM_UP)));
        }
        if let Some(rate) = link.filter(|rate| !LINKS.contains(rate)) {
            return Err(format!("--link {}: from {} to {}", Exact(rate), Exact(*LINKS.start()), Exact(*LINKS.end())));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in that range")]
        let bits = link.map(|rate| (rate.0 * 8.0).round() as u64);
        let title = format!("a guest of one's own, {}", link.map_or_else(|| "unshaped".to_owned(), |rate| rate.to_string()));
        Ok(Self { name: OWN.to_owned(), title, guest, link: bits, warm_up, heavy: false, post_copy: true })
    }

    /// Those with these names, in the order of [`Scenario::all`]; all if there are no names.
    ///
    /// # Errors
    /// The first name that none has.
    pub fn with_names(names: &[String]) -> Result<Vec<Self>, String> {
        let all = Self::all();
        if let Some(unknown) = names.iter().find(|name| all.iter().all(|scenario| scenario.name != **name)) {
            return Err(unknown.clone());
        }
        Ok(all.into_iter().filter(|scenario| names.is_empty() || names.contains(&scenario.name)).collect())
    }

    /// The guest; a `quick` one is of a size that takes moments and proves nothing.
    #[must_use]
    pub fn guest(&self, quick: bool) -> GuestSpec {
        let spec = &self.guest;
        if !quick {
            return spec.clone();
        }
        let rate = match spec.rate() {
            Rate::Paced(rate) => rate.min(QUICK_RATE).to_string(),
            Rate::Max => "max".to_owned(),
        };
        let working_set = spec.working_set().0.min(QUICK_WORKING_SET);
        let keys = format!("{QUICK_KEYS},working-set={working_set},rate={rate},pattern={}", spec.pattern());
        GuestSpec::from_parts("kvm", &keys).expect("a small guest makes sense, too")
    }
}

/// The name of a scenario that is none of those with names.
const OWN: &str = "own";
/// The least that a guest runs before it is migrated.
pub(super) const LEAST_WARM_UP: Duration = Duration::from_millis(400);
/// The links that there are.
const LINKS: RangeInclusive<BytesPerSec> = BytesPerSec(8e3)..=BytesPerSec(12.5e9);
const GIGABIT: u64 = 1_000_000_000;
const MEBIBYTE: u64 = 1 << 20;
/// Where a PC with more memory has a hole.
const PC_HOLE: ByteCount = ByteCount(3 << 30);
const QUICK_KEYS: &str = "memory=64MiB,fill=24MiB";
const QUICK_WORKING_SET: u64 = 2 << 20;
const QUICK_RATE: u64 = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_guests_could_be_ones_own() {
        for scenario in Scenario::all() {
            for quick in [false, true] {
                let spec = scenario.guest(quick);
                assert!(!quick || spec.memory().0 <= 64 << 20);
                let own = Scenario::own(spec, Some(BytesPerSec(125e6)), scenario.warm_up).unwrap();
                assert_eq!((own.link, own.title.as_str()), (Some(GIGABIT), "a guest of one's own, 1.00 Gbit/s"));
            }
        }
    }

    #[test]
    fn a_guest_that_qemu_could_not_be_given_is_none() {
        for (guest, words) in [
            ("workload", "guests of KVM only"),
            ("kvm:memory=65540KiB", "whole mebibytes only, not 67112960 B"),
            ("kvm:memory=4GiB,working-set=3GiB", "working-set=3 GiB: a PC has 2.98 GiB for it"),
        ] {
            let problem = Scenario::own(guest.parse().unwrap(), None, LEAST_WARM_UP).unwrap_err();
            assert!(problem.contains(words), "{guest}: {problem}");
        }
        let own = |link, warm_up| Scenario::own("kvm".parse().unwrap(), link, warm_up).unwrap_err();
        assert_eq!(own(None, Duration::from_millis(399)), "--warm-up 399ms: at least 400ms, so that its pace can be seen");
        for rate in [0.1, 7e3, 1e30] {
            let problem = own(Some(BytesPerSec(rate)), LEAST_WARM_UP);
            assert!(problem.ends_with("from 64kbit/s to 100Gbit/s"), "{problem}");
        }
    }

    #[test]
    fn scenarios_are_found_by_name() {
        let names = |names: &[&str]| Scenario::with_names(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        let found: Vec<_> = names(&["large-unshaped", "busy-1gbit"]).unwrap().into_iter().map(|scenario| scenario.name).collect();
        assert_eq!(found, ["busy-1gbit", "large-unshaped"]);
        assert_eq!(names(&[]).unwrap().len(), Scenario::all().len());
        assert_eq!(names(&["busy-1gbit", "lazy"]).unwrap_err(), "lazy");
    }
}
