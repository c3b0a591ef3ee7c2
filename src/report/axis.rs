//! From figures to positions, and the round figures to label.

use super::quantity::Unit;

/// An axis from its low end (0) to its high end (1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    kind: Kind,
    low: f64,
    high: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Linear,
    Logarithmic,
}

/// A labelled position.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    /// From 0 to 1.
    pub(super) at: f64,
    /// Digits without the unit.
    pub(super) label: String,
}

impl Axis {
    /// From zero to `high`: for everything whose length is the figure.
    pub(super) fn from_zero(high: f64) -> Self {
        Self { kind: Kind::Linear, low: 0.0, high: if high > 0.0 { high } else { 1.0 } }
    }

    /// For lines through these figures: from zero, or logarithmic where the small ones would lie on the ground.
    pub(super) fn for_lines(figures: &[f64]) -> Self {
        let (least, most) = range(figures);
        if least > 0.0 && most / least > LINEAR_RANGE { Self::decades(least, most) } else { Self::from_zero(most * 1.08) }
    }

    /// For ratios: halving and doubling are the same distance. Holds 1.
    pub(super) fn for_ratios(figures: &[f64]) -> Self {
        let (least, most) = range(figures);
        let (least, most) = if least > 0.0 { (least, most) } else { (1.0, 1.0) };
        Self { kind: Kind::Logarithmic, low: least.min(0.5) / 1.1, high: most.max(2.0) * 1.1 }
    }

    /// Whole decades around the figures.
    fn decades(least: f64, most: f64) -> Self {
        Self { kind: Kind::Logarithmic, low: 10_f64.powf(least.log10().floor()), high: 10_f64.powf(most.log10().ceil()) }
    }

    /// Whether a figure has a place on the axis: a logarithmic one has none for zero.
    pub(super) fn holds(&self, figure: f64) -> bool {
        self.kind == Kind::Linear || figure > 0.0
    }

    /// Where a figure lies, from 0 to 1; ends of the axis hold what is beyond them.
    pub(super) fn position(&self, figure: f64) -> f64 {
        let at = match self.kind {
            Kind::Linear => (figure - self.low) / (self.high - self.low),
            Kind::Logarithmic if figure <= 0.0 => 0.0,
            Kind::Logarithmic => (figure / self.low).ln() / (self.high / self.low).ln(),
        };
        at.clamp(0.0, 1.0)
    }

    /// Whether equal distances are equal factors; a reader must be told.
    pub(super) fn is_logarithmic(&self) -> bool {
        self.kind == Kind::Logarithmic
    }

    /// What the labels are in.
    pub(super) fn unit_name(&self, unit: Unit) -> &'static str {
        unit.axis_scale(self.high).name
    }

    /// About `count` round figures.
    pub(super) fn ticks(&self, unit: Unit, count: usize) -> Vec<Tick> {
        let divisor = unit.axis_scale(self.high).divisor;
        let figures: Vec<f64> = match self.kind {
            Kind::Linear => {
                let step = step(self.high / divisor / count.max(1) as f64) * divisor;
                (0..).map(|index| f64::from(index) * step).take_while(|figure| *figure <= self.high * 1.000_001).collect()
            }
            Kind::Logarithmic => {
                let all: Vec<f64> = steps(self.low, self.high).collect();
                if all.len() <= count * 2 { all } else { self.whole_decades(count) }
            }
        };
        figures.into_iter().map(|figure| Tick { at: self.position(figure), label: label(figure / divisor) }).collect()
    }

    /// Powers of ten, leaving out some where they would crowd.
    fn whole_decades(&self, count: usize) -> Vec<f64> {
        let decades: Vec<f64> = steps(self.low, self.high).filter(|figure| (figure.log10() - figure.log10().round()).abs() < 1e-9).collect();
        let every = decades.len().div_ceil(count * 2);
        decades.into_iter().step_by(every).collect()
    }
}

/// Least above zero, and most.
fn range(figures: &[f64]) -> (f64, f64) {
    let positive = figures.iter().copied().filter(|figure| *figure > 0.0);
    let (least, most) = positive.fold((f64::INFINITY, 0.0_f64), |(least, most), figure| (least.min(figure), most.max(figure)));
    if most > 0.0 { (least, most) } else { (0.0, 0.0) }
}

/// The round step at or above `least`.
fn step(least: f64) -> f64 {
    steps(least, least * 10.0).next().unwrap_or(least)
}

/// The figures 1, 2, 5, 10, ... from `low` to `high`, in order.
fn steps(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let decades = |figure: f64| figure.log10().floor();
    let (first, last) = if low > 0.0 { (decades(low), decades(high)) } else { (0.0, -1.0) };
    std::iter::successors(Some(first), |decade| Some(decade + 1.0))
        .take_while(move |decade| *decade <= last)
        .flat_map(|decade| [1.0, 2.0, 5.0].map(|mantissa| mantissa * 10_f64.powf(decade)))
        .filter(move |figure| *figure >= low * 0.999_999 && *figure <= high * 1.000_001)
}

/// A round figure with no more digits than it needs.
fn label(figure: f64) -> String {
    let decimals =
        (0..6).find(|decimals| (figure * 10_f64.powi(*decimals)).fract().min(1.0 - (figure * 10_f64.powi(*decimals)).fract()).abs() < 1e-6);
    super::quantity::number(figure, usize::try_from(decimals.unwrap_or(6)).expect("less than 7"))
}

/// Factors between figures that a linear axis can still show.
const LINEAR_RANGE: f64 = 20.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, unit: Unit, count: usize) -> Vec<String> {
        axis.ticks(unit, count).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn bars_start_at_zero() {
        let axis = Axis::from_zero(3132.0);
        assert_eq!((axis.position(0.0), axis.position(1566.0), axis.position(3132.0)), (0.0, 0.5, 1.0));
        assert_eq!(labels(&axis, Unit::Millis, 5), ["0", "1", "2", "3"]);
        assert_eq!(axis.unit_name(Unit::Millis), "s");
        assert_eq!(labels(&Axis::from_zero(0.7), Unit::CpuSeconds, 4), ["0", "0.2", "0.4", "0.6"]);
    }

    #[test]
    fn an_axis_of_nothing_is_still_an_axis() {
        assert_eq!(Axis::from_zero(0.0).position(0.0), 0.0);
        assert!(!Axis::for_lines(&[]).ticks(Unit::Pages, 4).is_empty());
        assert!(!Axis::for_ratios(&[0.0]).ticks(Unit::Times, 4).is_empty());
    }

    #[test]
    fn lines_that_span_decades_are_logarithmic_and_say_so() {
        assert!(!Axis::for_lines(&[100.0, 1900.0]).is_logarithmic());
        let axis = Axis::for_lines(&[110.0, 43_000.0, 0.0]);
        assert!(axis.is_logarithmic());
        assert_eq!(labels(&axis, Unit::PagesPerSec, 4), ["0.1", "1", "10", "100"]);
        assert_eq!(labels(&axis, Unit::PagesPerSec, 5).len(), 10, "1, 2, 5, 10, ...");
        assert_eq!(labels(&Axis::for_lines(&[1.0, 1e12]), Unit::PagesPerSec, 3).len(), 5);
        assert!(axis.holds(1.0) && !axis.holds(0.0));
    }

    #[test]
    fn halving_and_doubling_are_the_same_distance() {
        let axis = Axis::for_ratios(&[0.25, 4.0]);
        assert!((axis.position(1.0) - 0.5).abs() < 1e-9);
        assert!((axis.position(0.5) + axis.position(2.0) - 1.0).abs() < 1e-9);
        assert_eq!(labels(&Axis::for_ratios(&[0.3]), Unit::Times, 6), ["0.5", "1", "2"]);
    }
}
