//! What is remembered of sessions that are over, and for whom.
//!
//! The protocol's [`Tombstones`] know a session by its token. Where there is TLS a session is its opener's also when it is
//! over, as it was before: to another certificate it is one that is not known.

use std::collections::HashMap;
use std::time::Instant;

use super::claim::Claim;
use crate::protocol::{Resumption, Timeouts, Tombstone, Tombstones};
use crate::transport::PeerCertificate;
use crate::wire::{AnswerStatus, SessionId};

/// The tombstones of a receiver.
#[derive(Debug)]
pub(super) struct Remembered {
    tombstones: Tombstones,
    /// Of those that began with one.
    certificates: HashMap<SessionId, PeerCertificate>,
}

impl Remembered {
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        Self { tombstones: Tombstones::new(timeouts.tombstone), certificates: HashMap::new() }
    }

    /// Keeps what is left of a `session` that began with `certificate`.
    pub(super) fn keep(&mut self, now: Instant, session: SessionId, stone: Tombstone, certificate: Option<&PeerCertificate>) {
        self.tombstones.keep(now, stone);
        match certificate {
            Some(certificate) => self.certificates.insert(session, certificate.clone()),
            None => self.certificates.remove(&session),
        };
    }

    /// What to answer to a Query.
    pub(super) fn answer(&self, now: Instant, claim: &Claim) -> AnswerStatus {
        if self.is_its(claim) { self.tombstones.answer(now, claim.session, claim.token) } else { AnswerStatus::Unknown }
    }

    /// What becomes of a Resume.
    pub(super) fn resume(&self, now: Instant, claim: &Claim) -> Resumption {
        if self.is_its(claim) { self.tombstones.resume(now, claim.session, claim.token) } else { Resumption::Refused }
    }

    /// The source knows the answer now.
    pub(super) fn released(&mut self, now: Instant, claim: &Claim) {
        if self.is_its(claim) {
            self.tombstones.released(now, claim.session, claim.token);
            if !self.tombstones.contains(now, claim.session) {
                self.certificates.remove(&claim.session);
            }
        }
    }

    /// Whether `session` is one of them.
    pub(super) fn contains(&self, now: Instant, session: SessionId) -> bool {
        self.tombstones.contains(now, session)
    }

    pub(super) fn count(&self) -> usize {
        self.tombstones.count()
    }

    /// Forgets those whose time is over.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some(session) = self.tombstones.forget_one(now) {
            self.certificates.remove(&session);
        }
    }

    fn is_its(&self, claim: &Claim) -> bool {
        self.certificates.get(&claim.session) == claim.certificate.as_ref()
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::Token;

    #[test]
    fn a_certificate_is_asked_for_and_forgotten_with_its_session() {
        let (now, timeouts) = (Instant::now(), Timeouts::default());
        let (session, token) = (SessionId([1; 16]), Token([2; 16]));
        let [own, other] = [b"own", b"oth"].map(|der| PeerCertificate::new(der));
        let claim = |certificate: Option<&PeerCertificate>| Claim { session, token, certificate: certificate.cloned() };
        let mut remembered = Remembered::new(&timeouts);
        let keep = |remembered: &mut Remembered| remembered.keep(now, session, Tombstone::of_running(session, token), Some(&own));
        keep(&mut remembered);
        for (certificate, expected) in [(Some(&own), AnswerStatus::Running), (Some(&other), AnswerStatus::Unknown), (None, AnswerStatus::Unknown)] {
            assert_eq!(remembered.answer(now, &claim(certificate)), expected);
        }
        remembered.released(now, &claim(Some(&other)));
        assert!(remembered.contains(now, session), "another cannot have it forgotten");
        remembered.released(now, &claim(Some(&own)));
        assert_eq!((remembered.count(), remembered.certificates.len()), (0, 0));
        keep(&mut remembered);
        remembered.forget(now + timeouts.tombstone + Duration::from_secs(1));
        assert_eq!((remembered.count(), remembered.certificates.len()), (0, 0));
    }
}
