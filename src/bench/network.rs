//! Two hosts: network namespaces with a cable between them, the same for both engines.
//!
//! Shaping is a token bucket at both ends. What crosses is counted by the destination's end of the cable.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::leftovers::Leftovers;
use super::tool;

/// Two namespaces. Dropped, they are deleted, and the cable with them.
pub(super) struct Network {
    /// The source's, then the destination's.
    names: [String; 2],
    leftovers: Leftovers,
}

/// One end of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

const SOURCE: &str = "192.0.2.1";
/// Where the destination is.
pub(super) const DESTINATION: &str = "192.0.2.2";

impl Network {
    /// Makes it; each direction moves `bits_per_s` at most.
    ///
    /// # Errors
    /// With what the tool said.
    pub(super) fn new(bits_per_s: Option<u64>, leftovers: &Leftovers) -> Result<Self> {
        let pid = std::process::id();
        let names = ["source", "destination"].map(|end| format!("pageferry-bench-{pid}-{end}"));
        let network = Self { names, leftovers: leftovers.clone() };
        let [source, destination] = &network.names;
        for name in &network.names {
            leftovers.make_namespace(name)?;
            tool::run(&format!("ip -n {name} link set lo up"))?;
        }
        tool::run(&format!("ip -n {source} link add cable type veth peer name cable netns {destination}"))?;
        for (name, address) in [(source, SOURCE), (destination, DESTINATION)] {
            tool::run(&format!("ip -n {name} address add {address}/24 dev cable"))?;
            tool::run(&format!("ip -n {name} link set cable up"))?;
            if let Some(rate) = bits_per_s {
                tool::run(&format!("tc -n {name} qdisc add dev cable root tbf rate {rate}bit burst {} limit {}", burst(rate), queue(rate)))?;
            }
        }
        Ok(network)
    }

    /// `program` on one of the hosts. The pid is the program's own.
    pub(super) fn command(&self, end: End, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(end), program]);
        command
    }

    /// What plain TCP moves from the source to the destination, bytes a second.
    ///
    /// # Errors
    /// When it moves nothing.
    pub(super) fn measure(&self) -> Result<f64> {
        let listener = self.inside(End::Destination, || Ok(TcpListener::bind((DESTINATION, 0))?))?;
        let address = listener.local_addr()?;
        let drains: Vec<_> = (0..STREAMS).map(|_| listener.try_clone().map(|listener| thread::spawn(move || drain(&listener)))).collect();
        self.inside(End::Source, || {
            let until = Instant::now() + MEASURED;
            let pushes: Vec<_> = (0..STREAMS).map(|_| TcpStream::connect(address).map(|stream| thread::spawn(move || push(stream, until)))).collect();
            for push in pushes {
                push?.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            }
            Ok(())
        })?;
        let mut bytes_per_s = 0.0;
        for drain in drains {
            bytes_per_s += drain?.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(bytes_per_s)
    }

    /// Runs `work` on a thread in one of the namespaces. What it opens stays there.
    fn inside<T: Send>(&self, end: End, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.name(end));
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let namespace = File::open(&path).with_context(|| path.clone())?;
                setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))?;
                work()
            });
            worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
        })
    }

    fn name(&self, end: End) -> &str {
        &self.names[end as usize]
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| self.leftovers.delete_namespace(name));
    }
}

/// Bytes that may follow each other at the cable's own speed: those of 2 ms, and a few packets on a slow link.
fn burst(bits_per_s: u64) -> u64 {
    (bits_per_s / 8 / 500).max(8 * PACKET)
}

/// Bytes that wait for their turn before more are dropped: those of 50 ms, and some packets on a slow link.
fn queue(bits_per_s: u64) -> u64 {
    burst(bits_per_s) + (bits_per_s / 8 / 20).max(32 * PACKET)
}

const PACKET: u64 = 1514;

/// Bytes that have come in by the cable of the namespace that process `pid` is in, headers and all.
///
/// # Errors
/// When the process is gone.
pub(super) fn bytes_received(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/net/dev");
    received(&std::fs::read_to_string(&path).with_context(|| path.clone())?).with_context(|| format!("{path} has no cable"))
}

fn received(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("cable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Reads all that one connection brings; bytes a second.
fn drain(listener: &TcpListener) -> Result<f64> {
    let (mut stream, _) = listener.accept()?;
    let since = Instant::now();
    let (mut buffer, mut bytes) = (vec![0; PIECE], 0.0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(bytes / since.elapsed().as_secs_f64()),
            Ok(read) => bytes += read as f64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn push(mut stream: TcpStream, until: Instant) -> Result<()> {
    let piece = vec![0; PIECE];
    while Instant::now() < until {
        stream.write_all(&piece)?;
    }
    Ok(())
}

/// As many as the engines use.
const STREAMS: usize = 2;
const PIECE: usize = 1 << 20;
const MEASURED: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cable_is_found_among_the_devices() {
        let table = concat!(
            "Inter-|   Receive                 |  Transmit\n face |bytes    packets errs drop\n",
            "    lo:       0       0\n cable:  123456     789    0    0    0     0          0         0     42\n"
        );
        assert_eq!(received(table), Some(123_456));
        assert_eq!(received("lo: 1 2"), None);
    }
}
