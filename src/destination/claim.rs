//! What a connection claims.

use crate::transport::PeerCertificate;
use crate::wire::{SessionId, Token};

/// What a connection says that it belongs to, and with which right.
pub(super) struct Claim {
    pub(super) session: SessionId,
    pub(super) token: Token,
    /// Where there is TLS.
    pub(super) certificate: Option<PeerCertificate>,
}
