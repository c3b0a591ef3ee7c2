//! The two roles: what each is set up with, once, and how it makes a connection secure.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use super::check::{Explain, Identity};
use super::credentials::{Credentials, CredentialsError};
use super::error::{Role, TlsError};
use super::handshake;
use crate::transport::{Deadline, Endpoint, Stream};

/// TLS at the sender.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    identity: Arc<Identity>,
}

/// TLS at the receiver.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    identity: Arc<Identity>,
}

impl ClientTls {
    /// With `ca-cert.pem`, `client-cert.pem` and `client-key.pem` of a directory.
    ///
    /// # Errors
    /// When one of these is missing or no use, or others can read the key.
    pub fn from_directory(directory: &Path) -> Result<Self, CredentialsError> {
        let credentials = Credentials::read(directory, Role::Sender)?;
        let provider = provider();
        let identity = Arc::new(Identity::new(Role::Sender, &credentials, &provider)?);
        let Credentials { certificate_path, key_path, chain, key, .. } = credentials;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider knows TLS 1.3")
            .with_webpki_verifier(identity.of_server())
            .with_client_auth_cert(chain, key)
            .map_err(|source| Credentials::unusable(&certificate_path, &key_path, source))?;
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_secret_extraction = true;
        Ok(Self { config: Arc::new(config), identity })
    }

    /// Makes a new connection to `endpoint` secure. The receiver's certificate has to be for its host.
    pub(in crate::transport) fn secure(&self, stream: Stream, endpoint: &Endpoint, deadline: Deadline) -> Result<Stream, TlsError> {
        let name = name(endpoint)?;
        let explain: Arc<dyn Explain> = self.identity.clone();
        let connection = UnbufferedClientConnection::new(Arc::clone(&self.config), name).map_err(|error| explain.failure(error))?;
        handshake::run(connection, stream, explain, deadline)
    }
}

impl ServerTls {
    /// With `ca-cert.pem`, `server-cert.pem` and `server-key.pem` of a directory.
    ///
    /// # Errors
    /// When one of these is missing or no use, or others can read the key.
    pub fn from_directory(directory: &Path) -> Result<Self, CredentialsError> {
        let credentials = Credentials::read(directory, Role::Receiver)?;
        let provider = provider();
        let identity = Arc::new(Identity::new(Role::Receiver, &credentials, &provider)?);
        let Credentials { certificate_path, key_path, chain, key, .. } = credentials;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider knows TLS 1.3")
            .with_client_cert_verifier(identity.of_client())
            .with_single_cert(chain, key)
            .map_err(|source| Credentials::unusable(&certificate_path, &key_path, source))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.enable_secret_extraction = true;
        Ok(Self { config: Arc::new(config), identity })
    }

    /// Makes a connection that came in secure.
    pub(in crate::transport) fn secure(&self, stream: Stream, deadline: Deadline) -> Result<Stream, TlsError> {
        let explain: Arc<dyn Explain> = self.identity.clone();
        let connection = UnbufferedServerConnection::new(Arc::clone(&self.config)).map_err(|error| explain.failure(error))?;
        handshake::run(connection, stream, explain, deadline)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What the receiver's certificate has to be for. A Unix socket is `localhost`.
fn name(endpoint: &Endpoint) -> Result<ServerName<'static>, TlsError> {
    let host = endpoint.host().unwrap_or("localhost");
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name { host: host.to_owned() })
}
