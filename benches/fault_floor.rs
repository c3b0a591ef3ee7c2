//! How long a guest in post-copy waits for a page while all the others are pushed at full rate, beside the floor: a bare
//! userfaultfd handler that fetches 4 KiB over one TCP connection on the same link, with nothing else going on.
//!
//! ```text
//! cargo bench --bench fault_floor         # needs root, ip and tc
//! ```
//! Two network namespaces with a veth between them stand for two hosts. Floor and engine take turns, a process at each
//! end; the medians of all pairs count. Both are timed alike, from when the fault was read until the page was in place;
//! of the floor the wait as the faulting thread sees it is shown as well. A bar that is missed is said, and is no failure:
//! figures of a busy machine mean little.
//!
//! Environment: `PAIRS` (5), `ONLY` (rows whose name contains it). `-- --test` does one pair with small guests.
#![expect(unsafe_code, reason = "calls userfaultfd itself to compare with")]

#[path = "../tests/links/network.rs"]
#[expect(dead_code, reason = "the tests of links use the rest")]
mod network;
#[path = "../tests/processes/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod processes;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use network::{DESTINATION, End, Network};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pageferry::memory::{Backing, GuestMemory, MemoryLayout};
use pageferry::units::{PAGE_SIZE, PageCount, PageIndex};
use processes::{Listening, MOMENT, Process, SEND};
use userfaultfd::{Event, FeatureFlags, RegisterMode, UffdBuilder};

/// What is measured, and what it is held against.
struct Row {
    name: &'static str,
    /// As `tc` takes it.
    link: Option<&'static str>,
    kind: &'static str,
    bar: Bar,
}

/// What p50 and p99 may be at most.
#[derive(Clone, Copy)]
enum Bar {
    /// So many times the floor's.
    Floors([f64; 2]),
    /// So many microseconds.
    Micros([f64; 2]),
}

const ROWS: [Row; 4] = [
    Row { name: "unshaped, vCPU", link: None, kind: "kvm", bar: Bar::Floors([3.0, 10.0]) },
    Row { name: "unshaped, thread", link: None, kind: "workload", bar: Bar::Floors([3.0, 10.0]) },
    Row { name: "1 Gbit/s, vCPU", link: Some("1gbit"), kind: "kvm", bar: Bar::Micros([1e3, 5e3]) },
    Row { name: "1 Gbit/s, thread", link: Some("1gbit"), kind: "workload", bar: Bar::Micros([1e3, 5e3]) },
];

/// Microseconds: half of the faults take no longer, all but a hundredth.
type Times = [f64; 2];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve(),
        ["fetch", address, faults] => fetch(address, faults.parse()?),
        _ => compare(arguments.iter().any(|argument| argument == "--test")),
    }
}

// --- the comparison ---

fn compare(quick: bool) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, for network namespaces");
        return Ok(());
    }
    if let Err(why) = processes::userfaultfd() {
        println!("skipped: {why}");
        return Ok(());
    }
    let only = std::env::var("ONLY").unwrap_or_default();
    let pairs = if quick { 1 } else { std::env::var("PAIRS").map_or(Ok(5), |pairs| pairs.parse::<usize>()).context("PAIRS")? };
    println!("microseconds, p50 and p99; medians of {pairs} pairs");
    for row in ROWS.iter().filter(|row| row.name.contains(&only)) {
        if row.kind == "kvm"
            && let Err(why) = processes::kvm()
        {
            println!("{}: skipped: {why}", row.name);
            continue;
        }
        let network = Network::new(row.link)?;
        let (mut floors, mut seen, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..pairs {
            let [handler, thread] = floor(&network, if quick { 200 } else { 20_000 })?;
            floors.push(handler);
            seen.push(thread);
            ours.push(engine(&network, row.kind, quick)?);
        }
        tell(row, &floors, &seen, &ours);
    }
    Ok(())
}

fn tell(row: &Row, floors: &[Times], seen: &[Times], ours: &[Times]) {
    let [floor, seen, our] = [floors, seen, ours].map(medians);
    let ratio = [our[0] / floor[0], our[1] / floor[1]];
    let (limits, held) = match row.bar {
        Bar::Floors(limits) => (limits, ratio),
        Bar::Micros(limits) => (limits, our),
    };
    let verdict = if held[0] <= limits[0] && held[1] <= limits[1] { "bar met" } else { "over the bar" };
    let unit = if matches!(row.bar, Bar::Floors(_)) { "times the floor" } else { "us" };
    let pair = |[p50, p99]: Times| format!("{p50:.0} and {p99:.0}");
    println!(
        "{:<18} floor {} (its thread {}), ours {}: ratio {:.1} and {:.1} ({verdict}: {} and {} {unit})",
        row.name,
        pair(floor),
        pair(seen),
        pair(our),
        ratio[0],
        ratio[1],
        limits[0],
        limits[1],
    );
    let each = |times: &[Times]| times.iter().map(|&times| pair(times)).collect::<Vec<_>>().join("; ");
    println!("  each: {} against {}", each(ours), each(floors));
}

fn medians(times: &[Times]) -> Times {
    [0, 1].map(|which| {
        let mut times: Vec<f64> = times.iter().map(|times| times[which]).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

/// The floor's times, as its handler and as the faulting thread sees them.
fn floor(network: &Network, faults: u32) -> Result<[Times; 2]> {
    let program = std::env::current_exe()?;
    let program = program.to_str().context("this program lies where no text leads")?;
    let mut server = Process::start(network.command(End::Source, program, "serve"))?;
    let address = server.stdout.next_with("192.", MOMENT)?;
    let fetched = Process::start(network.command(End::Destination, program, &format!("fetch {address} {faults}")))?.wait(MOMENT)?.expect(0)?;
    let times: Vec<f64> = fetched.stdout.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [handler_p50, handler_p99, thread_p50, thread_p99] = times[..] else { anyhow::bail!("not four times: {}", fetched.stdout) };
    Ok([[handler_p50, handler_p99], [thread_p50, thread_p99]])
}

/// The engine's times, with a guest that touches random pages while all of them are pushed.
fn engine(network: &Network, kind: &str, quick: bool) -> Result<Times> {
    let fill = if quick { "100MiB" } else { "1000MiB" };
    let memory = if quick { "128MiB" } else { "1GiB" };
    let guest = format!("{kind}:memory={memory},fill={fill},random-every=1,working-set={fill},rate=20000,pattern=random");
    let flags = format!("--listen {DESTINATION}:0 --insecure --max-sessions 1 --json -");
    let mut receiver = Listening::start_as(network.command(End::Destination, processes::RECEIVE, &flags))?;
    let flags = format!("--to {} --insecure --guest {guest} --warm-up 300ms --post-copy 0 --json -", receiver.address);
    Process::start(network.command(End::Source, SEND, &flags))?.wait(Duration::from_secs(60))?.expect(0)?;
    let report = receiver.next_report(MOMENT)?;
    ensure!(report.guest_check.as_deref() == Some("ok"), "the guest that arrived: {:?}", report.guest_check);
    let post_copy = report.post_copy.context("the guest was moved, but not in post-copy")?;
    let times = post_copy.fault_us.context("no times of faults")?;
    Ok([times.p50 as f64, times.p99 as f64])
}

// --- the floor ---

/// Answers each page number with a page, on one connection.
fn serve() -> Result<()> {
    let listener = TcpListener::bind("192.0.2.1:0")?;
    println!("{}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let (mut number, page) = ([0; 8], [0xa5; PAGE_SIZE]);
    while stream.read_exact(&mut number).is_ok() {
        stream.write_all(&page)?;
    }
    Ok(())
}

/// Touches so many missing pages, in no order, and fetches each of them; prints the quantiles of the waits.
fn fetch(address: &str, faults: u32) -> Result<()> {
    let memory = GuestMemory::allocate(MemoryLayout::flat(PageCount(faults.into()))?, Backing::Anonymous)?;
    let uffd = UffdBuilder::new().close_on_exec(true).non_blocking(true).user_mode_only(false).require_features(FeatureFlags::empty()).create()?;
    let region = &memory.regions()[0];
    uffd.register_with_mode(region.host().as_ptr().cast(), region.len(), RegisterMode::MISSING)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (handled, seen) = std::thread::scope(|scope| {
        let handler = scope.spawn(|| -> Result<Vec<Duration>> {
            let (mut page, mut times) = (vec![0; PAGE_SIZE], Vec::with_capacity(faults as usize));
            while times.len() < faults as usize {
                poll(&mut [PollFd::new(uffd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
                let Some(Event::Pagefault { addr, .. }) = uffd.read_event()? else { continue };
                let began = Instant::now();
                let address = addr as usize / PAGE_SIZE * PAGE_SIZE;
                stream.write_all(&(address as u64).to_le_bytes())?;
                stream.read_exact(&mut page)?;
                // SAFETY: fills a missing page of guest memory, of which nobody knows the contents.
                unsafe { uffd.copy(page.as_ptr().cast(), address as *mut _, PAGE_SIZE, true) }?;
                times.push(began.elapsed());
            }
            Ok(times)
        });
        let mut times = Vec::with_capacity(faults as usize);
        for touch in 0..u64::from(faults) {
            // A stride that shares no factor with the number of pages would do; a large prime is one for all sizes used.
            let page = PageIndex(touch * 1_000_003 % u64::from(faults));
            let began = Instant::now();
            std::hint::black_box(memory.chunk(page.chunk()).load_word(page.bit(), 0));
            times.push(began.elapsed());
        }
        (handler.join().expect("it does not panic"), times)
    });
    let [p50, p99] = quantiles(handled?);
    let [thread_p50, thread_p99] = quantiles(seen);
    println!("{p50} {p99} {thread_p50} {thread_p99}");
    Ok(())
}

fn quantiles(mut times: Vec<Duration>) -> Times {
    times.sort_unstable();
    [50, 99].map(|share| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6)
}
