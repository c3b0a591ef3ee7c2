//! Where connections come from that count together.

use std::net::IpAddr;

use crate::transport::Stream;

/// A peer, as far as a connection shows before it has said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// Processes of one user of this host, over a Unix socket: who may connect there is for the socket's permissions to
    /// say, and they speak of users.
    Local(Option<u32>),
    V4([u8; 4]),
    /// The first half of the address: a host has all of the rest.
    V6([u8; 8]),
    /// One of those for whom there was no more room.
    Other,
}

impl Peer {
    /// At the other end of `stream`.
    pub(super) fn of(stream: &Stream) -> Self {
        stream.peer_host().map_or_else(|| Self::Local(stream.peer_user()), Self::at)
    }

    /// At that address.
    pub(super) fn at(host: IpAddr) -> Self {
        match host {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => Self::V6(*address.octets().first_chunk().expect("of 16 bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_one_host_is_one_peer() {
        let at = |host: &str| Peer::at(host.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:0:2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    #[test]
    fn a_local_peer_is_a_user() {
        let (here, _there) = Stream::pair().unwrap();
        assert_eq!(Peer::of(&here), Peer::Local(Some(nix::unistd::getuid().as_raw())));
    }
}
