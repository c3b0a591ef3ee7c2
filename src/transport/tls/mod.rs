//! TLS 1.3 with certificates on both sides, for streams.
//!
//! Handshakes, certificates and key schedules are rustls's, through its unbuffered interface. The records that follow are
//! this module's own, as they are the kernel's where it does TLS (which is what rustls hands the keys out for; see
//! [`rustls::kernel`]): so the two directions are independent halves that two threads can use at the same time, a record
//! is sealed and opened in the buffer it travels in, and nothing is allocated per record. The kernel's TLS is not used:
//! it is often not there, and with the vector AES of today's processors sealing is not the bottleneck.
//!
//! No resumption, no tickets, no early data: a session is a handful of connections that live long.
//!
//! - TLS 1.3: <https://www.rfc-editor.org/rfc/rfc8446>; records in section 5, KeyUpdate in 4.6.3 and 7.2, alerts in 6
//! - the files: <https://www.qemu.org/docs/master/system/tls.html>

mod check;
mod credentials;
mod error;
mod fault;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handshake;
mod incoming;
mod outgoing;
mod parties;
mod record;
mod session;
#[cfg(test)]
mod tests;

pub use credentials::CredentialsError;
pub use error::{Role, TlsError};
pub use fault::{CertificateFault, Date};
pub use parties::{ClientTls, ServerTls};
pub(super) use session::Session;
