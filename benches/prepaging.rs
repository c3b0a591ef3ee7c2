//! What prepaging is worth: faults that the guest waits for, and the time it loses.
//!
//! ```text
//! cargo bench --bench prepaging
//! ```
//! In virtual time, so the table is the same on every machine; see the simulation for what is assumed. Where all that is
//! missing is in use and the guest faster than the link (marked *), it waits for the link, and no order helps much.

#[path = "../tests/prepaging/simulation.rs"]
mod simulation;

use pageferry::source::Prepaging;
use simulation::{Outcome, PATTERNS, SCENARIOS, run};

fn main() {
    println!("{:<44} {:>9} {:>10} {:>8} {:>10} {:>10}", "", "order", "faults", "", "lost ms", "total ms");
    for scenario in &SCENARIOS {
        for pattern in PATTERNS {
            let all = [Prepaging::Demand, Prepaging::Push, Prepaging::OnePivot, Prepaging::Pivots]
                .map(|prepaging| (prepaging, run(scenario, pattern, prepaging)));
            let push = all[1].1.faults as f64;
            let mark = if scenario.is_starved() { "*" } else { "" };
            let mut title = format!("{}, {pattern:?}{mark}", scenario.name);
            for (prepaging, Outcome { faults, lost, finished }) in all {
                let share = format!("{:+.0} %", (faults as f64 / push - 1.0) * 100.0);
                let total = finished.map_or("never".to_owned(), |at| format!("{:.0}", at as f64 / 1e6));
                println!("{title:<44} {:>9} {faults:>10} {share:>8} {:>10.1} {total:>10}", format!("{prepaging:?}"), lost as f64 / 1e6);
                title.clear();
            }
        }
    }
}
