//! Medians, ratios, and the figures that were to be reached.
//!
//! | what | at most |
//! |---|---|
//! | total | 0.5 of QEMU's best mode, or 1.1 of the floor where that is more |
//! | the guest's longest gap | 0.5 of QEMU's best pre-copy mode |
//! | bytes on the wire | 1.0 of QEMU's best pre-copy mode |
//! | a guest that QEMU's pre-copy cannot finish | 1.3 of the floor, and a gap of 150 ms |

use super::results::{Bar, EngineResults, Figures, Floor, PAGEFERRY, PostCopyRatios, QEMU, Ratios, Run};

/// Figure by figure; `None` of no runs.
pub(super) fn medians(runs: &[Run]) -> Option<Figures> {
    let all = |figure: fn(&Figures) -> f64| median(runs.iter().map(|run| figure(&run.figures)).collect());
    let known = |figure: fn(&Figures) -> Option<f64>| median(runs.iter().filter_map(|run| figure(&run.figures)).collect());
    let bytes = |figure: fn(&Figures) -> u64| middle(runs.iter().map(|run| figure(&run.figures)).collect());
    Some(Figures {
        total_ms: all(|run| run.total_ms)?,
        downtime_ms: all(|run| run.downtime_ms)?,
        guest_gap_ms: known(|run| run.guest_gap_ms),
        machine_stopped_ms: known(|run| run.machine_stopped_ms),
        wire_bytes: bytes(|run| run.wire_bytes)?,
        engine_bytes: bytes(|run| run.engine_bytes)?,
        cpu_source_s: all(|run| run.cpu_source_s)?,
        cpu_destination_s: all(|run| run.cpu_destination_s)?,
        guest_writes_per_s: known(|run| run.guest_writes_per_s),
        guest_writes_before_per_s: known(|run| run.guest_writes_before_per_s),
        guest_writes_after_per_s: known(|run| run.guest_writes_after_per_s),
        fault_p50_us: known(|run| run.fault_p50_us),
        fault_p99_us: known(|run| run.fault_p99_us),
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

fn middle(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(u64::midpoint(*low, *high))
}

/// QEMU's best at one figure, among the modes that completed.
struct Best<'e> {
    engines: &'e [EngineResults],
}

/// Which modes of QEMU are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Among {
    All,
    PreCopy,
}

impl Best<'_> {
    fn of(&self, among: Among, figure: impl Fn(&Figures) -> Option<f64>) -> Option<(f64, &str)> {
        let modes = self.engines.iter().filter(|engine| engine.engine == QEMU && (among == Among::All || !engine.post_copy));
        let values = modes.filter_map(|engine| Some((figure(engine.median.as_ref()?)?, engine.mode.as_str())));
        values.min_by(|(one, _), (other, _)| one.total_cmp(other))
    }
}

fn cpu_s(figures: &Figures) -> f64 {
    figures.cpu_source_s + figures.cpu_destination_s
}

/// This engine's medians, as it comes.
fn ours(engines: &[EngineResults]) -> Option<&Figures> {
    engines.iter().find(|engine| engine.engine == PAGEFERRY && !engine.post_copy)?.median.as_ref()
}

/// This engine over QEMU where both let the guest run before its memory is there; `None` unless both did.
pub(super) fn post_copy_ratios(engines: &[EngineResults]) -> Option<PostCopyRatios> {
    let post_copy = |name: &str| engines.iter().find(|engine| engine.engine == name && engine.post_copy);
    let (mine, theirs) = (post_copy(PAGEFERRY)?.median.as_ref(), post_copy(QEMU)?.median.as_ref());
    let ratio = |figure: &dyn Fn(&Figures) -> Option<f64>| {
        let (mine, theirs) = (figure(mine?)?, figure(theirs?)?);
        (theirs > 0.0).then(|| mine / theirs)
    };
    Some(PostCopyRatios {
        total: ratio(&|run| Some(run.total_ms)),
        downtime: ratio(&|run| Some(run.downtime_ms)),
        guest_gap: ratio(&|run| run.guest_gap_ms),
        wire_bytes: ratio(&|run| Some(run.wire_bytes as f64)),
        cpu: ratio(&|run| Some(cpu_s(run))),
        guest_writes_after: ratio(&|run| run.guest_writes_after_per_s),
    })
}

/// This engine over QEMU's best; `None` when QEMU was not run.
pub(super) fn ratios(engines: &[EngineResults]) -> Option<Ratios> {
    engines.iter().find(|engine| engine.engine == QEMU)?;
    let best = Best { engines };
    let ratio = |among, figure: &dyn Fn(&Figures) -> Option<f64>| {
        let (mine, (theirs, _)) = (figure(ours(engines)?)?, best.of(among, figure)?);
        (theirs > 0.0).then(|| mine / theirs)
    };
    Some(Ratios {
        total: ratio(Among::All, &|run| Some(run.total_ms)),
        downtime: ratio(Among::PreCopy, &|run| Some(run.downtime_ms)),
        guest_gap: ratio(Among::PreCopy, &|run| run.guest_gap_ms),
        wire_bytes: ratio(Among::PreCopy, &|run| Some(run.wire_bytes as f64)),
        cpu: ratio(Among::All, &|run| Some(cpu_s(run))),
    })
}

/// What was to be reached. Without QEMU only what does not depend on it.
pub(super) fn bars(engines: &[EngineResults], floor: Floor, heavy: bool) -> Vec<Bar> {
    let best = Best { engines };
    let ours = ours(engines);
    let total = ours.map(|run| run.total_ms);
    let gap = ours.and_then(|run| run.guest_gap_ms);
    let mut bars = Vec::new();
    if engines.iter().any(|engine| engine.engine == QEMU) {
        let over_floor = TOTAL_OVER_FLOOR * floor.total_ms;
        bars.push(match best.of(Among::All, |run| Some(run.total_ms)) {
            Some((theirs, mode)) if TOTAL_OVER_QEMU * theirs > over_floor => {
                bar("total", "ms", format!("{TOTAL_OVER_QEMU} of {mode}"), TOTAL_OVER_QEMU * theirs, total)
            }
            _ => bar("total", "ms", format!("{TOTAL_OVER_FLOOR} of the floor"), over_floor, total),
        });
        if let Some((theirs, mode)) = best.of(Among::PreCopy, |run| run.guest_gap_ms) {
            bars.push(bar("guest_gap", "ms", format!("{GAP_OVER_QEMU} of {mode}"), GAP_OVER_QEMU * theirs, gap));
        }
        if let Some((theirs, mode)) = best.of(Among::PreCopy, |run| Some(run.wire_bytes as f64)) {
            let mine = ours.map(|run| run.wire_bytes as f64);
            bars.push(bar("wire_bytes", "bytes", format!("{WIRE_OVER_QEMU} of {mode}"), WIRE_OVER_QEMU * theirs, mine));
        }
    }
    if heavy {
        bars.push(bar("total", "ms", format!("{HEAVY_OVER_FLOOR} of the floor"), HEAVY_OVER_FLOOR * floor.total_ms, total));
        bars.push(bar("guest_gap", "ms", "for a guest QEMU cannot finish".to_owned(), HEAVY_GAP_MS, gap));
    }
    bars
}

fn bar(what: &str, unit: &str, rule: String, limit: f64, value: Option<f64>) -> Bar {
    Bar { what: what.to_owned(), unit: unit.to_owned(), rule, limit, value, met: value.is_some_and(|value| value <= limit) }
}

const TOTAL_OVER_QEMU: f64 = 0.5;
const TOTAL_OVER_FLOOR: f64 = 1.1;
const GAP_OVER_QEMU: f64 = 0.5;
const WIRE_OVER_QEMU: f64 = 1.0;
const HEAVY_OVER_FLOOR: f64 = 1.3;
const HEAVY_GAP_MS: f64 = 150.0;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::results::COMPLETED;

    pub(in crate::bench) fn figures(total_ms: f64, gap_ms: f64, wire_bytes: u64) -> Figures {
        Figures {
            total_ms,
            downtime_ms: gap_ms / 2.0,
            guest_gap_ms: Some(gap_ms),
            machine_stopped_ms: None,
            wire_bytes,
            engine_bytes: wire_bytes,
            cpu_source_s: total_ms / 2000.0,
            cpu_destination_s: total_ms / 2000.0,
            guest_writes_per_s: Some(9_000.0),
            guest_writes_before_per_s: Some(10_000.0),
            guest_writes_after_per_s: None,
            fault_p50_us: None,
            fault_p99_us: None,
        }
    }

    pub(in crate::bench) fn engine(engine: &str, mode: &str, figures: Option<Figures>) -> EngineResults {
        let runs: Vec<_> = figures.into_iter().map(|figures| Run { figures, report: None, received: None }).collect();
        let outcome = if runs.is_empty() { "not done after 40 s" } else { COMPLETED };
        EngineResults {
            engine: engine.into(),
            mode: mode.into(),
            post_copy: mode == "post-copy",
            outcome: outcome.into(),
            median: medians(&runs),
            runs,
        }
    }

    pub(in crate::bench) const FLOOR: Floor = Floor { bytes: 100, total_ms: 400.0 };

    pub(in crate::bench) fn engines() -> Vec<EngineResults> {
        vec![
            engine(PAGEFERRY, "default", Some(figures(600.0, 20.0, 150))),
            engine(QEMU, "pre-copy", Some(figures(2000.0, 50.0, 300))),
            engine(QEMU, "multifd-zstd", Some(figures(1000.0, 100.0, 160))),
            engine(QEMU, "xbzrle", None),
            engine(QEMU, "post-copy", Some(figures(800.0, 5.0, 120))),
        ]
    }

    #[test]
    fn medians_are_of_each_figure_by_itself() {
        let run = |total, gap| Run { figures: figures(total, gap, 7), report: None, received: None };
        let found = medians(&[run(3.0, 10.0), run(1.0, 30.0), run(2.0, 20.0)]).unwrap();
        assert_eq!((found.total_ms, found.guest_gap_ms, found.wire_bytes), (2.0, Some(20.0), 7));
        assert_eq!(medians(&[run(3.0, 10.0), run(1.0, 30.0)]).unwrap().total_ms, 2.0);
        assert_eq!(medians(&[]), None);
        let mut unknown = run(1.0, 1.0);
        unknown.figures.guest_gap_ms = None;
        assert_eq!(medians(&[unknown.clone(), run(3.0, 8.0)]).unwrap().guest_gap_ms, Some(8.0));
        assert_eq!(medians(&[unknown]).unwrap().guest_gap_ms, None);
    }

    #[test]
    fn ratios_are_over_the_best_mode_and_post_copy_is_no_measure_of_downtime() {
        let found = ratios(&engines()).unwrap();
        assert_eq!(found.total, Some(600.0 / 800.0), "over post-copy");
        assert_eq!(found.guest_gap, Some(20.0 / 50.0), "over pre-copy");
        assert_eq!(found.downtime, Some(20.0 / 50.0));
        assert_eq!(found.wire_bytes, Some(150.0 / 160.0), "over multifd-zstd");
        assert_eq!(ratios(&engines()[..1]), None, "QEMU was not run");
        let lost = [engine(PAGEFERRY, "default", None), engine(QEMU, "pre-copy", Some(figures(1.0, 1.0, 1)))];
        assert_eq!(ratios(&lost), Some(Ratios::default()));
    }

    #[test]
    fn post_copy_is_compared_with_post_copy() {
        let with_writes = |figures: Figures, writes| Figures { guest_writes_after_per_s: Some(writes), ..figures };
        let mut engines = engines();
        let before = ratios(&engines);
        assert_eq!(post_copy_ratios(&engines), None, "this engine was not run in it");
        engines.insert(1, engine(PAGEFERRY, "post-copy", Some(with_writes(figures(400.0, 4.0, 60), 8000.0))));
        assert_eq!(ratios(&engines), before, "pre-copy is not measured by it");
        engines.truncate(5);
        engines.push(engine(QEMU, "post-copy", Some(with_writes(figures(800.0, 5.0, 120), 2000.0))));
        let found = post_copy_ratios(&engines).unwrap();
        assert_eq!((found.total, found.guest_gap, found.wire_bytes), (Some(0.5), Some(0.8), Some(0.5)));
        assert_eq!((found.downtime, found.cpu, found.guest_writes_after), (Some(0.8), Some(0.5), Some(4.0)));
        engines[5] = engine(QEMU, "post-copy", None);
        assert_eq!(post_copy_ratios(&engines), Some(PostCopyRatios::default()));
    }

    #[test]
    fn bars_are_the_greater_of_half_of_qemu_and_the_floor() {
        let found = bars(&engines(), FLOOR, false);
        let seen: Vec<_> = found.iter().map(|bar| (bar.what.as_str(), bar.limit, bar.met)).collect();
        assert_eq!(seen, [("total", 1.1 * 400.0, false), ("guest_gap", 25.0, true), ("wire_bytes", 160.0, true)]);
        let low = Floor { bytes: 1, total_ms: 10.0 };
        assert_eq!(bars(&engines(), low, false)[0].limit, 400.0);
        assert_eq!(bars(&engines()[..1], FLOOR, false), [], "nothing to hold it against");
    }

    #[test]
    fn a_guest_that_qemu_cannot_finish_has_bars_of_its_own() {
        let alone = bars(&engines()[..1], FLOOR, true);
        let seen: Vec<_> = alone.iter().map(|bar| (bar.what.as_str(), bar.limit, bar.met)).collect();
        assert_eq!(seen, [("total", 1.3 * 400.0, false), ("guest_gap", 150.0, true)]);
        let none = [engine(PAGEFERRY, "default", None), engine(QEMU, "pre-copy", None)];
        let seen: Vec<_> = bars(&none, FLOOR, true).into_iter().map(|bar| (bar.value, bar.met)).collect();
        assert_eq!(seen, [(None, false); 3]);
    }
}
