//! Two hosts: network namespaces with a cable between them, made for a test and gone with it.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Two namespaces. Dropped, they are deleted, and the cable with them.
pub(crate) struct Network {
    /// The source's, then the destination's.
    names: [String; 2],
}

/// One end of the cable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Source,
    Destination,
}

const SOURCE: &str = "192.0.2.1";
/// Where the destination is.
pub(crate) const DESTINATION: &str = "192.0.2.2";

impl Network {
    /// Makes it; each direction moves `rate` (as `tc` writes it) at most.
    ///
    /// # Errors
    /// With what the tool said.
    pub(crate) fn new(rate: Option<&str>) -> Result<Self> {
        let network = Self { names: names() };
        let [source, destination] = &network.names;
        for name in [source, destination] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        ip(&format!("-n {source} link add cable type veth peer name cable netns {destination}"))?;
        for (name, address) in [(source, SOURCE), (destination, DESTINATION)] {
            ip(&format!("-n {name} address add {address}/24 dev cable"))?;
            ip(&format!("-n {name} link set cable up"))?;
            if let Some(rate) = rate {
                tool(&format!("tc -n {name} qdisc add dev cable root tbf rate {rate} burst 256kb latency 50ms"))?;
            }
        }
        Ok(network)
    }

    /// Pulls the cable, at one end, or puts it back.
    pub(crate) fn set_cable(&self, end: End, state: &str) -> Result<()> {
        ip(&format!("-n {} link set cable {state}", self.name(end)))
    }

    /// `program` with `flags`, on one of the hosts. The pid is the program's own.
    pub(crate) fn command(&self, end: End, program: &str, flags: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(end), program]).args(flags.split_whitespace());
        command
    }

    /// Bytes that have left the source, headers and all.
    pub(crate) fn bytes_sent(&self) -> Result<u64> {
        let path = "/sys/class/net/cable/statistics/tx_bytes";
        let output = self.command(End::Source, "cat", path).output()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().with_context(|| path.to_owned())
    }

    pub(crate) fn name(&self, end: End) -> &str {
        &self.names[end as usize]
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove();
    }
}

/// Deletes the namespaces of this process, if there are any.
pub(crate) fn remove() {
    for name in names() {
        if std::path::Path::new("/run/netns").join(&name).exists()
            && let Err(error) = ip(&format!("netns delete {name}"))
        {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Names that no other run of this test has.
fn names() -> [String; 2] {
    let pid = std::process::id();
    [format!("pageferry-source-{pid}"), format!("pageferry-destination-{pid}")]
}

fn ip(arguments: &str) -> Result<()> {
    tool(&format!("ip {arguments}"))
}

fn tool(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a tool")).args(words).output().with_context(|| line.to_owned())?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
