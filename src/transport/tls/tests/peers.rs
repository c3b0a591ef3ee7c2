//! The records are TLS's: rustls understands them, and nothing else is understood as one.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::{PATIENCE, certificates, pair};
use crate::transport::tls::ClientTls;
use crate::transport::tls::record::{APPLICATION_DATA, Forged, HANDSHAKE, OVERHEAD, Opened, RecordKey};
use crate::transport::{Deadline, Endpoint, Stream};

/// A server that is all rustls, tickets included.
fn rustls_server(directory: &Path, suite: rustls::SupportedCipherSuite) -> Arc<ServerConfig> {
    let file = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&file("ca-cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::CryptoProvider { cipher_suites: vec![suite], ..rustls::crypto::ring::default_provider() });
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(&file("server-cert.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(&file("server-key.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    Arc::new(config.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap())
}

/// This module's client connected to it.
fn with_rustls(suite: rustls::SupportedCipherSuite) -> (Stream, StreamOwned<ServerConnection, TcpStream>) {
    let directory = certificates::good();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint: Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let client = ClientTls::from_directory(directory.path()).unwrap();
    let config = rustls_server(directory.path(), suite);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut socket, _) = listener.accept().unwrap();
            let mut connection = ServerConnection::new(config).unwrap();
            while connection.is_handshaking() {
                connection.complete_io(&mut socket).unwrap();
            }
            StreamOwned::new(connection, socket)
        });
        let stream = Stream::connect(&endpoint, PATIENCE).unwrap();
        let client = client.secure(stream, &endpoint, Deadline::within(PATIENCE)).unwrap();
        (client, server.join().unwrap())
    })
}

/// Passes `bytes` there and back.
fn echo(client: &mut Stream, server: &mut StreamOwned<ServerConnection, TcpStream>, bytes: &[u8]) {
    let mut arrived = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut arrived = vec![0; bytes.len()];
            server.read_exact(&mut arrived).unwrap();
            server.write_all(&arrived).unwrap();
            server.flush().unwrap();
        });
        client.write_all(bytes).unwrap();
        client.read_exact(&mut arrived).unwrap();
    });
    assert!(arrived == bytes);
}

#[test]
fn rustls_understands_every_cipher() {
    let suites = rustls::crypto::ring::default_provider().cipher_suites;
    assert_eq!(suites.len(), 3);
    for suite in suites {
        let (mut client, mut server) = with_rustls(suite);
        for bytes in [1, 20_000, 300_000] {
            echo(&mut client, &mut server, &vec![7; bytes]);
        }
        server.conn.send_close_notify();
        server.conn.complete_io(&mut server.sock).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        // Without a close_notify, rustls would call this an unexpected end.
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn rustls_understands_new_keys_and_is_understood() {
    let (mut client, mut server) = with_rustls(rustls::crypto::ring::cipher_suite::TLS13_AES_256_GCM_SHA384);
    for _ in 0..3 {
        // Asks for the client's as well.
        server.conn.refresh_traffic_keys().unwrap();
        echo(&mut client, &mut server, &[7; 50_000]);
    }
}

#[test]
fn keys_are_renewed_in_time() {
    let (mut client, mut server) = with_rustls(rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256);
    client.session().set_records_per_key(3);
    for _ in 0..5 {
        echo(&mut client, &mut server, &[7; 150_000]);
    }
}

#[test]
fn a_record_is_as_in_rfc_8448() {
    let bytes = |text: &str| -> Vec<u8> { text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect() };
    let key = || {
        let (key, vector) = (bytes("17 42 2d da 59 6e d5 d9 ac d8 90 e3 c6 3f 50 51"), bytes("5b 78 92 3d ee 08 57 90 33 e5 23 d9"));
        RecordKey::with(&ring::aead::AES_128_GCM, &key, &vector, 0).unwrap()
    };
    let record = bytes(
        "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a \
         20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4",
    );
    let content: Vec<u8> = (0..50).collect();
    let mut sealed = vec![0; content.len() + OVERHEAD];
    sealed[5..][..content.len()].copy_from_slice(&content);
    key().seal(&mut sealed, APPLICATION_DATA, content.len());
    assert_eq!(sealed, record);
    assert_eq!(key().open(&mut sealed, 0), Ok(Opened { content: APPLICATION_DATA, bytes: 50 }));
    assert_eq!(sealed[..50], content);
}

#[test]
fn a_record_opens_only_unaltered_and_in_its_place() {
    let key = || RecordKey::with(&ring::aead::AES_256_GCM, &[3; 32], &[9; 12], 0).unwrap();
    let mut sealing = key();
    let [first, second] = [b"first", b"other"].map(|content| {
        let mut record = vec![0; content.len() + OVERHEAD];
        record[5..10].copy_from_slice(content);
        sealing.seal(&mut record, HANDSHAKE, content.len());
        record
    });
    for at in 0..first.len() {
        let mut altered = first.clone();
        altered[at] ^= 0x10;
        assert_eq!(key().open(&mut altered, 0), Err(Forged), "byte {at}");
    }
    assert_eq!(key().open(&mut second.clone(), 0), Err(Forged), "the second comes first");
    let mut opening = key();
    assert!(opening.open(&mut first.clone(), 0).is_ok());
    assert_eq!(opening.open(&mut first.clone(), 0), Err(Forged), "the first comes twice");
}

#[test]
fn bytes_that_are_no_record_end_the_stream_and_the_peer_is_told() {
    let not_sealed = [[23, 3, 3, 0, 20].as_slice(), &[7; 20]].concat();
    let cases: [&[u8]; 5] = [b"PGFERRY\n", &[23, 3, 3, 255, 255], &[23, 3, 3, 0, 3, 1, 2, 3], &[22, 3, 3, 0, 20], &not_sealed];
    for nonsense in cases {
        let (mut client, mut server) = pair();
        // Past the session, into the socket.
        nix::unistd::write(&client, nonsense).unwrap();
        let error = server.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{nonsense:?}: {error}");
        let error = client.read(&mut [0]).unwrap_err();
        assert!(error.to_string().contains("alert"), "{nonsense:?}: {error}");
        assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::InvalidData, "it stays ended");
    }
}

#[test]
fn a_peer_that_sends_records_without_data_is_not_waited_for() {
    let (mut client, mut server) = pair();
    client.session().say_nothing(1000);
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::InvalidData);
}
