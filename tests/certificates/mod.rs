//! Certificates made on the spot, good and bad ones.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SerialNumber};

/// The numbers of the certificates that a CA issues.
const SERVER_SERIAL: u64 = 1;
pub(crate) const CLIENT_SERIAL: u64 = 2;

/// A CA.
pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What a certificate says. Times are days from now.
#[derive(Clone)]
pub(crate) struct Says {
    pub(crate) names: Vec<String>,
    pub(crate) from: i64,
    pub(crate) until: i64,
    pub(crate) purpose: Purpose,
}

/// What a certificate is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Server,
    Client,
}

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue(&self, says: &Says) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(says.names.clone()).unwrap();
        (params.not_before, params.not_after) = (in_days(says.from).into(), in_days(says.until).into());
        params.serial_number = Some(SerialNumber::from(match says.purpose {
            Purpose::Server => SERVER_SERIAL,
            Purpose::Client => CLIENT_SERIAL,
        }));
        params.extended_key_usages = vec![match says.purpose {
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        Issued { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Says {
    /// Nothing wrong with it, at this machine.
    pub(crate) fn good(purpose: Purpose) -> Self {
        Self { names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()], from: -1, until: 30, purpose }
    }
}

/// Fills a directory with what a receiver and a sender need there: the CA they trust, and their own certificates.
pub(crate) fn fill(directory: &Path, trusted: &Authority, server: &Issued, client: &Issued) {
    std::fs::write(directory.join("ca-cert.pem"), &trusted.pem).unwrap();
    for (name, Issued { certificate, key }) in [("server", server), ("client", client)] {
        std::fs::write(directory.join(format!("{name}-cert.pem")), certificate).unwrap();
        let path = directory.join(format!("{name}-key.pem"));
        std::fs::write(&path, key).unwrap();
        set_mode(&path, 0o600);
    }
}

/// A directory with everything in order.
pub(crate) fn good() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("CA");
    let [server, client] = [Purpose::Server, Purpose::Client].map(|purpose| authority.issue(&Says::good(purpose)));
    fill(directory.path(), &authority, &server, &client);
    directory
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn in_days(days: i64) -> SystemTime {
    let distance = Duration::from_secs(24 * 60 * 60 * days.unsigned_abs());
    if days < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
}
