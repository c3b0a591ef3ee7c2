//! Two methods, mixed so that no stage waits.
//!
//! A byte passes three stages: the sender's processor, the link, the receiver's processor. They work at the same time,
//! so the slowest sets the pace. A method is what it asks of each; a mixture asks for the weighted mean. The pace is
//! therefore a convex, piecewise linear function of the share of the heavier method, and its minimum lies at an end or
//! where two stages are even.
//!
//! Processors do other things too, the guest above all, and the two ends may even share one. So a second of their time
//! counts for a part of a second of the migration's. So does a second of the link's, which is known least: a rate that is
//! only hoped for must not fill the link with bytes that save next to nothing.

/// Seconds that a plain byte takes in each stage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    pub(super) sender: f64,
    pub(super) link: f64,
    pub(super) receiver: f64,
}

impl Demand {
    /// Seconds per byte when the stages work at the same time.
    pub(super) fn time(&self) -> f64 {
        self.sender.max(self.link).max(self.receiver)
    }

    fn price(&self) -> f64 {
        self.time() + (self.sender + self.receiver) * PROCESSOR_PRICE + self.link * LINK_PRICE
    }

    fn mixed(&self, other: &Self, share: f64) -> Self {
        let mix = |a: f64, b: f64| a + (b - a) * share;
        Self { sender: mix(self.sender, other.sender), link: mix(self.link, other.link), receiver: mix(self.receiver, other.receiver) }
    }

    fn stages(&self) -> [f64; 3] {
        [self.sender, self.link, self.receiver]
    }
}

/// Which methods to use, by their place on the ladder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) light: usize,
    pub(super) heavy: usize,
    /// Of the chunks, those for the heavier method.
    pub(super) share: f64,
    /// Seconds per plain byte to expect.
    pub(super) time: f64,
}

impl Plan {
    /// One method for all.
    pub(super) fn only(index: usize) -> Self {
        Self { light: index, heavy: index, share: 0.0, time: 0.0 }
    }

    pub(super) fn uses(&self, index: usize) -> bool {
        self.light == index && self.share < 1.0 || self.heavy == index
    }
}

/// The plan with the lowest price; of equals the heavier.
pub(super) fn best(demands: &[Demand]) -> Plan {
    let (mut plan, mut lowest) = (Plan::only(0), f64::INFINITY);
    for (light, one) in demands.iter().enumerate() {
        for (heavy, other) in demands.iter().enumerate().skip(light) {
            let mut consider = |share: f64| {
                let mixed = one.mixed(other, share);
                if mixed.price() <= lowest {
                    lowest = mixed.price();
                    plan = Plan { light, heavy: if share > 0.0 { heavy } else { light }, share, time: mixed.time() };
                }
            };
            consider(0.0);
            for (a, b) in [(0, 1), (0, 2), (1, 2)] {
                let (one, other) = (one.stages(), other.stages());
                let (gap, closing) = (one[b] - one[a], (one[b] - one[a]) - (other[b] - other[a]));
                if gap / closing > 0.0 && gap / closing < 1.0 {
                    consider(gap / closing);
                }
            }
        }
    }
    plan
}

/// Seconds of migration that a second of processor is worth.
const PROCESSOR_PRICE: f64 = 0.4;
/// The same for the link.
const LINK_PRICE: f64 = 0.08;

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(sender: f64, link: f64, receiver: f64) -> Demand {
        Demand { sender, link, receiver }
    }

    #[test]
    fn a_slow_link_takes_the_tightest_and_a_fast_one_the_lightest() {
        let used = |demands: &[Demand]| {
            let plan = best(demands);
            [0, 1, 2].map(|index| plan.uses(index))
        };
        assert_eq!(used(&[demand(1.0, 80.0, 1.0), demand(3.0, 40.0, 2.0), demand(6.0, 20.0, 3.0)]), [false, false, true]);
        assert_eq!(used(&[demand(1.0, 0.5, 1.0), demand(3.0, 0.25, 2.0), demand(6.0, 0.1, 3.0)]), [true, false, false]);
    }

    #[test]
    fn in_between_two_are_mixed_until_processor_and_link_are_even() {
        let (light, heavy) = (demand(1.0, 9.0, 0.0), demand(7.0, 3.0, 0.0));
        let plan = best(&[light, heavy]);
        assert!((plan.share - 2.0 / 3.0).abs() < 1e-9 && (plan.time - 5.0).abs() < 1e-9, "{plan:?}");
    }

    #[test]
    fn no_other_mixture_is_cheaper() {
        let demands = [demand(0.7, 1.6, 0.6), demand(2.0, 0.8, 1.1), demand(4.0, 0.4, 1.6)];
        let plan = best(&demands);
        let price = demands[plan.light].mixed(&demands[plan.heavy], plan.share).price();
        for light in &demands {
            for heavy in &demands {
                for share in 0..=100 {
                    assert!(price <= light.mixed(heavy, f64::from(share) / 100.0).price() + 1e-9);
                }
            }
        }
    }
}
