//! A VMM that embeds the engine: the place to start.
//!
//! It runs one KVM guest (a real vCPU; a thread where there is no KVM) and can give it away and take one in:
//! ```text
//! cargo run --release --example vmm -- receive 127.0.0.1:7000
//! cargo run --release --example vmm -- send 127.0.0.1:7000
//! ```
//! What an embedder brings is here in full: a [`Guest`] that pauses, resumes and hands over its state; its memory; what
//! a dirty tracker has to know of it; and at the destination a factory that builds guests from descriptions. The vCPU
//! itself is `pageferry::guests::KvmGuest`, the guest that the programs and tests migrate too; read it next.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pageferry::destination::{Arrival, Ending, GuestFactory, Placed, Receiver, ReceiverOptions, Refusal};
use pageferry::dirty::{self, Choice};
use pageferry::guest::{Guest, GuestError};
use pageferry::guests::{GuestKind, GuestSpec, TestGuest, build_destination, build_source};
use pageferry::memory::{Backing, GuestMemory};
use pageferry::policy::Limits;
use pageferry::source::{Event, Migration, Outgoing};
use pageferry::stats::GuestOwner;
use pageferry::wire::{Offer, RefuseReason};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["send", address] => send(address),
        ["receive", address] => receive(address),
        _ => Err("usage: vmm send ADDR | vmm receive ADDR".into()),
    }
}

/// The VMM's own idea of a virtual machine. Everything the engine asks of it goes through [`Guest`].
struct Machine {
    vcpu: Box<dyn TestGuest>,
}

impl Guest for Machine {
    /// Stops the vCPU and everything else that writes to guest memory. A VMM with devices drains and stops them here.
    fn pause(&mut self) -> std::result::Result<(), GuestError> {
        self.vcpu.pause()
    }

    fn resume(&mut self) -> std::result::Result<(), GuestError> {
        self.vcpu.resume()
    }

    /// Registers, and the state of each device: any bytes that `load_state` of the same VMM understands.
    fn save_state(&mut self) -> std::result::Result<Vec<u8>, GuestError> {
        self.vcpu.save_state()
    }

    fn load_state(&mut self, state: &[u8]) -> std::result::Result<(), GuestError> {
        self.vcpu.load_state(state)
    }
}

/// Runs a guest and moves it to the receiver at `address`.
fn send(address: &str) -> Result<()> {
    let kind = if std::fs::exists("/dev/kvm")? { GuestKind::Kvm } else { GuestKind::Workload };
    let spec = GuestSpec::from_parts(kind.name(), "memory=512MiB,working-set=32MiB,rate=20000")?;
    let mut machine = Machine { vcpu: build_source(&spec, Backing::Anonymous)? };
    machine.resume()?;
    std::thread::sleep(Duration::from_millis(200));

    // The tracker finds what the guest writes: KVM's log for its vCPUs, OR-ed with what the VMM marks itself.
    let memory = Arc::clone(machine.vcpu.memory());
    let mut tracker = dirty::open(Choice::Auto, &machine.vcpu.tracked())?;

    let migration = Migration::to(address.parse()?)
        .channels(2)
        .limits(Limits { downtime_limit: Duration::from_millis(100), ..Limits::default() })
        .observe(|event| {
            if let Event::Round { index, dirty_after, verdict, .. } = event {
                println!("round {index}: {dirty_after} dirty after it; {verdict}");
            }
        });
    // Another thread may keep `migration.steering()` to cancel, or to change limits and bandwidth on the way.
    let outgoing =
        Outgoing { guest: &mut machine, memory: &memory, tracker: &mut *tracker, kind: spec.kind().name().into(), description: spec.keys() };
    match migration.run(outgoing) {
        Ok(completed) => println!("moved; the guest runs there now\n{}", completed.report.metrics()),
        Err(failure) => match failure.owner {
            // The guest runs on: nothing has happened to it but a short stall at most.
            GuestOwner::Source => println!("not moved, the guest runs on here: {}", failure.error.in_full()),
            // The guest stays paused until the destination can be asked, or is known to be dead.
            GuestOwner::InDoubt => println!("in doubt: {:?}", failure.in_doubt.map(|doubt| doubt.ask(Duration::from_secs(10)))),
            // Post-copy, which this VMM does not ask for: it would keep `failure.stranded`, and recover it.
            GuestOwner::Destination => println!("the guest runs there and lacks what is here: {}", failure.error.in_full()),
        },
    }
    Ok(())
}

/// Takes one guest in, and runs it.
fn receive(address: &str) -> Result<()> {
    let (arrived, arrivals) = channel();
    let options = ReceiverOptions { max_sessions: Some(1), ..ReceiverOptions::default() };
    let receiver = Receiver::bind(&address.parse()?, options, Arc::new(Factory { arrived: Mutex::new(arrived) }))?;
    println!("listening on {}", receiver.endpoint());
    receiver.serve()?;
    let Ok(mut machine) = arrivals.try_recv() else { return Err("no guest has arrived".into()) };

    // From here on it is a guest of this VMM like any other.
    std::thread::sleep(Duration::from_secs(1));
    machine.pause()?;
    println!("the guest runs here: {} writes so far, longest gap {:?}", machine.vcpu.writes(), machine.vcpu.longest_gap());
    machine.vcpu.check()?;
    println!("and its memory is whole");
    Ok(())
}

/// Builds machines for the guests on offer.
struct Factory {
    arrived: Mutex<Sender<Machine>>,
}

impl GuestFactory for Factory {
    /// The offer comes from the network: check it, and refuse what this VMM does not want.
    fn admit(&self, offer: &Offer) -> std::result::Result<Box<dyn Arrival>, Refusal> {
        let spec = GuestSpec::from_parts(&offer.guest_kind, &offer.description)
            .map_err(|error| Refusal::new(RefuseReason::Description, error.to_string()))?;
        let vcpu = build_destination(&spec, Backing::Anonymous).map_err(|error| Refusal::new(RefuseReason::Other, error.to_string()))?;
        let arrived = self.arrived.lock().expect("no panic while locked").clone();
        Ok(Box::new(Incoming { machine: Machine { vcpu }, arrived }))
    }
}

/// A machine that is being filled.
struct Incoming {
    machine: Machine,
    arrived: Sender<Machine>,
}

impl Arrival for Incoming {
    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(self.machine.vcpu.memory())
    }

    fn guest(&mut self) -> &mut dyn Guest {
        &mut self.machine
    }

    /// All pages and the state are in place; the last chance to say no.
    fn placed(&mut self, _placed: Placed) -> io::Result<()> {
        Ok(())
    }

    fn ended(self: Box<Self>, ending: Ending) {
        match ending {
            // The VMM keeps the machine; nobody waits for it any more if that fails.
            Ending::Completed { .. } => drop(self.arrived.send(self.machine)),
            Ending::Dropped { error, .. } => println!("the guest stayed where it was: {}", error.in_full()),
        }
    }
}
