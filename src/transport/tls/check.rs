//! Verifiers, and what an alert means to the end that gets it.
//!
//! An alert is a single byte. Most of what it leaves open can be seen at this end as well: the certificate that the peer
//! does not like is here, and is held against this end's own CA and clock.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{AlertDescription, CertificateError};

use super::credentials::{Credentials, CredentialsError};
use super::error::{Role, TlsError};
use super::fault::CertificateFault;

/// Says what the peer means.
pub(super) trait Explain: Send + Sync {
    /// This end's role, which is `Sender` where it connects.
    fn role(&self) -> Role;
    /// What an alert of the peer means.
    fn alert(&self, alert: AlertDescription) -> TlsError;
    /// What a failure of rustls's means.
    fn failure(&self, error: rustls::Error) -> TlsError;
}

/// This end's certificate and what it trusts.
pub(super) struct Identity {
    role: Role,
    chain: Vec<CertificateDer<'static>>,
    ca: PathBuf,
    certificate: PathBuf,
    of_server: Arc<WebPkiServerVerifier>,
    of_client: Arc<dyn ClientCertVerifier>,
}

impl Identity {
    pub(super) fn new(role: Role, credentials: &Credentials, provider: &Arc<CryptoProvider>) -> Result<Self, CredentialsError> {
        let Credentials { roots, revoked, ca_path, certificate_path, chain, .. } = credentials;
        // Without revocation lists building can fail only for lack of a CA, and there is one.
        let unusable = |error: rustls::server::VerifierBuilderError| {
            let source = rustls::Error::General(error.to_string());
            CredentialsError::Unusable { path: ca_path.with_file_name("ca-crl.pem"), source }
        };
        let of_server = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
        let of_server = of_server.with_crls(revoked.iter().cloned()).only_check_end_entity_revocation().build().map_err(unusable)?;
        let of_client = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
        let of_client = of_client.with_crls(revoked.iter().cloned()).only_check_end_entity_revocation().build().map_err(unusable)?;
        Ok(Self { role, chain: chain.clone(), ca: ca_path.clone(), certificate: certificate_path.clone(), of_server, of_client })
    }

    /// Judges the certificates of receivers.
    pub(super) fn of_server(&self) -> Arc<WebPkiServerVerifier> {
        Arc::clone(&self.of_server)
    }

    /// Judges the certificates of senders.
    pub(super) fn of_client(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.of_client)
    }

    /// What is wrong with this end's own certificate, as far as this end can tell. It does not know the name that the
    /// peer used.
    fn own_fault(&self) -> Option<CertificateFault> {
        let (own, between) = self.chain.split_first()?;
        let now = UnixTime::now();
        let verdict = match self.role {
            Role::Sender => self.of_client.verify_client_cert(own, between, now).map(drop),
            Role::Receiver => {
                let nobody = ServerName::try_from("localhost").ok()?;
                self.of_server.verify_server_cert(own, between, &nobody, &[], now).map(drop)
            }
        };
        match verdict {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => None,
            Err(rustls::Error::InvalidCertificate(error)) => Some(CertificateFault::new(&error, &self.ca)),
            _ => None,
        }
    }
}

impl Explain for Identity {
    fn role(&self) -> Role {
        self.role
    }

    fn alert(&self, alert: AlertDescription) -> TlsError {
        let by = self.role.peer();
        let fault = match alert {
            AlertDescription::CertificateExpired => match self.own_fault() {
                Some(fault @ (CertificateFault::Expired { .. } | CertificateFault::NotValidYet { .. })) => fault,
                _ => CertificateFault::NotValidNow,
            },
            AlertDescription::UnknownCA | AlertDescription::DecryptError => CertificateFault::UnknownIssuer { ca: None },
            AlertDescription::BadCertificate => CertificateFault::NameOrForm,
            AlertDescription::UnsupportedCertificate => CertificateFault::WrongPurpose,
            AlertDescription::CertificateRevoked => CertificateFault::Revoked,
            AlertDescription::CertificateRequired => CertificateFault::Missing,
            AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => CertificateFault::Other("it does not say why".to_owned()),
            alert => return TlsError::Alert { by, alert },
        };
        TlsError::Rejected { by, file: self.certificate.display().to_string(), fault }
    }

    fn failure(&self, error: rustls::Error) -> TlsError {
        let peer = self.role.peer();
        match error {
            rustls::Error::AlertReceived(alert) => self.alert(alert),
            rustls::Error::NoCertificatesPresented => TlsError::Certificate { of: peer, fault: CertificateFault::Missing },
            rustls::Error::InvalidCertificate(error) => TlsError::Certificate { of: peer, fault: CertificateFault::new(&error, &self.ca) },
            source => TlsError::Handshake { peer, source },
        }
    }
}
