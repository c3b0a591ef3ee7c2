//! How long a small message waits on a link that bulk connections fill, and how much of the link they get.
//!
//! ```text
//! cargo bench --bench link_queue          # needs root, ip and tc
//! ```
//! Two network namespaces with a veth between them stand for two hosts, with a token bucket at each end. For each link the
//! bulk connections are left to TCP ("free") and then kept short ("paced"); meanwhile a page goes over a connection of its
//! own every 5 ms and is answered. The wait is the time of that beyond its median on the idle link.
//!
//! Environment: `ONLY` (rows whose name contains it), `CONTROL` (a congestion control that namespaces may use,
//! default the system's).

#[path = "../tests/links/network.rs"]
#[expect(dead_code, reason = "the tests of links use the rest")]
mod network;

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use network::{DESTINATION, End, Network};
use nix::sched::{CloneFlags, setns};
use pageferry::transport::{BulkQueue, Endpoint, Listener, Stream};

/// Name, rate as `tc` takes it, bits a second, bulk connections.
const LINKS: [(&str, Option<&str>, f64, usize); 7] = [
    ("100 Mbit/s, 1 lane", Some("100mbit"), 100e6, 1),
    ("100 Mbit/s, 2 lanes", Some("100mbit"), 100e6, 2),
    ("1 Gbit/s, 1 lane", Some("1gbit"), 1e9, 1),
    ("1 Gbit/s, 2 lanes", Some("1gbit"), 1e9, 2),
    ("1 Gbit/s, 4 lanes", Some("1gbit"), 1e9, 4),
    ("unshaped, 1 lane", None, f64::INFINITY, 1),
    ("unshaped, 2 lanes", None, f64::INFINITY, 2),
];

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, for network namespaces");
        return;
    }
    let only = std::env::var("ONLY").unwrap_or_default();
    println!("{:<22} {:<6} {:>10} {:>8} {:>9} {:>9} {:>9}", "", "", "Mbit/s", "of link", "p50 ms", "p90 ms", "p99 ms");
    for (name, shape, bits, lanes) in LINKS.into_iter().filter(|link| link.0.contains(&only)) {
        let network = Network::new(shape).expect("namespaces");
        if let Ok(control) = std::env::var("CONTROL") {
            for end in [End::Source, End::Destination] {
                let set = format!("net.ipv4.tcp_congestion_control={control}");
                assert!(network.command(end, "sysctl", &format!("-qw {set}")).status().expect("sysctl").success());
            }
        }
        let idle = median(&mut run(&network, 0, false, Duration::from_millis(500)).1);
        for paced in [false, true] {
            let (rate, mut waits) = run(&network, lanes, paced, LASTS);
            waits.sort_unstable();
            let wait = |share: f64| {
                let at = ((waits.len() - 1) as f64 * share).round();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
                let time = waits[at as usize];
                (time.as_secs_f64() - idle.as_secs_f64()) * 1e3
            };
            // What a frame of 1500 bytes carries of 1514 that are shaped.
            let share = rate / (bits * 1448.0 / 1514.0) * 100.0;
            let how = if paced { "paced" } else { "free" };
            println!("{:<22} {how:<6} {:>10.1} {share:>6.1} % {:>9.2} {:>9.2} {:>9.2}", name, rate / 1e6, wait(0.5), wait(0.9), wait(0.99));
        }
    }
}

/// Fills the link for `lasts`; bits a second that arrived on all connections, and the times of the small messages.
fn run(network: &Network, lanes: usize, paced: bool, lasts: Duration) -> (f64, Vec<Duration>) {
    let listener = inside(network, End::Destination, || Listener::bind(&format!("{DESTINATION}:0").parse().expect("an address")).expect("listens"));
    let endpoint = listener.endpoint().clone();
    let stop = AtomicBool::new(false);
    let (arrived, mut times) = (AtomicU64::new(0), Vec::new());
    let mut rate = 0.0;
    thread::scope(|scope| {
        let (listener, stop, arrived) = (&listener, &stop, &arrived);
        // The first connection is the urgent one.
        let connect = |endpoint: &Endpoint| inside(network, End::Source, || Stream::connect(endpoint, Duration::from_secs(5)).expect("connects"));
        let mut urgent = connect(&endpoint);
        urgent.prepare_urgent().expect("a priority");
        let mut answers = listener.accept(Duration::from_secs(5)).expect("accepts").expect("a connection");
        scope.spawn(move || {
            let mut page = vec![0; 4096];
            while answers.read_exact(&mut page).is_ok() && answers.write_all(&[1]).is_ok() {}
        });
        for _ in 0..lanes {
            let stream = connect(&endpoint);
            let mut sink = listener.accept(Duration::from_secs(5)).expect("accepts").expect("a connection");
            scope.spawn(move || {
                let mut piece = vec![0; 1 << 18];
                while let Ok(read @ 1..) = sink.read(&mut piece) {
                    arrived.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
            scope.spawn(move || fill(stream, paced, stop));
        }
        thread::sleep(SETTLES.min(lasts));
        let (began, before) = (Instant::now(), arrived.load(Ordering::Relaxed));
        while began.elapsed() < lasts {
            let sent = Instant::now();
            urgent.write_all(&[7; 4096]).expect("writes");
            urgent.read_exact(&mut [0]).expect("an answer");
            times.push(sent.elapsed());
            thread::sleep(Duration::from_millis(5));
        }
        let all = arrived.load(Ordering::Relaxed) - before + times.len() as u64 * 4096;
        rate = all as f64 * 8.0 / began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        urgent.control().shut_down();
    });
    (rate, times)
}

fn fill(mut stream: Stream, paced: bool, stop: &AtomicBool) {
    let page = vec![0x5a; 1 << 18];
    stream.prepare_bulk().expect("an option");
    let mut queue = paced.then(|| BulkQueue::new(&stream));
    let verbose = std::env::var_os("VERBOSE").is_some();
    let mut told = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        match &mut queue {
            None => stream.write_all(&page[..1 << 16]).expect("writes"),
            Some(queue) => {
                if queue.has_room(Duration::from_millis(20)).expect("waits") {
                    let step = usize::try_from(queue.step().0).expect("64-bit host");
                    queue.write_all(&page[..step]).expect("writes");
                    queue.look(Instant::now());
                    if verbose && told.elapsed() > Duration::from_millis(100) {
                        told = Instant::now();
                        eprintln!("{queue:?}");
                    }
                }
            }
        }
    }
    stream.control().shut_down();
}

/// Runs `work` in one of the namespaces. What it opens stays there.
fn inside<T: Send>(network: &Network, end: End, work: impl FnOnce() -> T + Send) -> T {
    let path = format!("/run/netns/{}", network.name(end));
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            setns(File::open(path).expect("a namespace"), CloneFlags::CLONE_NEWNET).expect("enters it");
            work()
        });
        worker.join().expect("no panic")
    })
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

const LASTS: Duration = Duration::from_secs(3);
const SETTLES: Duration = Duration::from_millis(500);
