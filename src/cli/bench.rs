//! `pageferry bench`: measures this engine, and QEMU beside it.

use std::path::PathBuf;
use std::time::Duration;

use super::exit::Exit;
use super::units::number_in;
use crate::units::BytesPerSec;
use crate::units::text::{parse_rate, parse_time};

/// What can be asked of the bench.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// Only these scenarios (--list has their names)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub scenario: Vec<String>,
    /// Instead of the scenarios this guest: kvm:key=value,...
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["scenario", "quick"])]
    pub guest: Option<String>,
    /// What that guest's link moves in each direction [default: all that the processors do]
    #[arg(long, value_name = "RATE", value_parser = parse_rate, requires = "guest")]
    pub link: Option<BytesPerSec>,
    /// How long that guest runs before it is moved
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time, requires = "guest")]
    pub warm_up: Duration,
    /// Runs of each engine and mode
    #[arg(long, value_name = "N", default_value = "5", value_parser = number_in::<u32>(1..=1000))]
    pub pairs: u32,
    /// Run the same guests through QEMU as well, in every mode that makes sense
    #[arg(long)]
    pub qemu: bool,
    /// Only these modes of this engine: default, post-copy [default: those that make sense in a scenario]
    #[arg(long, value_name = "MODE", value_delimiter = ',')]
    pub ours: Vec<String>,
    /// Only these modes of QEMU: pre-copy, multifd, multifd-zstd, xbzrle, post-copy
    #[arg(long, value_name = "MODE", value_delimiter = ',', requires = "qemu")]
    pub modes: Vec<String>,
    /// Where the results go as JSON, after each scenario what there is by then; `-` is standard output, at the end and without a table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Give up on a migration that takes longer than this
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = parse_time)]
    pub cap: Duration,
    /// How long the machine rests before each run, so that its own host can take back the memory of the last [default: on a
    /// shaped link 2s and half a second for each GiB of the guest]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub rest: Option<Duration>,
    /// A flag for our sender beside its defaults, such as --with=--channels=4; may be repeated
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub with: Vec<String>,
    /// Say what the scenarios are, and end
    #[arg(long)]
    pub list: bool,
    /// Small guests, one run of each: shows that everything works, and nothing else
    #[arg(long)]
    pub quick: bool,
}

/// Measures, and prints a table.
///
/// # Errors
/// When something is missing or could not be measured. A bar that is missed is a result.
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub fn run(args: &BenchArgs) -> anyhow::Result<Exit> {
    measuring::run(args)
}

/// Says that there is no bench in this build.
///
/// # Errors
/// Never.
#[cfg(not(all(feature = "kvm", target_arch = "x86_64")))]
pub fn run(_args: &BenchArgs) -> anyhow::Result<Exit> {
    eprintln!("bench: needs KVM guests; this program was built without the feature `kvm`");
    Ok(Exit::Usage)
}

#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod measuring {
    use std::fs::File;
    use std::io::{self, Seek, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use anyhow::{Context, bail};

    use super::{BenchArgs, Exit};
    use crate::bench::results::{BenchResults, FAILED};
    use crate::bench::{self, Leftovers, Mode, Ours, Plan, Scenario};
    use crate::cli::args::Output;
    use crate::cli::output::create;
    use crate::cli::signals;
    use crate::guests::SpecError;

    pub(super) fn run(args: &BenchArgs) -> anyhow::Result<Exit> {
        if args.list {
            list()?;
            return Ok(Exit::Completed);
        }
        let (scenarios, ours, modes) = match choices(args) {
            Ok(choices) => choices,
            Err(problem) => {
                eprintln!("{problem}");
                return Ok(Exit::Usage);
            }
        };
        let missing = bench::missing(args.qemu);
        if !missing.is_empty() {
            bail!("the bench needs {}", missing.join("\nand "));
        }
        // Made before the first run: hours later would be too late to find out.
        let file = match output(args) {
            Some(Output::File(path)) => Some(create("--json", &path)?),
            _ => None,
        };
        let leftovers = Leftovers::default();
        let interrupted = end_at_interrupt(&leftovers)?;
        let plan = Plan {
            scenarios,
            pairs: if args.quick { 1 } else { args.pairs },
            ours,
            modes,
            quick: args.quick,
            cap: args.cap,
            rest: args.rest,
            flags: args.with.clone(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
        };
        let table = output(args) != Some(Output::Stdout);
        let mut done = |results: &BenchResults| {
            if table && let Some(scenario) = results.scenarios.last() {
                // The rest is still worth running for the file.
                let _ = writeln!(io::stdout(), "\n{}", bench::block(scenario));
            }
            if let Some(file) = file.as_ref().filter(|file| is_regular(file)) {
                // In case there will be no end; a file that cannot be written is told there.
                let _ = save(file, results);
            }
        };
        let result = bench::run(&plan, &leftovers, &mut |line| eprintln!("{line}"), &mut done);
        while interrupted.load(Ordering::SeqCst) {
            // What went wrong is the interrupt's doing. The process ends as soon as everything is removed.
            std::thread::park();
        }
        leftovers.remove();
        let results = result?;
        let shown = if table {
            write!(io::stdout(), "{}", bench::summary(&results))
        } else {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&results)?)
        };
        if let Some(file) = &file {
            save(file, &results).context("the results could not be written")?;
        }
        shown?;
        let failed = results.scenarios.iter().flat_map(|scenario| &scenario.engines).any(|engine| engine.outcome.starts_with(FAILED));
        Ok(if failed { Exit::Failed } else { Exit::Completed })
    }

    /// Has an interrupt remove everything and end the process; what is true once that has begun.
    fn end_at_interrupt(leftovers: &Leftovers) -> anyhow::Result<Arc<AtomicBool>> {
        let (theirs, interrupted) = (leftovers.clone(), Arc::new(AtomicBool::new(false)));
        let tell = Arc::clone(&interrupted);
        signals::on_interrupt(move || {
            // Before anything is removed that is missed by the run.
            tell.store(true, Ordering::SeqCst);
            theirs.remove();
            eprintln!("interrupted");
            std::process::exit(130);
        })
        .context("cannot watch for signals")?;
        Ok(interrupted)
    }

    /// Where the results go.
    fn output(args: &BenchArgs) -> Option<Output> {
        args.json.clone().map(Output::from)
    }

    fn list() -> io::Result<()> {
        let mut out = io::stdout();
        Scenario::all().iter().try_for_each(|scenario| writeln!(out, "{:<16}  {}", scenario.name, scenario.title))
    }

    /// What is run: scenarios, modes of this engine, modes of QEMU.
    type Choices = (Vec<Scenario>, Vec<Ours>, Vec<Mode>);

    fn choices(args: &BenchArgs) -> Result<Choices, String> {
        Ok((scenarios(args)?, ours(args)?, modes(args)?))
    }

    fn ours(args: &BenchArgs) -> Result<Vec<Ours>, String> {
        let named = |name: &String| Ours::named(name).ok_or_else(|| format!("--ours {name}: there are {}", Ours::ALL.map(Ours::name).join(", ")));
        args.ours.iter().map(named).collect()
    }

    fn scenarios(args: &BenchArgs) -> Result<Vec<Scenario>, String> {
        if let Some(text) = &args.guest {
            let own = |spec| Scenario::own(spec, args.link, args.warm_up);
            let scenario = text.parse().map_err(|error: SpecError| error.to_string()).and_then(own);
            return Ok(vec![scenario.map_err(|problem| format!("--guest {text}: {problem}"))?]);
        }
        Scenario::with_names(&args.scenario).map_err(|name| {
            let names: Vec<_> = Scenario::all().into_iter().map(|scenario| scenario.name).collect();
            format!("--scenario {name}: there are {}", names.join(", "))
        })
    }

    fn modes(args: &BenchArgs) -> Result<Vec<Mode>, String> {
        if !args.qemu {
            return Ok(Vec::new());
        }
        if args.modes.is_empty() {
            return Ok(Mode::ALL.to_vec());
        }
        let named = |name: &String| Mode::named(name).ok_or_else(|| format!("--modes {name}: there are {}", Mode::ALL.map(Mode::name).join(", ")));
        args.modes.iter().map(named).collect()
    }

    /// Puts the results in the place of those before; where there is no place, as in a pipe, behind them.
    fn save(mut file: &File, results: &BenchResults) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(results)? + "\n";
        if is_regular(file) {
            file.rewind()?;
        }
        file.write_all(json.as_bytes())?;
        // What there was before was shorter, unless it was another's: nothing is lost where the disk is full.
        if is_regular(file) {
            file.set_len(json.len() as u64)?;
        }
        Ok(())
    }

    fn is_regular(file: &File) -> bool {
        file.metadata().is_ok_and(|metadata| metadata.is_file())
    }
}
