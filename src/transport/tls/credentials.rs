//! Certificates and keys from a directory.
//!
//! The layout is the one that QEMU and libvirt use, so that what is there serves here: `ca-cert.pem` at both ends,
//! `server-cert.pem` and `server-key.pem` at the receiver, `client-cert.pem` and `client-key.pem` at the sender, and
//! `ca-crl.pem` if there is one. Each end reads only its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::error::Role;

/// A directory that is no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file is missing, or may not be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read the key, so it may be theirs as well.
    #[error("{0} can be read by others (mode {mode:04o}): `chmod 600 {0}`, and make a new key if they may have", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is something else.
    #[error("{} holds no {what} in PEM form", path.display())]
    Contents {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// What it holds cannot be used.
    #[error("{} cannot be used", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The key belongs to another certificate.
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    Mismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
}

/// What one end needs.
pub(super) struct Credentials {
    pub(super) ca_path: PathBuf,
    pub(super) certificate_path: PathBuf,
    pub(super) key_path: PathBuf,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
    /// This end's certificate and those between it and the CA.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Reads what `role` needs.
    pub(super) fn read(directory: &Path, role: Role) -> Result<Self, CredentialsError> {
        let [certificate, key] = match role {
            Role::Sender => ["client-cert.pem", "client-key.pem"],
            Role::Receiver => ["server-cert.pem", "server-key.pem"],
        };
        let ca_path = directory.join("ca-cert.pem");
        let mut roots = RootCertStore::empty();
        for ca in certificates(&ca_path)? {
            roots.add(ca).map_err(|source| CredentialsError::Unusable { path: ca_path.clone(), source })?;
        }
        let certificate_path = directory.join(certificate);
        let key_path = directory.join(key);
        let (chain, key) = (certificates(&certificate_path)?, private_key(&key_path)?);
        let revoked = revocations(&directory.join("ca-crl.pem"))?;
        Ok(Self { ca_path, certificate_path, key_path, roots: Arc::new(roots), revoked, chain, key })
    }

    /// What is wrong with `chain` and `key`, if a configuration cannot be made of them.
    pub(super) fn unusable(certificate: &Path, key: &Path, source: rustls::Error) -> CredentialsError {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        match source {
            rustls::Error::InconsistentKeys(_) => CredentialsError::Mismatch { key, certificate },
            rustls::Error::InvalidCertificate(_) => CredentialsError::Unusable { path: certificate, source },
            _ => CredentialsError::Unusable { path: key, source },
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let wrong = || CredentialsError::Contents { path: path.to_owned(), what: "certificate" };
    let pem = contents(open(path)?, path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|_| wrong())?;
    if found.is_empty() { Err(wrong()) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CredentialsError::Exposed { path: path.to_owned(), mode });
    }
    let pem = contents(file, path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| CredentialsError::Contents { path: path.to_owned(), what: "private key (without a password)" })
}

/// None is the rule.
fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, CredentialsError> {
    let file = match open(path) {
        Err(CredentialsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let pem = contents(file, path)?;
    let wrong = |_| CredentialsError::Contents { path: path.to_owned(), what: "certificate revocation list" };
    CertificateRevocationListDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(wrong)
}

fn open(path: &Path) -> Result<File, CredentialsError> {
    File::open(path).map_err(|source| CredentialsError::Read { path: path.to_owned(), source })
}

fn contents(file: File, path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// More than any of these files is long.
const MOST: u64 = 16 << 20;
