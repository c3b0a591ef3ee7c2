//! All scenarios, one after the other, and in each all engines by turns.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ballast::Ballast;
use super::compare::{bars, medians, post_copy_ratios, ratios};
use super::floor::floor;
use super::host;
use super::leftovers::Leftovers;
use super::measure::{Ended, Job};
use super::network::Network;
use super::ours::{self, Ours};
use super::qemu::{self, Mode};
use super::results::{BenchResults, COMPLETED, EngineResults, FAILED, KIND, LinkResults, PAGEFERRY, QEMU, Run, SCHEMA, ScenarioResults};
use super::scenario::{LEAST_WARM_UP, Scenario};
use crate::guests::{GuestImage, GuestSpec};
use crate::units::ByteCount;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// On which guests and links.
    pub scenarios: Vec<Scenario>,
    /// How often.
    pub pairs: u32,
    /// In which modes of this engine; none for those that make sense in a scenario.
    pub ours: Vec<Ours>,
    /// Against which modes of QEMU; none to leave it out.
    pub modes: Vec<Mode>,
    /// Guests of a size that proves nothing, one run of each.
    pub quick: bool,
    /// How long one migration may take.
    pub cap: Duration,
    /// How long the machine rests before each; none for what fits the guest.
    pub rest: Option<Duration>,
    /// Flags for our sender beside the defaults.
    pub flags: Vec<String>,
    /// The command line, for the results.
    pub command: String,
}

/// Measures. `say` is told what goes on, `done` gets what there is as soon as another scenario is measured.
///
/// # Errors
/// When something could not be measured; a bar that is missed is no error.
pub fn run(plan: &Plan, leftovers: &Leftovers, say: &mut dyn FnMut(&str), done: &mut dyn FnMut(&BenchResults)) -> Result<BenchResults> {
    let directory = leftovers.make_directory()?;
    let with_qemu = !plan.modes.is_empty();
    let mut results = BenchResults {
        schema: SCHEMA,
        kind: KIND.to_owned(),
        machine: host::machine(),
        versions: host::versions(with_qemu),
        command: plan.command.clone(),
        date: host::date(),
        pairs: plan.pairs,
        scenarios: Vec::new(),
    };
    for scenario in &plan.scenarios {
        let measured = Session { plan, scenario, leftovers, directory: &directory }.run(say).with_context(|| scenario.name.clone())?;
        results.scenarios.push(measured);
        done(&results);
    }
    Ok(results)
}

/// One scenario under way.
struct Session<'s> {
    plan: &'s Plan,
    scenario: &'s Scenario,
    leftovers: &'s Leftovers,
    directory: &'s Path,
}

/// One engine in one mode, and its runs so far.
struct Contender {
    mode: EngineMode,
    runs: Vec<Run>,
    /// Why there will be no more.
    gave_up: Option<String>,
}

/// An engine and how it is told to migrate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineMode {
    Ours(Ours),
    Qemu(Mode),
}

impl EngineMode {
    fn engine(self) -> &'static str {
        match self {
            Self::Ours(_) => PAGEFERRY,
            Self::Qemu(_) => QEMU,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ours(mode) => mode.name(),
            Self::Qemu(mode) => mode.name(),
        }
    }

    fn is_post_copy(self) -> bool {
        match self {
            Self::Ours(mode) => mode == Ours::PostCopy,
            Self::Qemu(mode) => mode.is_post_copy(),
        }
    }
}

impl Session<'_> {
    fn run(&self, say: &mut dyn FnMut(&str)) -> Result<ScenarioResults> {
        let Scenario { name, title, link, heavy, .. } = self.scenario;
        let guest = self.scenario.guest(self.plan.quick);
        let image = GuestImage::new(&guest)?;
        let network = Network::new(*link, self.leftovers)?;
        let measured = if link.is_none() { Some(network.measure()?) } else { None };
        let bits_per_s = link.map(|bits| bits as f64);
        let bytes_per_s = measured.or(bits_per_s.map(|bits| bits / 8.0)).context("a link without a rate")?;
        let floor = floor(&image, &guest, self.warm_up(), bytes_per_s);
        let job = self.job(&network, &guest, &image);
        let engines = self.contest(&job, say);
        Ok(ScenarioResults {
            name: name.clone(),
            title: title.clone(),
            guest: guest.to_string(),
            link: LinkResults { rate_bits_per_s: bits_per_s, measured_bytes_per_s: measured },
            floor,
            ratios: ratios(&engines),
            post_copy_ratios: post_copy_ratios(&engines),
            bars: if self.plan.quick { Vec::new() } else { bars(&engines, floor, *heavy) },
            engines,
        })
    }

    fn contest(&self, job: &Job<'_>, say: &mut dyn FnMut(&str)) -> Vec<EngineResults> {
        let modes = self.ours().into_iter().map(EngineMode::Ours).chain(self.plan.modes.iter().copied().map(EngineMode::Qemu));
        let mut contenders: Vec<_> = modes.map(|mode| Contender { mode, runs: Vec::new(), gave_up: None }).collect();
        if !self.plan.quick {
            // One of each engine is enough to have the machine's memory touched.
            for engine in [PAGEFERRY, QEMU] {
                let Some(contender) = contenders.iter().find(|contender| contender.mode.engine() == engine) else { continue };
                let how = self.migrate(job, contender.mode).map_or_else(|error| failure(&error), |ended| self.tell(&ended));
                say(&format!("{}: warm-up: {}: {how}", self.scenario.name, contender.name()));
            }
        }
        for pair in 1..=self.plan.pairs {
            for place in turns(pair as usize - 1, contenders.len()) {
                let contender = &mut contenders[place];
                if contender.gave_up.is_some() {
                    continue;
                }
                let how = match self.migrate(job, contender.mode) {
                    Ok(ended) => {
                        let how = self.tell(&ended);
                        match ended {
                            Ended::Completed(run) => contender.runs.push(run),
                            Ended::NotDone => contender.gave_up = Some(how.clone()),
                        }
                        how
                    }
                    Err(error) => contender.gave_up.insert(failure(&error)).clone(),
                };
                say(&format!("{}: {pair} of {}: {}: {how}", self.scenario.name, self.plan.pairs, contender.name()));
            }
        }
        contenders.into_iter().map(Contender::results).collect()
    }

    /// The modes of this engine.
    fn ours(&self) -> Vec<Ours> {
        if !self.plan.ours.is_empty() {
            return self.plan.ours.clone();
        }
        Ours::ALL.into_iter().filter(|mode| *mode != Ours::PostCopy || self.scenario.post_copy).collect()
    }

    fn tell(&self, ended: &Ended) -> String {
        match ended {
            Ended::Completed(run) => format!("{:.0} ms", run.figures.total_ms),
            Ended::NotDone => format!("not done after {} s", self.plan.cap.as_secs()),
        }
    }

    fn migrate(&self, job: &Job<'_>, mode: EngineMode) -> Result<Ended> {
        thread::sleep(self.rest(job.guest.memory()));
        let ballast = if self.waits_for_memory() { Some(Ballast::for_guest(job.image, job.guest.memory())?) } else { None };
        match mode {
            EngineMode::Ours(mode) => ours::run(job, mode, &self.plan.flags, ballast),
            EngineMode::Qemu(mode) => qemu::run(job, mode, self.directory, ballast),
        }
    }

    fn job<'j>(&'j self, network: &'j Network, guest: &'j GuestSpec, image: &'j GuestImage) -> Job<'j> {
        Job { network, guest, image, leftovers: self.leftovers, warm_up: self.warm_up(), cap: self.plan.cap }
    }

    /// How long the memory of the last run is given to be taken back, where the link decides how long a migration takes.
    fn rest(&self, memory: ByteCount) -> Duration {
        let fits = REST + REST_A_GIB.mul_f64(memory.0 as f64 / f64::from(1 << 30));
        self.plan.rest.unwrap_or(if self.plan.quick || self.waits_for_memory() { Duration::ZERO } else { fits })
    }

    /// Whether memory and processors decide how long a migration takes, and not the link.
    fn waits_for_memory(&self) -> bool {
        self.scenario.link.is_none()
    }

    fn warm_up(&self) -> Duration {
        if self.plan.quick { LEAST_WARM_UP } else { self.scenario.warm_up }
    }
}

impl Contender {
    fn name(&self) -> String {
        format!("{} {}", self.mode.engine(), self.mode.name())
    }

    fn results(self) -> EngineResults {
        EngineResults {
            engine: self.mode.engine().to_owned(),
            mode: self.mode.name().to_owned(),
            post_copy: self.mode.is_post_copy(),
            // Runs that completed before one that did not are no picture of the mode.
            median: if self.gave_up.is_some() { None } else { medians(&self.runs) },
            outcome: self.gave_up.unwrap_or_else(|| COMPLETED.to_owned()),
            runs: self.runs,
        }
    }
}

/// The order of `count` contenders in turn number `turn`. What a run leaves behind, freed memory above all, meets the next:
/// so with turns enough each comes in each place and after each other one equally often. That takes `count` turns, or twice
/// as many for an odd number, every other of them backwards (Latin squares balanced for neighbours: E. J. Williams,
/// Australian Journal of Scientific Research A2, 1949).
fn turns(turn: usize, count: usize) -> impl Iterator<Item = usize> {
    let backwards = count % 2 == 1 && turn % 2 == 1;
    let zigzag = move |place: usize| if place % 2 == 1 { place.div_ceil(2) } else { count - place / 2 };
    (0..count).map(move |place| (zigzag(if backwards { count - 1 - place } else { place }) + turn) % count)
}

/// What the results say of a run that went wrong.
fn failure(error: &anyhow::Error) -> String {
    format!("{FAILED}: {error:#}")
}

/// A kernel reports what has been free for two seconds (`page_reporting`), ...
const REST: Duration = Duration::from_secs(2);
/// ... a part of it at a time.
const REST_A_GIB: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn everyone_has_a_turn_in_each_place_and_follows_everyone() {
        for count in 1..8 {
            let (mut places, mut neighbours) = (BTreeMap::new(), BTreeMap::new());
            let squares = 1 + count % 2;
            for turn in 0..count * squares {
                let order: Vec<_> = turns(turn, count).collect();
                order.iter().copied().enumerate().for_each(|place| *places.entry(place).or_insert(0) += 1);
                order.windows(2).for_each(|pair| *neighbours.entry([pair[0], pair[1]]).or_insert(0) += 1);
            }
            assert!(places.len() == count * count && places.into_values().all(|times| times == squares), "{count}");
            assert!(neighbours.len() == count * (count - 1) && neighbours.into_values().all(|times| times == squares), "{count}");
        }
        assert_eq!(turns(0, 4).collect::<Vec<_>>(), [0, 1, 3, 2]);
    }
}
