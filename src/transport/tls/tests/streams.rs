//! Secure streams do all that plain ones do.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::time::{Duration, Instant};

use super::{PATIENCE, certificates, pair, plain_pair};
use crate::transport::tls::{ClientTls, ServerTls, TlsError};
use crate::transport::{BulkQueue, Deadline, Endpoint, Stream};

/// Bytes that do not repeat soon.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| u8::try_from((index * 7 + index / 251) % 256).expect("below 256")).collect()
}

/// Passes `bytes` from one end to the other and fails unless they arrive.
fn pass(from: &mut Stream, to: &mut Stream, bytes: &[u8]) {
    let mut arrived = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(bytes).unwrap());
        to.read_exact(&mut arrived).unwrap();
    });
    assert!(arrived == bytes, "{} bytes", bytes.len());
}

#[test]
fn any_number_of_bytes_arrives_in_both_directions() {
    let (mut client, mut server) = pair();
    for bytes in [1, 2, 100, 16_383, 16_384, 16_385, 65_536, 65_537, 1_000_000] {
        let bytes = pattern(bytes);
        pass(&mut client, &mut server, &bytes);
        pass(&mut server, &mut client, &bytes);
    }
    assert_eq!(client.write(&[]).unwrap(), 0);
}

#[test]
fn both_ends_read_and_write_at_the_same_time() {
    let (client, server) = pair();
    let bytes = pattern(8 << 20);
    std::thread::scope(|scope| {
        for end in [&client, &server] {
            let (mut reading, mut writing, bytes) = (end.share(), end.share(), &bytes);
            scope.spawn(move || writing.write_all(bytes).unwrap());
            scope.spawn(move || {
                let mut arrived = vec![0; bytes.len()];
                reading.read_exact(&mut arrived).unwrap();
                assert!(arrived == *bytes);
            });
        }
    });
}

#[test]
fn parts_are_written_one_after_the_other() {
    let (mut client, mut server) = pair();
    let bytes = pattern(40_000);
    let parts = [&bytes[..10], &[], &bytes[10..20_000], &bytes[20_000..]].map(IoSlice::new);
    assert_eq!(client.write_vectored(&parts).unwrap(), bytes.len());
    let mut arrived = vec![0; bytes.len()];
    server.read_exact(&mut arrived).unwrap();
    assert!(arrived == bytes);
}

#[test]
fn bulk_queues_write_what_their_streams_would() {
    let ((client, mut server), bytes) = (pair(), pattern(1_000_000));
    let mut queue = BulkQueue::new(&client);
    let mut arrived = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for step in bytes.chunks(30_000) {
                queue.write_all(step).unwrap();
                queue.look(Instant::now());
            }
        });
        server.read_exact(&mut arrived).unwrap();
    });
    assert!(arrived == bytes);
}

#[test]
fn what_was_shown_and_not_taken_is_shown_again() {
    let (mut client, mut server) = pair();
    client.write_all(b"one two").unwrap();
    let mut seen = Vec::new();
    for take in [0, 4, 3] {
        let taken = server.read_with(|bytes| {
            seen.push(bytes.to_vec());
            take
        });
        assert_eq!(taken.unwrap(), take);
    }
    assert_eq!(seen, [&b"one two"[..], b"one two", b"two"]);
}

#[test]
fn what_is_read_at_once_is_all_that_has_come_however_it_was_cut_into_records() {
    let (mut client, mut server) = pair();
    let mut read = |bytes: usize| {
        let mut buffer = vec![0; bytes];
        server.read_at_once(&mut buffer).map(|read| buffer[..read].to_vec()).map_err(|error| error.kind())
    };
    assert_eq!(read(9), Err(ErrorKind::WouldBlock));
    client.write_all(b"one ").unwrap();
    client.write_all(b"two ").unwrap();
    let mut seen = Vec::new();
    while seen.len() < 8 {
        match read(3) {
            Ok(bytes) => seen.extend(bytes),
            Err(kind) => assert_eq!(kind, ErrorKind::WouldBlock, "on its way"),
        }
    }
    assert_eq!((&seen[..], read(9)), (&b"one two "[..], Err(ErrorKind::WouldBlock)));
    drop(client);
    let end = loop {
        match read(9) {
            Err(ErrorKind::WouldBlock) => {}
            end => break end,
        }
    };
    assert_eq!(end, Ok(Vec::new()));
}

#[test]
fn a_read_waits_as_long_as_it_may_and_loses_nothing() {
    let (mut client, mut server) = pair();
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut byte = [0];
    let error = server.read(&mut byte).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    client.write_all(b"x").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"x");
}

#[test]
fn a_stream_that_is_shut_down_wakes_its_reader_and_its_writer() {
    let (client, server) = pair();
    let (mut reading, mut writing, control) = (client.share(), client.share(), client.control());
    let since = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || reading.read(&mut [0]));
        // Nobody reads at the other end, so it fills and waits.
        let writer = scope.spawn(move || while writing.write(&[0; 1 << 16]).is_ok() {});
        std::thread::sleep(Duration::from_millis(100));
        control.shut_down();
        let read = reader.join().unwrap();
        assert!(read.as_ref().map_or(true, |read| *read == 0), "{read:?}");
        writer.join().unwrap();
    });
    assert!(since.elapsed() < Duration::from_secs(5), "took {:?}", since.elapsed());
    drop(server);
}

#[test]
fn a_stream_that_is_let_go_ends_at_the_other_end() {
    let (mut client, server) = pair();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(client.read_with(<[u8]>::len).unwrap(), 0);
}

#[test]
fn nothing_is_written_after_a_write_that_stalled() {
    let (mut client, _server) = pair();
    nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::SendTimeout, &nix::sys::time::TimeVal::new(0, 100_000)).unwrap();
    let stalled = loop {
        if let Err(error) = client.write(&[0; 1 << 16]) {
            break error;
        }
    };
    assert_eq!(stalled.kind(), ErrorKind::TimedOut);
    assert_eq!(client.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_peer_that_says_nothing_is_given_up() {
    let directory = certificates::good();
    let limit = Duration::from_millis(100);
    let (mut to_server, to_client, endpoint) = plain_pair();
    let error = ServerTls::from_directory(directory.path()).unwrap().secure(to_client, Deadline::within(limit)).unwrap_err();
    assert!(matches!(error, TlsError::Slow { .. }), "{error}");
    // A last word comes through: the server waits for its peer to hang up, for a while.
    assert_eq!(to_server.read(&mut [0; 100]).unwrap(), 0);
    let (to_server, _to_client, _) = plain_pair();
    let error = ClientTls::from_directory(directory.path()).unwrap().secure(to_server, &endpoint, Deadline::within(limit)).unwrap_err();
    assert!(matches!(error, TlsError::Slow { .. }), "{error}");
}

#[test]
fn a_name_that_no_certificate_could_have_is_said() {
    let directory = certificates::good();
    let endpoint: Endpoint = "under_the-..-bridge:1".parse().unwrap();
    let error = ClientTls::from_directory(directory.path()).unwrap().secure(plain_pair().0, &endpoint, Deadline::within(PATIENCE)).unwrap_err();
    assert!(matches!(error, TlsError::Name { .. }), "{error}");
}

#[test]
fn two_hosts_on_a_unix_socket_are_localhost() {
    let directory = certificates::good();
    let (client, server) = (ClientTls::from_directory(directory.path()).unwrap(), ServerTls::from_directory(directory.path()).unwrap());
    let (near, far) = Stream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| server.secure(far, Deadline::within(PATIENCE)).unwrap());
        client.secure(near, &Endpoint::Unix("/nowhere".into()), Deadline::within(PATIENCE)).unwrap();
    });
}
