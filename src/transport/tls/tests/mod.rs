//! Connections over loopback, against this module itself and against rustls.

#[path = "../../../../tests/certificates/mod.rs"]
mod certificates;
mod faults;
mod flips;
mod peers;
mod streams;

use std::path::Path;
use std::time::Duration;

use super::{ClientTls, ServerTls, TlsError};
use crate::transport::{Deadline, Endpoint, Listener, Stream};

/// Long, for machines under load.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two connected plain streams, and where the second of them listened.
fn plain_pair() -> (Stream, Stream, Endpoint) {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let client = Stream::connect(listener.endpoint(), PATIENCE).unwrap();
    let server = listener.accept(PATIENCE).unwrap().expect("a connection");
    (client, server, listener.endpoint().clone())
}

/// What both ends come to, each with its directory.
fn shake(client: &Path, server: &Path) -> (Result<Stream, TlsError>, Result<Stream, TlsError>) {
    let (client, server) = (ClientTls::from_directory(client).unwrap(), ServerTls::from_directory(server).unwrap());
    let (to_server, to_client, endpoint) = plain_pair();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| server.secure(to_client, Deadline::within(PATIENCE)));
        let client = client.secure(to_server, &endpoint, Deadline::within(PATIENCE));
        (client, server.join().unwrap())
    })
}

/// Two connected secure streams: the client's and the server's.
fn pair() -> (Stream, Stream) {
    let directory = certificates::good();
    let (client, server) = shake(directory.path(), directory.path());
    (client.unwrap(), server.unwrap())
}
