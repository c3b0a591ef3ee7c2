//! Sources and receivers with certificates that are not to be trusted, and none at all.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pageferry::destination::ReceiverOptions;
use pageferry::source::Migration;
use pageferry::transport::{ClientSecurity, ClientTls, Endpoint, ServerSecurity, ServerTls};
use pageferry::wire::{Lane, Message};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::certificates::{Authority, CLIENT_SERIAL, Purpose, Says, fill, in_days};
use crate::honest::{Host, TIMEOUTS, migrate, running_guest};
use crate::source::{EvilSource, Stage, connect};
use crate::table::Row;
use crate::talk::PATIENCE;

fn host(security: ServerSecurity) -> Host {
    Host::with_options(&"127.0.0.1:0".parse().unwrap(), ReceiverOptions { timeouts: TIMEOUTS, security, ..ReceiverOptions::default() })
}

fn client(directory: &Path) -> ClientSecurity {
    ClientSecurity::Tls(ClientTls::from_directory(directory).unwrap())
}

fn server(directory: &Path) -> ServerSecurity {
    ServerSecurity::Tls(ServerTls::from_directory(directory).unwrap())
}

/// Runs a migration that must fail; what each end says.
fn fails(what: &str, security: ClientSecurity, host: &Host, directory: &Path) -> Row {
    let mut guest = running_guest();
    let failure = migrate(Migration::to(host.endpoint.clone()).security(security), &mut guest).expect_err(what);
    assert!(guest.is_running(), "{what}: the guest runs on");
    assert_eq!(host.sessions(), 0, "{what}");
    Row::new(what, plain(&failure.error.in_full(), directory), plain(&host.first_said(), directory))
}

/// Without what differs from run to run.
fn plain(text: &str, directory: &Path) -> String {
    let text = text.replace(&directory.display().to_string(), "DIR");
    let word = |word: &str| match word.as_bytes() {
        [_, _, _, _, b'-', _, _, b'-', _, _] => "DATE".to_owned(),
        [_, _, b':', _, _] => "TIME".to_owned(),
        _ => match word.split_once("127.0.0.1:") {
            Some((before, after)) => format!("{before}PEER{}", after.trim_start_matches(|c: char| c.is_ascii_digit())),
            None => word.to_owned(),
        },
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Each with an honest guest that comes in over TLS after it.
pub(crate) fn bad_certificates() -> Vec<Row> {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let good = [Says::good(Purpose::Server), Says::good(Purpose::Client)];
    let keys = |authority: &Authority, server: &Says, client: &Says| {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path(), authority, &ours.issue(server), &ours.issue(client));
        directory
    };
    let honest = keys(&ours, &good[0], &good[1]);
    let mut rows = Vec::new();
    let expired = |says: &Says| Says { from: -9, until: -1, ..says.clone() };
    let early = |says: &Says| Says { from: 1, until: 9, ..says.clone() };
    for (what, client_says) in [
        ("a source whose certificate has expired", expired(&good[1])),
        ("a source whose certificate is not valid yet", early(&good[1])),
        ("a source with a receiver's certificate", Says { purpose: Purpose::Server, ..good[1].clone() }),
    ] {
        let (bad, host) = (keys(&ours, &good[0], &client_says), host(server(honest.path())));
        rows.push(fails(what, client(bad.path()), &host, bad.path()));
        host.serves_on_over(client(honest.path()));
    }
    let stranger = tempfile::tempdir().unwrap();
    fill(stranger.path(), &ours, &ours.issue(&good[0]), &theirs.issue(&good[1]));
    let with_host = host(server(honest.path()));
    let mut row = fails("a source whose certificate another CA issued", client(stranger.path()), &with_host, honest.path());
    row.heard = row.heard.replace(&stranger.path().display().to_string(), "DIR");
    rows.push(row);
    with_host.serves_on_over(client(honest.path()));

    let listed = keys(&ours, &good[0], &good[1]);
    std::fs::write(listed.path().join("ca-crl.pem"), revocations(&ours)).unwrap();
    let with_list = host(server(listed.path()));
    rows.push(fails("a source whose certificate was revoked", client(honest.path()), &with_list, honest.path()));

    let with_host = host(server(honest.path()));
    rows.push(nameless(&with_host, honest.path()));
    with_host.serves_on_over(client(honest.path()));

    let with_host = host(server(honest.path()));
    rows.push(fails("a source without TLS", ClientSecurity::Plain, &with_host, honest.path()));
    with_host.serves_on_over(client(honest.path()));
    let without = host(ServerSecurity::Plain);
    rows.push(fails("a source with TLS where there is none", client(honest.path()), &without, honest.path()));
    without.serves_on();

    for (what, server_says) in [
        ("a receiver whose certificate has expired", expired(&good[0])),
        ("a receiver whose certificate is for another host", Says { names: vec!["far.example".to_owned()], ..good[0].clone() }),
    ] {
        let bad = keys(&ours, &server_says, &good[1]);
        rows.push(fails(what, client(honest.path()), &host(server(bad.path())), bad.path()));
    }
    let impostor = tempfile::tempdir().unwrap();
    fill(impostor.path(), &ours, &theirs.issue(&good[0]), &ours.issue(&good[1]));
    let with_impostor = host(server(impostor.path()));
    let mut row = fails("a receiver whose certificate another CA issued", client(honest.path()), &with_impostor, honest.path());
    row.said = row.said.replace(&impostor.path().display().to_string(), "DIR");
    rows.push(row);
    rows.push(another_certificate());
    rows.extend(another_certificate_asks());
    rows
}

/// A source that shows no certificate, which none of the engine's own would do.
fn nameless(host: &Host, directory: &Path) -> Row {
    let Endpoint::Tcp(address) = &host.endpoint else { panic!("a TCP address") };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca-cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    stream.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = Vec::new();
    Message::Hello(crate::source::offer()).encode(&mut hello).unwrap();
    let _ = stream.write_all(&hello);
    // To this end the handshake is over before the other has looked at what it lacks.
    let error = stream.read(&mut [0]).unwrap_err();
    let alert = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    assert_eq!(alert, Some(&rustls::Error::AlertReceived(AlertDescription::CertificateRequired)), "{error}");
    assert_eq!(host.sessions(), 0);
    Row::new("a source without a certificate", "the alert certificate_required", plain(&host.first_said(), directory))
}

fn revocations(authority: &Authority) -> String {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(CLIENT_SERIAL),
        revocation_time: in_days(-1).into(),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: in_days(-1).into(),
        next_update: in_days(9).into(),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&authority.issuer).unwrap().pem().unwrap()
}

/// Two hosts that the same CA knows.
fn two_hosts() -> [TempDir; 2] {
    let authority = Authority::new("CA");
    [(); 2].map(|()| {
        let directory = tempfile::tempdir().unwrap();
        let [server, client] = [Purpose::Server, Purpose::Client].map(|purpose| authority.issue(&Says::good(purpose)));
        fill(directory.path(), &authority, &server, &client);
        directory
    })
}

/// Questions about a session with its token and the certificate of another host: while it lives, and when it is over. They
/// decide nothing, and the session's own source is answered.
fn another_certificate_asks() -> Vec<Row> {
    let [one, other] = two_hosts();
    let host = host(server(one.path()));
    let mut evil = EvilSource::over(client(one.path()), Stage::Ready, &host.endpoint);
    let (query, resume) = (evil.query(), Message::Resume { session: evil.offer.session, token: evil.offer.token });
    let ask = |directory: &Path, question: &Message| {
        let mut asking = connect(&host.endpoint, &client(directory));
        asking.say(question);
        match asking.hear() {
            Some(Message::Answer(status)) => format!("Answer: {status:?}"),
            Some(Message::Refuse { reason, detail }) => format!("Refuse ({reason}): {detail}"),
            heard => panic!("{heard:?} to {question:?}"),
        }
    };
    let (alive, resumed) = (ask(other.path(), &query), ask(other.path(), &resume));
    let said = host.first_said();
    assert!(!evil.control.is_over(), "the session lives");
    evil.control.close();
    assert!(host.last_session().ending().is_some());
    while host.control.under_way().remembered == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let (over, resumed_over) = (ask(other.path(), &query), ask(other.path(), &resume));
    assert_eq!([ask(one.path(), &query), ask(one.path(), &resume)], ["Answer: NeverStarted"; 2], "the source's own");
    host.serves_on_over(client(one.path()));
    vec![
        Row::new("a question about a session with another certificate", alive, ""),
        Row::new("Resume of a session with another certificate", resumed, said.clone()),
        Row::new("a question about a session that is over with another certificate", over, ""),
        Row::new("Resume of a session that is over with another certificate", resumed_over, said),
    ]
}

/// A lane with the right session and token, and the certificate of another host that the CA knows.
fn another_certificate() -> Row {
    let [one, other] = two_hosts();
    let host = host(server(one.path()));
    let connect = |directory: &Path| connect(&host.endpoint, &client(directory));
    let offer = crate::source::offer();
    let mut control = connect(one.path());
    control.say(&Message::Hello(offer.clone()));
    assert!(matches!(control.hear(), Some(Message::Accept { .. })));
    let attach = Message::Attach { session: offer.session, token: offer.token, lane: Lane::Bulk(0), generation: 0 };
    let mut thief = connect(other.path());
    thief.say(&attach);
    let Some(Message::Refuse { detail, .. }) = thief.last_words() else { panic!("a lane with another certificate was taken in") };
    let mut own = connect(one.path());
    own.say(&attach);
    assert_eq!(own.hear(), Some(Message::Attached { lane: Lane::Bulk(0) }));
    let row = Row::new("a lane with the token of a session and another certificate", detail, host.first_said());
    control.say(&Message::Abort { reason: "enough".into() });
    host.serves_on_over(client(one.path()));
    row
}
