//! Everything fails, at every phase, on each side: is there always one owner of the guest, and its memory right?
//!
//! ```text
//! tests/run faults [--count N] [--seed S] [--jobs J]      # 200 seeds from S on, 8 at a time
//! tests/run faults --only S                               # that one
//! tests/run faults --fault WORDS                          # of the seeds from S on, those with this in their fault's name
//! tests/run faults --quick                                # each fault once or twice, in a minute or so
//! tests/run faults ... --results FILE; tests/run faults --results FILE --table TABLE.md
//! ```
//! A seed decides about a whole migration between real processes (`case.rs`): pre-copy, hybrid, post-copy or what the engine
//! decides, of which guest, over how many connections, with TLS or not; a phase of it; and a fault that happens then.
//! - Of the network (`../network`): all connections or one of them are reset or end, fall silent both ways or one way for
//!   less or more than a peer is waited for, are slow to arrive or trickle, a bit flips, new connections overtake old ones,
//!   the network is down for a while or for good.
//! - Of a process and its host (`confines.rs`), on each side: `kill -9`, SIGSTOP for less or more than a peer is waited for,
//!   SIGTERM or SIGINT, once and twice (see the README for what each end then does), memory that runs out, a disk without room for `--dump` or `--json`, a wall clock that jumps.
//!
//! Afterwards each side says, by its exit code, its report and its words, who has the guest (`judge.rs`). Passed means that
//! the two fit: it runs at the destination, whole, or at the source, checked there by the process that has it; or the
//! sender says that this is in doubt; or it is kept for a source that has not come back; or the process that had it was
//! killed, or told a second time to end. One that is told to end while the guest cannot have gone yet must keep it from going;
//! once it has gone, one signal must not lose it, and a receiver that ends in order ends with 0. Faults that last no longer than what a peer is waited for, and whatever can be recovered from in post-copy, must
//! not keep the guest from arriving. A fault that was there and came to nothing (memory that sufficed) is told from one that
//! struck, and proves nothing. Everything is bounded: whatever takes a minute hangs, and that is a failure.
//!
//! A run is repeated from its seed; what depends on the scheduler is not, of course. `TABLE.md` is what came of the last
//! great run. Seeds that once failed (`seeds.rs`) come first each time.
#[path = "../certificates/mod.rs"]
mod certificates;
#[path = "../network/mod.rs"]
#[expect(dead_code, reason = "the other test of a failing network uses the rest")]
mod network;
#[path = "../processes/mod.rs"]
#[expect(dead_code, reason = "the tests of the programs use the rest")]
mod processes;

mod case;
mod confines;
mod course;
mod judge;
mod seeds;
mod standstill;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use case::{Case, FAULTS, MEMORY_MIB};
use processes::huge_pages::{self, HugePages};
use processes::tally::{Tally, Verdict, clean_up_at_interrupt, number};
use seeds::ONCE_FAILED;
use table::Results;

fn main() -> ExitCode {
    clean_up_at_interrupt(huge_pages::give_back).expect("signals can be watched");
    let mut tally = Tally::default();
    if std::env::args().len() == 1 {
        tally.case("all of it", || Ok(Verdict::Skipped("it takes a minute or more: tests/run faults".into())));
        return tally.finish();
    }
    if let (Some(results), Some(table)) = (text("--results"), text("--table")) {
        tally.case("the table", || {
            std::fs::write(&table, table::table(Path::new(&results))?).context(table)?;
            Ok(Verdict::Passed(String::new()))
        });
        return tally.finish();
    }
    let quick = !std::env::args().any(|argument| argument == "--full");
    let count = number("--count").unwrap_or(if quick { 2 * FAULTS.len() as u64 } else { 200 });
    let seed = number("--seed").unwrap_or_else(|| u64::from(std::process::id()));
    if let Some(words) = text("--fault").filter(|words| !FAULTS.iter().any(|fault| table::words(&format!("{fault:?}")).contains(words))) {
        println!("FAILED   no fault is called {words:?}");
        return ExitCode::FAILURE;
    }
    let mut seeds: Vec<u64> = match number("--only") {
        Some(only) => vec![only],
        None => match text("--fault") {
            Some(words) => (seed..)
                .filter(|&seed| table::words(&format!("{:?}", Case::new(seed).fault)).contains(&words))
                .take(usize::try_from(count).expect("a few"))
                .collect(),
            None => ONCE_FAILED.iter().map(|&(seed, _)| seed).chain((0..count).map(|index| seed.wrapping_add(index))).collect(),
        },
    };
    println!("{} seeds, --seed {seed}", seeds.len());
    for (seed, means) in ONCE_FAILED {
        tally.case("a seed that once failed still means the same", || {
            let name = Case::new(seed).name();
            ensure!(name == means, "{seed} means {name}, not {means}");
            Ok(Verdict::Passed(String::new()))
        });
    }
    seeds.reverse();
    let jobs = number("--jobs").unwrap_or(8);
    run(seeds, jobs, tally).unwrap_or_else(|error| {
        println!("FAILED   {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs them, some at a time, the last first.
fn run(seeds: Vec<u64>, jobs: u64, tally: Tally) -> Result<ExitCode> {
    let results = Mutex::new(Results::open(text("--results").as_deref())?);
    let (tally, seeds) = (Mutex::new(tally), Mutex::new(seeds));
    let keys = certificates::good();
    // 2 MiB each, on two sides.
    let huge_pages = HugePages::reserve(jobs * MEMORY_MIB);
    let attempt = |seed| match &huge_pages {
        Err(error) if Case::new(seed).has_huge_pages() => Ok(Err(Verdict::Skipped(format!("{error:#}")))),
        _ => course::run(seed, keys.path()),
    };
    standstill::watch();
    let work = || {
        while let Some(seed) = { seeds.lock().expect("nobody panics with it").pop() } {
            let began = std::time::Instant::now();
            let result = attempt(seed).and_then(|outcome| match outcome {
                Ok(outcome) => {
                    results.lock().expect("nobody panics with it").add(seed, outcome)?;
                    Ok(Verdict::Passed(format!("-> {outcome}; {:.1} s", began.elapsed().as_secs_f64())))
                }
                Err(skipped) => Ok(skipped),
            });
            tally.lock().expect("nobody panics with it").case(&format!("--only {seed} {}", Case::new(seed).name()), || result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    Ok(tally.into_inner().expect("nobody panics with it").finish())
}

/// What follows a flag, if it was given.
fn text(flag: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != flag).nth(1)
}
