//! Who may stand at the door: how many connections that have not said yet what they want, and how often a peer may come.
//!
//! A connection costs a thread and a descriptor from the moment it is taken, and until its first message nothing is known
//! of it but where it comes from. So those are counted, in all and for each peer, and each peer has a bucket of tokens
//! that fills at a steady rate, one for each connection. Where the door is crowded, whoever has stood there longest gives
//! way to a newcomer: an honest peer says what it wants at once, and a silent one must not keep the others out. Whoever
//! came less than [`GRACE`] ago may just be slow, and keeps its place.
//!
//! Pure bookkeeping: time comes in as an argument. The table of peers is bounded; those beyond it share one entry.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::peer::Peer;
use crate::protocol::AttachError;
use crate::units::ByteCount;

/// How much strangers may take up, and authorized peers side by side.
///
/// The defaults let a hundred guests with eight channels each, and states of up to 2.5 MiB, come from one address at the same
/// moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiverLimits {
    /// Sessions side by side.
    pub sessions: usize,
    /// Of one peer: of a host, or of a user of this one where that is what connects. Less than all, so that whoever has
    /// what it takes to open sessions cannot keep the others out; it is not derived from the total, so lower both. What
    /// memory there is is not divided: one guest may need all of it.
    pub sessions_per_peer: usize,
    /// Sessions that are over and whose sources may come back to ask how they ended (see
    /// [`Timeouts::tombstone`](crate::protocol::Timeouts::tombstone)), those under way included. At the default rates no
    /// single peer can bring as many in that time.
    pub remembered: usize,
    /// Bytes of guests' states on their way in, from when they are announced until they are loaded. (Those of 128 KiB and
    /// less do not count.)
    pub states: ByteCount,
    /// Of one peer. To be less than all, as above; what is less than one state needs keeps that guest out.
    pub states_per_peer: ByteCount,
    /// Connections, whatever they are.
    pub connections: usize,
    /// Of one peer. To be less than all, as above.
    pub connections_per_peer: usize,
    /// Connections that have not said yet what they want.
    pub half_open: usize,
    /// Of one peer.
    pub half_open_per_peer: usize,
    /// Connections of one peer that may come at once.
    pub burst_per_peer: u32,
    /// Connections of one peer in a second, beyond the burst.
    pub rate_per_peer: u32,
    /// How long a session may bring nothing before Commit, although its source is alive. A guest of a batch may wait for a
    /// minute for its turn.
    pub standstill: Duration,
}

impl Default for ReceiverLimits {
    fn default() -> Self {
        Self {
            sessions: 1024,
            sessions_per_peer: 768,
            remembered: 65_536,
            states: ByteCount(512 << 20),
            states_per_peer: ByteCount(256 << 20),
            connections: 4096,
            connections_per_peer: 3072,
            half_open: 2048,
            half_open_per_peer: 1024,
            burst_per_peer: 4096,
            rate_per_peer: 512,
            standstill: Duration::from_secs(120),
        }
    }
}

/// Why a connection or a session was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TurnedAway {
    /// [`ReceiverLimits::rate_per_peer`].
    #[error("the peer connects more often than {0} times a second")]
    Rate(u32),
    /// [`ReceiverLimits::half_open_per_peer`].
    #[error("{0} connections from there have not said yet what they want")]
    HalfOpenOfPeer(usize),
    /// [`ReceiverLimits::half_open`].
    #[error("{0} connections have not said yet what they want")]
    HalfOpen(usize),
    /// It stood at a crowded door longer than others.
    #[error("it had not said what it wants when its place was needed")]
    GaveWay,
    /// [`ReceiverLimits::connections`].
    #[error("this receiver has {0} connections, as many as it takes")]
    Connections(usize),
    /// [`ReceiverLimits::connections_per_peer`].
    #[error("there are {0} connections from there, as many as this receiver takes from one peer")]
    ConnectionsOfPeer(usize),
    /// It names a session that there is not, or not for it.
    #[error("{0}")]
    Stranger(&'static str),
    /// It is not to be a lane of the session that it names.
    #[error("a lane was not taken in: {0}")]
    Lane(AttachError),
    /// [`ReceiverLimits::sessions`].
    #[error("this receiver has {0} sessions under way, as many as it takes at a time")]
    Sessions(usize),
    /// [`ReceiverLimits::sessions_per_peer`].
    #[error("{0} sessions from there are under way, as many as this receiver takes from one peer at a time")]
    SessionsOfPeer(usize),
    /// [`ReceiverLimits::remembered`].
    #[error("this receiver has {0} sessions under way or to remember, as many as it can, and forgets none before its time")]
    Remembered(usize),
}

/// One connection at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

/// A connection that may stay.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) ticket: Ticket,
    /// To be ended for it.
    pub(super) gives_way: Option<Ticket>,
}

/// The connections at the door.
#[derive(Debug)]
pub(super) struct Door {
    limits: ReceiverLimits,
    next: u64,
    /// In the order in which they came.
    standing: BTreeMap<Ticket, (Peer, Instant)>,
    peers: HashMap<Peer, Record>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    standing: usize,
    /// Thousandths of a connection.
    tokens: u64,
    filled: Instant,
}

impl Door {
    pub(super) fn new(limits: ReceiverLimits) -> Self {
        Self { limits, next: 0, standing: BTreeMap::new(), peers: HashMap::new() }
    }

    /// A connection came from `peer`.
    pub(super) fn enter(&mut self, now: Instant, peer: Peer) -> Result<Admitted, TurnedAway> {
        let peer = self.known(now, peer);
        let limits = self.limits;
        let record = self.peers.get_mut(&peer).expect("known");
        record.fill(now, &limits);
        record.tokens = record.tokens.checked_sub(TOKEN).ok_or(TurnedAway::Rate(limits.rate_per_peer))?;
        let crowded = if record.standing >= limits.half_open_per_peer {
            Some((peer, TurnedAway::HalfOpenOfPeer(limits.half_open_per_peer)))
        } else if self.standing.len() >= limits.half_open {
            let most = self.peers.iter().max_by_key(|(_, record)| record.standing).map_or(peer, |(peer, _)| *peer);
            Some((most, TurnedAway::HalfOpen(limits.half_open)))
        } else {
            None
        };
        let gives_way = match crowded {
            None => None,
            Some((of, refusal)) => {
                let longest = self.standing.iter().find(|(_, (peer, _))| *peer == of).filter(|(_, (_, since))| *since + GRACE <= now);
                let ticket = *longest.ok_or(refusal)?.0;
                self.leave(ticket);
                Some(ticket)
            }
        };
        let ticket = Ticket(self.next);
        self.next += 1;
        self.standing.insert(ticket, (peer, now));
        self.peers.get_mut(&peer).expect("known").standing += 1;
        Ok(Admitted { ticket, gives_way })
    }

    /// It has said what it wants, or is gone. False for one that gave way.
    pub(super) fn leave(&mut self, ticket: Ticket) -> bool {
        let Some((peer, _)) = self.standing.remove(&ticket) else { return false };
        self.peers.get_mut(&peer).expect("it stands at the door").standing -= 1;
        true
    }

    /// `peer`, with a record of its own if there is room for one.
    fn known(&mut self, now: Instant, peer: Peer) -> Peer {
        if !self.peers.contains_key(&peer) && self.peers.len() >= MAX_PEERS {
            let limits = self.limits;
            self.peers.retain(|_, record| {
                record.fill(now, &limits);
                record.standing > 0 || record.tokens < limits.full()
            });
        }
        let is_room = self.peers.contains_key(&peer) || self.peers.len() < MAX_PEERS;
        let peer = if is_room { peer } else { Peer::Other };
        let full = self.limits.full();
        self.peers.entry(peer).or_insert(Record { standing: 0, tokens: full, filled: now });
        peer
    }
}

impl ReceiverLimits {
    fn full(&self) -> u64 {
        u64::from(self.burst_per_peer) * TOKEN
    }
}

impl Record {
    fn fill(&mut self, now: Instant, limits: &ReceiverLimits) {
        let since = now.saturating_duration_since(self.filled).as_millis();
        let more = u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(limits.rate_per_peer.into());
        if more > 0 {
            self.tokens = self.tokens.saturating_add(more).min(limits.full());
            self.filled = now;
        }
    }
}

/// A connection, in a bucket: at a rate of one a second this is what a millisecond brings a thousandth of.
const TOKEN: u64 = 1000;
/// How long an honest peer may take to say what it wants, on a busy machine.
const GRACE: Duration = Duration::from_secs(1);
/// Peers that are told apart.
const MAX_PEERS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ReceiverLimits = ReceiverLimits {
        sessions: 1,
        sessions_per_peer: 1,
        remembered: 10,
        states: ByteCount(0),
        states_per_peer: ByteCount(0),
        connections: 100,
        connections_per_peer: 100,
        half_open: 4,
        half_open_per_peer: 2,
        burst_per_peer: 5,
        rate_per_peer: 2,
        standstill: Duration::from_secs(1),
    };

    const LOCAL: Peer = Peer::Local(None);

    fn host(last: u8) -> Peer {
        Peer::V4([192, 0, 2, last])
    }

    #[test]
    fn a_peer_that_crowds_the_door_gives_way_to_itself_only() {
        let (mut door, start) = (Door::new(LIMITS), Instant::now());
        let first = door.enter(start, host(1)).unwrap().ticket;
        door.enter(start, host(1)).unwrap();
        let other = door.enter(start, host(2)).unwrap();
        assert_eq!(door.enter(start, host(1)), Err(TurnedAway::HalfOpenOfPeer(2)), "the two before it just came");
        let later = start + GRACE;
        assert_eq!(door.enter(later, host(1)).unwrap().gives_way, Some(first));
        assert!(!door.leave(first) && door.leave(other.ticket));
    }

    #[test]
    fn a_crowded_door_is_cleared_of_whoever_has_most_there() {
        let (mut door, start) = (Door::new(LIMITS), Instant::now());
        let longest = door.enter(start, host(1)).unwrap().ticket;
        for last in [1, 2, 3] {
            door.enter(start, host(last)).unwrap();
        }
        assert_eq!(door.enter(start, host(4)), Err(TurnedAway::HalfOpen(4)));
        assert_eq!(door.enter(start + GRACE, host(4)).unwrap().gives_way, Some(longest));
    }

    #[test]
    fn a_peer_that_comes_too_often_waits_for_its_bucket_to_fill() {
        let (mut door, start) = (Door::new(LIMITS), Instant::now());
        for _ in 0..5 {
            let ticket = door.enter(start, LOCAL).unwrap().ticket;
            assert!(door.leave(ticket));
        }
        assert_eq!(door.enter(start + Duration::from_millis(400), LOCAL), Err(TurnedAway::Rate(2)));
        door.enter(start, host(1)).expect("another peer has its own");
        door.enter(start + Duration::from_millis(500), LOCAL).expect("half a second brings one");
    }

    #[test]
    fn the_table_of_peers_is_bounded() {
        let (mut door, start) = (Door::new(LIMITS), Instant::now());
        for n in 0..2 * u32::try_from(MAX_PEERS).unwrap() {
            if let Ok(Admitted { ticket, .. }) = door.enter(start, Peer::V4(n.to_be_bytes())) {
                door.leave(ticket);
            }
        }
        assert_eq!(door.peers.len(), MAX_PEERS + 1);
        assert_eq!(door.enter(start, host(9)), Err(TurnedAway::Rate(2)), "the others share one bucket");
        door.enter(start + Duration::from_secs(10), host(9)).unwrap();
        assert!(door.peers.len() < 3, "forgotten when their buckets are full");
    }
}
