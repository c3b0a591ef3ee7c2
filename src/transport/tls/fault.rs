//! What can be wrong with a certificate, in words for whoever has to do something about it.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// Why a certificate is not accepted. Its text goes on from "the certificate".
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateFault {
    /// Its time is over.
    Expired {
        /// Since when.
        on: Option<Date>,
    },
    /// Its time has not come.
    NotValidYet {
        /// When it will.
        before: Option<Date>,
    },
    /// One of these two; an alert does not say which.
    NotValidNow,
    /// Nobody whom this end trusts has signed it.
    UnknownIssuer {
        /// Whom it trusts; `None` if that is known to the other end only.
        ca: Option<PathBuf>,
    },
    /// It is for another host.
    WrongName {
        /// The name or address that was connected to.
        wanted: String,
        /// Those in the certificate.
        names: Vec<String>,
    },
    /// It is for another host, or makes no sense; an alert does not say which.
    NameOrForm,
    /// It is for the other role only, or for none here.
    WrongPurpose,
    /// Its issuer has taken it back, or does not say that it has not.
    Revoked,
    /// There is none.
    Missing,
    /// Something else.
    Other(String),
}

/// A point in time, to the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(pub SystemTime);

impl CertificateFault {
    /// From the verdict of the verifier, which trusts `ca`.
    pub(super) fn new(error: &CertificateError, ca: &std::path::Path) -> Self {
        let date = |time: &UnixTime| Some(Date(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())));
        match error {
            CertificateError::Expired => Self::Expired { on: None },
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired { on: date(not_after) },
            CertificateError::NotValidYet => Self::NotValidYet { before: None },
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotValidYet { before: date(not_before) },
            // Another CA of the same name shows as a wrong signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer { ca: Some(ca.to_owned()) },
            CertificateError::NotValidForNameContext { expected, presented } => {
                Self::WrongName { wanted: expected.to_str().into_owned(), names: presented.iter().map(|name| plain_name(name)).collect() }
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::WrongPurpose,
            CertificateError::Revoked | CertificateError::UnknownRevocationStatus => Self::Revoked,
            other => Self::Other(other.to_string()),
        }
    }
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { on: Some(date) } => write!(f, "expired on {date}"),
            Self::Expired { on: None } => f.write_str("has expired"),
            Self::NotValidYet { before: Some(date) } => write!(f, "is not valid before {date} (or the clocks differ)"),
            Self::NotValidYet { before: None } => f.write_str("is not valid yet (or the clocks differ)"),
            Self::NotValidNow => f.write_str("has expired or is not valid yet, by the other end's clock"),
            Self::UnknownIssuer { ca: Some(ca) } => write!(f, "was not issued by the CA in {}", ca.display()),
            Self::UnknownIssuer { ca: None } => f.write_str("was not issued by a CA known there: both ends need the same ca-cert.pem"),
            Self::WrongName { wanted, names } if names.is_empty() => write!(f, "is not for {wanted}: it names no host (as subjectAltName)"),
            Self::WrongName { wanted, names } => write!(f, "is not for {wanted} but for {}", names.join(", ")),
            Self::NameOrForm => f.write_str("is not for the name or address that was connected to, or is malformed"),
            Self::WrongPurpose => f.write_str("is not made for this role (extended key usage)"),
            Self::Revoked => f.write_str("was revoked"),
            Self::Missing => f.write_str("is missing"),
            Self::Other(text) => write!(f, "cannot be used: {text}"),
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
        // Years from March on, in cycles of 400 of them: leap days come last. See
        // <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
        let shifted = days + 719_468;
        let (cycle, day) = (shifted / 146_097, shifted % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = cycle * 400 + year + u64::from(month <= 2);
        write!(f, "{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
    }
}

/// `DnsName("a")` and `IpAddress(1.2.3.4)`, as rustls gives them, without what is around them.
fn plain_name(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_200, "2024-03-01 00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(Date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), text);
        }
    }
}
