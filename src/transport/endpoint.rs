//! Addresses: `host:port`, `tcp:host:port` or `unix:PATH`.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, io};

use socket2::SockAddr;

/// Where a receiver listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP: a host name or address, and a port.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address: expected host:port, tcp:host:port or unix:PATH")]
pub struct EndpointError {
    /// What was given.
    pub text: String,
}

impl Endpoint {
    /// Whether bytes sent there stay on this host: a Unix socket, or TCP to loopback addresses only.
    ///
    /// # Errors
    /// When the host name does not resolve.
    pub fn is_local(&self) -> io::Result<bool> {
        Ok(self.addresses()?.iter().all(|address| address.as_socket().is_none_or(|address| address.ip().is_loopback())))
    }

    /// The host's name or address, without brackets; none for a Unix socket.
    #[cfg(feature = "tls")]
    pub(super) fn host(&self) -> Option<&str> {
        let Self::Tcp(host_port) = self else { return None };
        let (host, _) = host_port.rsplit_once(':').unwrap_or((host_port, ""));
        Some(host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host))
    }

    /// Every address that it has, at least one.
    ///
    /// # Errors
    /// When the host name does not resolve.
    pub(super) fn addresses(&self) -> io::Result<Vec<SockAddr>> {
        let addresses: Vec<_> = match self {
            Self::Unix(path) => vec![SockAddr::unix(path)?],
            Self::Tcp(host_port) => host_port.to_socket_addrs()?.map(SockAddr::from).collect(),
        };
        if addresses.is_empty() { Err(io::Error::new(io::ErrorKind::NotFound, "the host name has no address")) } else { Ok(addresses) }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || EndpointError { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let host_port = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = host_port.rsplit_once(':').ok_or_else(wrong)?;
        let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if host.is_empty() || bare_ipv6 || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Self::Tcp(host_port.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => f.write_str(host_port),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print() {
        for (text, printed) in
            [("localhost:4444", "localhost:4444"), ("tcp:10.0.0.1:0", "10.0.0.1:0"), ("[::1]:5", "[::1]:5"), ("unix:/run/x.sock", "unix:/run/x.sock")]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), printed);
        }
        for text in ["", "host", "host:", ":1", "host:65536", "::1:5", "unix:", "udp:host:1"] {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError { text: text.to_owned() }), "{text}");
        }
    }

    #[test]
    fn loopback_and_unix_are_local() {
        for (text, local) in [("127.0.0.1:1", true), ("[::1]:1", true), ("unix:/x", true), ("192.0.2.1:1", false), ("0.0.0.0:1", false)] {
            assert_eq!(text.parse::<Endpoint>().unwrap().is_local().unwrap(), local, "{text}");
        }
    }
}
