//! TLS between the programs: migrations, and what each end says when there is none.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pageferry::stats::{GuestOwner, Outcome};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tempfile::TempDir;

use crate::certificates::{Authority, Purpose, Says, fill, good, set_mode};
use crate::processes::{Listening, MOMENT, RECEIVE, SEND, compare, kvm, run};
use crate::{GUEST, GUEST_BYTES, SLOWLY, has_arrived, receiver, runs_on};

/// How soon two ends that do not get on have to know.
const SOON: Duration = Duration::from_secs(4);

fn tls(directory: &Path) -> String {
    format!("--tls {}", directory.display())
}

fn directory(server: &Says, client: &Says) -> TempDir {
    let (directory, authority) = (TempDir::new().expect("a directory"), Authority::new("CA"));
    fill(directory.path(), &authority, &authority.issue(server), &authority.issue(client));
    directory
}

/// Sends with the sender's and the receiver's flags, and fails unless the guest stays soon, for a reason with the first
/// words, and the receiver says the second.
fn comes_to_nothing(sender: &str, receiver_flags: &str, outcome: Outcome, words: [&str; 2]) -> Result<()> {
    let mut receiver = receiver(receiver_flags)?;
    let since = Instant::now();
    let sent = receiver.send(GUEST, sender)?.wait(MOMENT)?;
    ensure!(since.elapsed() < SOON, "took {:?}: {sent}", since.elapsed());
    let report = runs_on(sent, outcome, if outcome == Outcome::Refused { 3 } else { 1 })?;
    ensure!(report.reason.contains(words[0]), "the sender says {:?}, not {:?}", report.reason, words[0]);
    let said = receiver.process.stderr.next_with("came to nothing", MOMENT)?;
    ensure!(said.contains(words[1]), "the receiver says {said:?}, not {:?}", words[1]);
    ensure!(receiver.process.is_running()?, "the receiver has ended");
    Ok(())
}

fn moves(guest: &str, bytes: u64, flags: &str) -> Result<()> {
    let (keys, images) = (good(), TempDir::new()?);
    let [source, destination] = ["source", "destination"].map(|name| images.path().join(name));
    let mut receiver = receiver(&format!("{} --hold --dump {}", tls(keys.path()), destination.display()))?;
    let sent = receiver.send(guest, &format!("{} {flags} --dump {}", tls(keys.path()), source.display()))?.wait(MOMENT)?.expect(0)?.report()?;
    ensure!(sent.outcome == Outcome::Completed && sent.guest_owner == GuestOwner::Destination, "{}", sent.to_json());
    has_arrived(&mut receiver)?;
    compare(&source, &destination, bytes)
}

#[test]
fn threads_are_moved_over_tls() -> Result<()> {
    for flags in ["", "--channels 5 --compress none --delta off", "--max-rounds 0", "--bandwidth 200Mbit/s"] {
        moves(GUEST, GUEST_BYTES, flags)?;
    }
    Ok(())
}

#[test]
fn a_vcpu_is_moved_over_tls() -> Result<()> {
    if let Err(reason) = kvm() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    moves("kvm:memory=64MiB,fill=16MiB,working-set=4MiB", GUEST_BYTES, "")
}

#[test]
fn a_name_is_as_good_as_an_address_and_a_socket_is_this_host() -> Result<()> {
    let (keys, place) = (good(), TempDir::new()?);
    let tls = tls(keys.path());
    for listen in ["localhost:0".to_owned(), format!("unix:{}", place.path().join("socket").display())] {
        let mut receiver = Listening::start(&listen, &tls)?;
        receiver.send(GUEST, &tls)?.wait(MOMENT)?.expect(0)?;
        has_arrived(&mut receiver)?;
    }
    Ok(())
}

#[test]
fn tls_needs_no_insecure_beyond_loopback() -> Result<()> {
    let keys = good();
    let receiver = Listening::start("0.0.0.0:0", &tls(keys.path()))?;
    ensure!(receiver.address.starts_with("0.0.0.0:"), "listens on {}", receiver.address);
    // Nothing answers there: it comes that far.
    let sent = run(SEND, &format!("--to 127.0.0.1:1 --guest {GUEST} {}", tls(keys.path())))?.expect(1)?;
    ensure!(sent.stderr.contains("cannot connect"), "{sent}");
    Ok(())
}

#[test]
fn a_guest_that_is_called_off_over_tls_runs_on() -> Result<()> {
    let keys = good();
    let mut receiver = receiver(&tls(keys.path()))?;
    let mut sender = receiver.send(GUEST, &format!("{SLOWLY} {}", tls(keys.path())))?;
    sender.stderr.next_with("copying", MOMENT)?;
    sender.signal(nix::sys::signal::Signal::SIGINT)?;
    runs_on(sender.wait(MOMENT)?, Outcome::Aborted, 1)?;
    let dropped = crate::was_dropped(&mut receiver)?;
    ensure!(dropped.reason.contains("cancelled"), "{}", dropped.to_json());
    Ok(())
}

#[test]
fn a_receiver_with_a_bad_certificate_is_not_trusted_and_knows_why() -> Result<()> {
    let good = Says::good(Purpose::Server);
    for (server, words) in [
        (
            Says { from: -9, until: -1, ..good.clone() },
            ["the receiver's certificate expired on", "the sender does not accept this side's certificate"],
        ),
        (Says { from: 1, until: 9, ..good.clone() }, ["the receiver's certificate is not valid before", "it is not valid before"]),
        (Says { names: vec!["far.example".to_owned()], ..good }, ["is not for 127.0.0.1 but for far.example", "is not for the name or address"]),
    ] {
        let keys = directory(&server, &Says::good(Purpose::Client));
        comes_to_nothing(&tls(keys.path()), &tls(keys.path()), Outcome::Failed, words)?;
    }
    Ok(())
}

#[test]
fn a_sender_with_a_bad_certificate_is_not_trusted_and_knows_why() -> Result<()> {
    let good = Says::good(Purpose::Client);
    for (client, words) in [
        (Says { from: -9, until: -1, ..good.clone() }, ["client-cert.pem): it expired on", "the sender's certificate expired on"]),
        (Says { from: 1, until: 9, ..good.clone() }, ["it is not valid before", "the sender's certificate is not valid before"]),
        (Says { purpose: Purpose::Server, ..good }, ["is not made for this role", "the sender's certificate is not made for this role"]),
    ] {
        let keys = directory(&Says::good(Purpose::Server), &client);
        comes_to_nothing(&tls(keys.path()), &tls(keys.path()), Outcome::Failed, words)?;
    }
    Ok(())
}

#[test]
fn another_ca_is_said_on_both_sides() -> Result<()> {
    let [ours, theirs] = ["ours", "theirs"].map(Authority::new);
    let [all_ours, all_theirs, stranger] = [(&ours, &ours), (&theirs, &theirs), (&ours, &theirs)].map(|(trusted, of_client)| {
        let directory = TempDir::new().expect("a directory");
        let client = of_client.issue(&Says::good(Purpose::Client));
        fill(directory.path(), trusted, &trusted.issue(&Says::good(Purpose::Server)), &client);
        directory
    });
    let words = ["the receiver's certificate was not issued by the CA in", "was not issued by a CA known there"];
    comes_to_nothing(&tls(all_theirs.path()), &tls(all_ours.path()), Outcome::Failed, words)?;
    let words = ["was not issued by a CA known there", "the sender's certificate was not issued by the CA in"];
    comes_to_nothing(&tls(stranger.path()), &tls(all_ours.path()), Outcome::Failed, words)
}

#[test]
fn plain_and_tls_ends_tell_each_other_soon() -> Result<()> {
    let keys = good();
    comes_to_nothing("", &tls(keys.path()), Outcome::Refused, ["takes TLS connections only", "the sender does not use TLS"])?;
    comes_to_nothing(&tls(keys.path()), "", Outcome::Failed, ["may run without --tls", "the sender uses TLS, and this receiver does not"])
}

#[test]
fn a_sender_without_a_certificate_is_told_that_it_needs_one() -> Result<()> {
    let keys = good();
    let mut receiver = receiver(&tls(keys.path()))?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(keys.path().join("ca-cert.pem"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let mut client = ClientConnection::new(config, ServerName::try_from("127.0.0.1")?)?;
    let mut socket = TcpStream::connect(&receiver.address)?;
    socket.set_read_timeout(Some(MOMENT))?;
    let refused = loop {
        if let Err(error) = client.complete_io(&mut socket) {
            break error;
        }
        if !client.is_handshaking() && client.wants_read() {
            continue;
        }
    };
    ensure!(refused.to_string().contains("CertificateRequired"), "{refused}");
    let said = receiver.process.stderr.next_with("came to nothing", MOMENT)?;
    ensure!(said.contains("the sender's certificate is missing"), "{said}");
    Ok(())
}

#[test]
fn files_that_cannot_be_used_are_named_before_anything_begins() -> Result<()> {
    let programs = [(SEND, format!("--to 127.0.0.1:1 --guest {GUEST}"), "client"), (RECEIVE, "--listen 127.0.0.1:0".to_owned(), "server")];
    for (program, flags, role) in programs {
        let keys = good();
        let key = keys.path().join(format!("{role}-key.pem"));
        let says = |words: &[&str]| -> Result<()> {
            let ended = run(program, &format!("{flags} {}", tls(keys.path())))?.expect(2)?;
            for word in words {
                ensure!(ended.stderr.contains(word), "nothing of {word:?} in: {ended}");
            }
            Ok(())
        };
        set_mode(&key, 0o644);
        says(&["--tls", "can be read by others (mode 0644)", &format!("chmod 600 {}", key.display())])?;
        std::fs::remove_file(&key)?;
        says(&["--tls", &format!("{} cannot be read", key.display()), "No such file"])?;
    }
    Ok(())
}

#[cfg(feature = "keys")]
mod keys {
    use super::*;
    use crate::processes::{Ended, PAGEFERRY};

    fn make(directory: &Path, flags: &str) -> Result<Ended> {
        run(PAGEFERRY, &format!("keys {} {flags}", directory.display()))
    }

    #[test]
    fn what_the_keys_command_makes_is_enough_for_two_hosts() -> Result<()> {
        let place = TempDir::new()?;
        let directory = place.path().join("keys");
        let ended = make(&directory, "--host alpha,127.0.0.1 --host beta,localhost,127.0.0.1 --days 2")?.expect(0)?;
        for word in ["--listen 0.0.0.0:7000 --tls", "--to beta:7000 --tls", "ca-key.pem"] {
            ensure!(ended.stdout.contains(word), "nothing of {word:?} in: {ended}");
        }
        let mut receiver = receiver(&tls(&directory.join("beta")))?;
        receiver.send(GUEST, &tls(&directory.join("alpha")))?.wait(MOMENT)?.expect(0)?;
        has_arrived(&mut receiver).map(drop)
    }

    #[test]
    fn keys_are_for_their_owner_and_never_overwritten() -> Result<()> {
        let place = TempDir::new()?;
        make(place.path(), "--host alpha")?.expect(0)?;
        let key = place.path().join("alpha/server-key.pem");
        let mode = std::os::unix::fs::PermissionsExt::mode(&key.metadata()?.permissions());
        ensure!(mode & 0o777 == 0o600, "mode {mode:o}");
        let before = std::fs::read(&key)?;
        for flags in ["--host alpha", "--host gamma"] {
            let ended = make(place.path(), flags)?.expect(1)?;
            ensure!(ended.stderr.contains("exists and is not overwritten"), "{ended}");
        }
        ensure!(std::fs::read(&key)? == before && !place.path().join("gamma").exists());
        Ok(())
    }

    #[test]
    fn hosts_that_make_no_sense_are_said() -> Result<()> {
        let place = TempDir::new()?;
        for (flags, word) in [
            ("--host ../up", "\"../up\" is no host name"),
            ("--host a,,b", "\"\" is no host name"),
            ("--host a --days 0", "1 to 36500"),
            ("", "--host"),
        ] {
            let ended = make(&place.path().join("keys"), flags)?.expect(2)?;
            ensure!(ended.stderr.contains(word), "nothing of {word:?} in: {ended}");
        }
        let ended = make(&place.path().join("keys"), "--host a --host a")?.expect(1)?;
        ensure!(ended.stderr.contains("twice"), "{ended}");
        ensure!(!place.path().join("keys").exists(), "made something all the same");
        Ok(())
    }
}
