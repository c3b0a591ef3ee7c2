//! A bit flips on the way, while hands are shaken.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;

use super::PATIENCE;
use super::certificates::good;
use crate::transport::tls::{ClientTls, ServerTls, TlsError};
use crate::transport::{Deadline, Endpoint, Listener, Stream};

/// Passes a record on, with one bit of it flipped if it is to be.
fn pass_record(from: &mut TcpStream, to: &mut TcpStream, flipped: Option<usize>) -> std::io::Result<()> {
    let mut record = vec![0; 5];
    from.read_exact(&mut record)?;
    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
    from.read_exact(&mut record[5..])?;
    if let Some(byte) = flipped {
        let byte = byte % record.len();
        record[byte.max(5)] ^= 1;
    }
    to.write_all(&record)
}

/// What both ends come to when a bit flips in a record of one of them, the `nth` of its.
fn shake_with_a_flip(directory: &Path, is_clients: bool, nth: usize, byte: usize) -> [Result<Stream, TlsError>; 2] {
    let (client, server) = (ClientTls::from_directory(directory).unwrap(), ServerTls::from_directory(directory).unwrap());
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp(between.local_addr().unwrap().to_string());
    let to_server = Stream::connect(&endpoint, PATIENCE).unwrap();
    let (left, _) = between.accept().unwrap();
    let right = TcpStream::connect(listener.endpoint().to_string()).unwrap();
    let to_client = listener.accept(PATIENCE).unwrap().expect("a connection");
    for (mut from, mut to, is_flipped) in [(left.try_clone().unwrap(), right.try_clone().unwrap(), is_clients), (right, left, !is_clients)] {
        std::thread::spawn(move || {
            let mut number = 0;
            while pass_record(&mut from, &mut to, (is_flipped && number == nth).then_some(byte)).is_ok() {
                number += 1;
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    std::thread::scope(|scope| {
        let server = scope.spawn(|| server.secure(to_client, Deadline::within(PATIENCE)));
        let client = client.secure(to_server, &endpoint, Deadline::within(PATIENCE));
        [client, server.join().expect("no panic")]
    })
}

#[test]
fn a_flipped_bit_ends_the_handshake_and_nothing_else() {
    let directory = good();
    for is_clients in [true, false] {
        for byte in [20, 59, 100] {
            let ends = shake_with_a_flip(directory.path(), is_clients, 0, byte);
            assert!(ends.iter().any(Result::is_err), "byte {byte} of the first record, the client's: {is_clients}");
        }
        let ends = shake_with_a_flip(directory.path(), is_clients, 2, 50);
        assert!(ends.iter().any(Result::is_err), "a sealed record, the client's: {is_clients}");
    }
}
