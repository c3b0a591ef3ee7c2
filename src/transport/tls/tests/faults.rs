//! Each thing that can be wrong with a certificate or its files is said at the end that sees it, and as well as can be at
//! the other.

use std::io::Read;
use std::path::Path;

use tempfile::TempDir;

use super::certificates::{Authority, Issued, Purpose, Says, fill, good, set_mode};
use super::{PATIENCE, shake};
use crate::transport::tls::{ClientTls, ServerTls};

/// Two directories of one CA, a receiver's and a sender's, with certificates that say so.
fn directories(server: &Says, client: &Says) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("CA");
    fill(directory.path(), &authority, &authority.issue(server), &authority.issue(client));
    directory
}

/// What each end says: the client, and the server. A client hears only afterwards what a server thinks of it.
fn words(client: &Path, server: &Path) -> [String; 2] {
    let (client, server) = shake(client, server);
    let client = match client {
        Err(error) => error.to_string(),
        Ok(mut stream) => {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.read(&mut [0]).expect_err("nothing is wrong").to_string()
        }
    };
    [client, server.expect_err("nothing is wrong").to_string()]
}

fn assert_words([client, server]: [String; 2], expected: [&str; 2]) {
    assert!(client.contains(expected[0]), "the client says {client:?}, not {:?}", expected[0]);
    assert!(server.contains(expected[1]), "the server says {server:?}, not {:?}", expected[1]);
}

#[test]
fn both_ends_say_what_is_wrong_with_a_server() {
    let good = Says::good(Purpose::Server);
    let elsewhere = Says { names: vec!["far.example".to_owned(), "192.0.2.7".to_owned()], ..good.clone() };
    for (server, says) in [
        (Says { from: -30, until: -1, ..good.clone() }, ["the receiver's certificate expired on 2", "server-cert.pem): it expired on 2"]),
        (Says { from: 1, ..good.clone() }, ["the receiver's certificate is not valid before 2", "server-cert.pem): it is not valid before 2"]),
        (
            elsewhere,
            [
                "the receiver's certificate is not for 127.0.0.1 but for far.example, 192.0.2.7",
                "is not for the name or address that was connected to",
            ],
        ),
        (Says { names: vec![], ..good.clone() }, ["it names no host", "is not for the name or address that was connected to"]),
        (Says { purpose: Purpose::Client, ..good }, ["the receiver's certificate is not made for this role", "is not made for this role"]),
    ] {
        let directory = directories(&server, &Says::good(Purpose::Client));
        assert_words(words(directory.path(), directory.path()), says);
    }
}

#[test]
fn both_ends_say_what_is_wrong_with_a_client() {
    let good = Says::good(Purpose::Client);
    for (client, says) in [
        (Says { from: -30, until: -1, ..good.clone() }, ["client-cert.pem): it expired on 2", "the sender's certificate expired on 2"]),
        (Says { from: 1, ..good.clone() }, ["client-cert.pem): it is not valid before 2", "the sender's certificate is not valid before 2"]),
        (Says { purpose: Purpose::Server, ..good }, ["is not made for this role", "the sender's certificate is not made for this role"]),
    ] {
        let directory = directories(&Says::good(Purpose::Server), &client);
        assert_words(words(directory.path(), directory.path()), says);
    }
}

#[test]
fn both_ends_say_whose_ca_is_another() {
    // Whether or not the two have the same name.
    for names in [["one", "other"], ["same", "same"]] {
        let [ours, theirs] = names.map(Authority::new);
        let issue = |authority: &Authority, purpose| authority.issue(&Says::good(purpose));
        let [ours_everywhere, theirs_everywhere, wrong_client] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        fill(ours_everywhere.path(), &ours, &issue(&ours, Purpose::Server), &issue(&ours, Purpose::Client));
        fill(theirs_everywhere.path(), &theirs, &issue(&theirs, Purpose::Server), &issue(&theirs, Purpose::Client));
        fill(wrong_client.path(), &ours, &issue(&ours, Purpose::Server), &issue(&theirs, Purpose::Client));
        assert_words(
            words(theirs_everywhere.path(), ours_everywhere.path()),
            ["the receiver's certificate was not issued by the CA in", "was not issued by a CA known there"],
        );
        assert_words(
            words(wrong_client.path(), ours_everywhere.path()),
            ["was not issued by a CA known there", "the sender's certificate was not issued by the CA in"],
        );
    }
}

#[test]
fn files_that_are_no_use_are_named() {
    let role = |name: &str| name.starts_with("client");
    let load = |directory: &Path, client: bool| {
        let error = if client { ClientTls::from_directory(directory).err() } else { ServerTls::from_directory(directory).err() };
        error.map(|error| error.to_string())
    };
    for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"] {
        let directory = good();
        let path = directory.path().join(name);
        std::fs::write(&path, "-----BEGIN NOTHING-----\n-----END NOTHING-----\n").unwrap();
        let said = load(directory.path(), role(name)).unwrap();
        assert!(said.contains(name) && said.contains("in PEM form"), "{said}");
        std::fs::remove_file(&path).unwrap();
        let said = load(directory.path(), role(name)).unwrap();
        assert!(said.contains(name) && said.contains("cannot be read"), "{said}");
        if name != "ca-cert.pem" {
            assert_eq!(load(directory.path(), !role(name)), None, "the other role does not need {name}");
        }
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    for (name, client) in [("server-key.pem", false), ("client-key.pem", true)] {
        for (mode, text) in [(0o640, "0640"), (0o604, "0604"), (0o620, "0620")] {
            let directory = good();
            let path = directory.path().join(name);
            set_mode(&path, mode);
            let error = match client {
                true => ClientTls::from_directory(directory.path()).unwrap_err(),
                false => ServerTls::from_directory(directory.path()).unwrap_err(),
            };
            let said = error.to_string();
            assert!(said.contains(text) && said.contains(&format!("chmod 600 {}", path.display())), "{said}");
            set_mode(&path, 0o400);
            assert!(client || ServerTls::from_directory(directory.path()).is_ok());
        }
    }
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let directory = good();
    let Issued { key, .. } = Authority::new("CA").issue(&Says::good(Purpose::Client));
    std::fs::write(directory.path().join("client-key.pem"), key).unwrap();
    let said = ClientTls::from_directory(directory.path()).unwrap_err().to_string();
    assert!(said.contains("client-key.pem is not the key of") && said.contains("client-cert.pem"), "{said}");
}
