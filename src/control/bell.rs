//! What wakes a thread that waits for its peer.
//!
//! A second thread that reads, and a channel, would do as well; but each message would wake two threads, and a guest stands
//! still while it is said who has it.
//!
//! - <https://man7.org/linux/man-pages/man2/eventfd.2.html>, <https://man7.org/linux/man-pages/man2/ppoll.2.html>

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use crate::error::Error;

/// Rung by any thread, heard by one, which then looks what there is to do. Rings that come before it listens are one.
#[derive(Clone, Debug)]
pub(crate) struct Bell {
    count: Arc<EventFd>,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The bell.
    Bell,
    /// The descriptor beside it, and perhaps the bell, which goes on ringing.
    Beside,
    /// Nothing: the time is over.
    Late,
}

impl Bell {
    /// A bell.
    pub(crate) fn new() -> Result<Self, Error> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let count = EventFd::from_value_and_flags(0, flags).map_err(|errno| Error::System { action: "make an eventfd", source: errno.into() })?;
        Ok(Self { count: Arc::new(count) })
    }

    /// Has the thread that listens look, now or when it listens next.
    pub(crate) fn ring(&self) {
        // Fails only where it was rung 2^64 - 2 times and nobody came: then it still rings.
        let _ = self.count.write(1);
    }

    /// Waits until it is rung, or there is something to read at the descriptor beside it, for `patience` at most.
    pub(crate) fn wait(&self, beside: Option<BorrowedFd<'_>>, patience: Duration) -> Result<Woken, Error> {
        let mut sources = [PollFd::new(self.count.as_fd(), PollFlags::POLLIN), PollFd::new(beside.unwrap_or(self.count.as_fd()), PollFlags::POLLIN)];
        let used = 1 + usize::from(beside.is_some());
        match ppoll(&mut sources[..used], Some(TimeSpec::from_duration(patience.min(LONGEST))), None) {
            Ok(0) => Ok(Woken::Late),
            // Looking once more does no harm.
            Err(Errno::EINTR) => Ok(Woken::Bell),
            Ok(_) if beside.is_some() && sources[1].any() == Some(true) => Ok(Woken::Beside),
            Ok(_) => {
                // One thread listens: nobody else can have silenced it.
                let _ = self.count.read();
                Ok(Woken::Bell)
            }
            Err(errno) => Err(Error::System { action: "wait for the peer", source: errno.into() }),
        }
    }
}

/// What the kernel's clock takes in any case.
const LONGEST: Duration = Duration::from_secs(1 << 20);

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn it_rings_once_for_all_that_rang_and_then_is_silent() {
        let bell = Bell::new().unwrap();
        (0..3).for_each(|_| bell.ring());
        assert_eq!(bell.wait(None, SOON).unwrap(), Woken::Bell);
        assert_eq!(bell.wait(None, Duration::ZERO).unwrap(), Woken::Late);
        let other = bell.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            other.ring();
        });
        assert_eq!(bell.wait(None, SOON).unwrap(), Woken::Bell);
    }

    #[test]
    fn it_waits_for_what_is_beside_it_and_no_longer_than_it_may() {
        let bell = Bell::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let began = Instant::now();
        assert_eq!(bell.wait(Some(near.as_fd()), Duration::from_micros(1500)).unwrap(), Woken::Late);
        assert!(began.elapsed() >= Duration::from_micros(1500), "not cut to whole milliseconds");
        far.write_all(&[1]).unwrap();
        assert_eq!(bell.wait(Some(near.as_fd()), SOON).unwrap(), Woken::Beside);
        bell.ring();
        assert_eq!(bell.wait(Some(near.as_fd()), SOON).unwrap(), Woken::Beside, "what was said comes first");
        assert_eq!(bell.wait(None, SOON).unwrap(), Woken::Bell, "and the bell rings on");
        drop(far);
        assert_eq!(bell.wait(Some(near.as_fd()), Duration::MAX).unwrap(), Woken::Beside, "an end, too");
    }
}
