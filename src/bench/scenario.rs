//! The guests and links that are measured.
//!
//! Sizes and rates are chosen so that each scenario shows one thing: what an idle guest costs, what a busy one does on a
//! link that processors or that bytes limit, one that QEMU's pre-copy never finishes, one whose writes no compression
//! and no difference makes smaller, and one that is large.

use std::time::Duration;

use crate::guests::{GuestSpec, Rate, SpecError};

/// One guest on one link.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Short name, as `--scenario` takes it.
    pub name: &'static str,
    /// One line for people.
    pub title: &'static str,
    /// The guest's keys.
    keys: &'static str,
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
    /// All of them, in the order they are run.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let busy = Self { name: "", title: "", keys: "", link: Some(GIGABIT), warm_up: Duration::from_secs(1), heavy: false, post_copy: false };
        vec![
            Self { name: "idle-1gbit", title: "an idle guest, 1 Gbit/s", keys: "memory=1GiB,fill=512MiB,working-set=64KiB,rate=1000", ..busy },
            Self {
                name: "idle-unshaped",
                title: "an idle guest, unshaped",
                keys: "memory=1GiB,fill=512MiB,working-set=64KiB,rate=1000",
                link: None,
                ..busy
            },
            Self {
                name: "busy-unshaped",
                title: "64 MiB written at 100000 pages/s, unshaped",
                keys: "memory=2GiB,fill=1GiB,working-set=64MiB,rate=100000",
                link: None,
                post_copy: true,
                ..busy
            },
            Self {
                name: "busy-1gbit",
                title: "64 MiB written at 10000 pages/s, 1 Gbit/s",
                keys: "memory=1GiB,fill=256MiB,working-set=64MiB,rate=10000",
                ..busy
            },
            Self {
                name: "heavy-1gbit",
                title: "256 MiB written at 100000 pages/s, 1 Gbit/s",
                keys: "memory=1GiB,fill=512MiB,working-set=256MiB,rate=100000",
                heavy: true,
                post_copy: true,
                ..busy
            },
            Self {
                name: "rewrite-1gbit",
                title: "64 MiB of random words rewritten at 5000 pages/s, 1 Gbit/s",
                keys: "memory=1GiB,fill=256MiB,working-set=64MiB,rate=5000,pattern=rewrite",
                // Once through the working set.
                warm_up: Duration::from_secs(4),
                ..busy
            },
            Self {
                name: "large-unshaped",
                title: "an 8 GiB guest, 4 GiB filled, 64 MiB written at 20000 pages/s, unshaped",
                keys: "memory=8GiB,fill=4GiB,working-set=64MiB,rate=20000",
                link: None,
                post_copy: true,
                ..busy
            },
        ]
    }

    /// Those with these names, in the order of [`Scenario::all`]; all if there are no names.
    ///
    /// # Errors
    /// The first name that none has.
    pub fn named(names: &[String]) -> Result<Vec<Self>, String> {
        let all = Self::all();
        if let Some(unknown) = names.iter().find(|name| all.iter().all(|scenario| scenario.name != **name)) {
            return Err(unknown.clone());
        }
        Ok(all.into_iter().filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name)).collect())
    }

    /// The guest; a `quick` one is of a size that takes moments and proves nothing.
    ///
    /// # Errors
    /// Never, for the scenarios there are.
    pub fn guest(&self, quick: bool) -> Result<GuestSpec, SpecError> {
        let spec = GuestSpec::from_parts("kvm", self.keys)?;
        if !quick {
            return Ok(spec);
        }
        let rate = match spec.rate() {
            Rate::Paced(rate) => rate.min(QUICK_RATE).to_string(),
            Rate::Max => "max".to_owned(),
        };
        let working_set = spec.working_set().0.min(QUICK_WORKING_SET);
        let keys = format!("{QUICK_KEYS},working-set={working_set},rate={rate},pattern={}", spec.pattern());
        GuestSpec::from_parts("kvm", &keys)
    }
}

const GIGABIT: u64 = 1_000_000_000;
const QUICK_KEYS: &str = "memory=64MiB,fill=24MiB";
const QUICK_WORKING_SET: u64 = 2 << 20;
const QUICK_RATE: u64 = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_guests_make_sense_and_fit_under_the_hole_of_a_pc() {
        for scenario in Scenario::all() {
            for quick in [false, true] {
                let spec = scenario.guest(quick).unwrap();
                // A PC with more memory has a hole from 3 GiB on.
                assert!(spec.working_set().0 + (16 << 20) <= 3 << 30, "{}", scenario.name);
                assert_eq!(spec.memory().0 % (1 << 20), 0);
                assert!(!quick || spec.memory().0 <= 64 << 20);
            }
        }
    }

    #[test]
    fn scenarios_are_found_by_name() {
        let names = |names: &[&str]| Scenario::named(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        let found: Vec<_> = names(&["large-unshaped", "busy-1gbit"]).unwrap().iter().map(|scenario| scenario.name).collect();
        assert_eq!(found, ["busy-1gbit", "large-unshaped"]);
        assert_eq!(names(&[]).unwrap().len(), Scenario::all().len());
        assert_eq!(names(&["busy-1gbit", "lazy"]).unwrap_err(), "lazy");
    }
}
