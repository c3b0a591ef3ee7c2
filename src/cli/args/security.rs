//! What `--tls` and `--insecure` come to.

use std::path::Path;

use super::{SecurityArgs, UsageError, check_plain_text};
use crate::transport::{ClientSecurity, Endpoint, ServerSecurity};

impl SecurityArgs {
    /// How the sender's connections to `endpoint` are protected. Resolves its name, if they are not.
    pub(super) fn sender(&self, endpoint: &Endpoint) -> Result<ClientSecurity, UsageError> {
        match &self.tls {
            None => check_plain_text("--to", endpoint, self.insecure).map(|()| ClientSecurity::Plain),
            Some(directory) => client(directory),
        }
    }

    /// How the receiver's connections at `endpoint` are protected. Resolves its name, if they are not.
    pub(super) fn receiver(&self, endpoint: &Endpoint) -> Result<ServerSecurity, UsageError> {
        match &self.tls {
            None => check_plain_text("--listen", endpoint, self.insecure).map(|()| ServerSecurity::Plain),
            Some(directory) => server(directory),
        }
    }
}

#[cfg(feature = "tls")]
fn client(directory: &Path) -> Result<ClientSecurity, UsageError> {
    crate::transport::ClientTls::from_directory(directory).map(ClientSecurity::Tls).map_err(|error| unusable(directory, &error))
}

#[cfg(feature = "tls")]
fn server(directory: &Path) -> Result<ServerSecurity, UsageError> {
    crate::transport::ServerTls::from_directory(directory).map(ServerSecurity::Tls).map_err(|error| unusable(directory, &error))
}

#[cfg(feature = "tls")]
fn unusable(directory: &Path, error: &dyn std::error::Error) -> UsageError {
    let problem = std::iter::successors(error.source(), |cause| cause.source()).fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    UsageError { flag: "--tls", value: directory.display().to_string(), problem }
}

#[cfg(not(feature = "tls"))]
fn client(directory: &Path) -> Result<ClientSecurity, UsageError> {
    Err(missing(directory))
}

#[cfg(not(feature = "tls"))]
fn server(directory: &Path) -> Result<ServerSecurity, UsageError> {
    Err(missing(directory))
}

#[cfg(not(feature = "tls"))]
fn missing(directory: &Path) -> UsageError {
    UsageError::not_built_in("--tls", &directory.display(), "use --insecure on a network you trust")
}
