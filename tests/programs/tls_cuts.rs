//! The network fails at the worst moments of a migration over TLS: the doubt is settled, and the rest brought, over TLS
//! too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use pageferry::stats::{GuestOwner, Outcome};
use pageferry::wire::MESSAGE_HEADER_BYTES;

use crate::certificates::good;
use crate::processes::{Ended, Listening, MOMENT, Process, SEND, command, userfaultfd};
use crate::proxy::{Fate, Proxy, Tamper};
use crate::{GUEST, has_arrived, receiver, runs_on, was_dropped};

/// A record on the control connection that can only be Commit: its body of 8 bytes no other message of a source has.
const COMMIT_RECORD: usize = 5 + MESSAGE_HEADER_BYTES + 8 + 1 + 16;

/// Cuts every connection at Commit.
struct CutAtCommit {
    fate: Fate,
    commits: Arc<AtomicU32>,
}

impl Tamper for CutAtCommit {
    fn record(&self, length: usize) -> Fate {
        if length != COMMIT_RECORD {
            return Fate::Pass;
        }
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.fate
    }
}

/// One migration whose connections end at Commit.
fn cut_at_commit(receiver: &Listening, tls: &str, fate: Fate) -> Result<Ended> {
    let commits = Arc::new(AtomicU32::new(0));
    let proxy = Proxy::start(&receiver.address, CutAtCommit { fate, commits: Arc::clone(&commits) })?;
    let sent = send(&proxy, tls)?.wait(MOMENT)?;
    let commits = commits.load(Ordering::SeqCst);
    ensure!(commits == 1, "{commits} records look like Commit: {sent}");
    ensure!(sent.stderr.contains("in doubt: asking the destination"), "it was never in doubt: {sent}");
    Ok(sent)
}

fn send(proxy: &Proxy, flags: &str) -> Result<Process> {
    Process::start(command(SEND, &format!("--to {} --guest {GUEST} --json - {flags}", proxy.address)))
}

#[test]
fn a_commit_that_is_lost_is_taken_back_over_tls() -> Result<()> {
    let keys = good();
    let tls = format!("--tls {}", keys.path().display());
    let mut receiver = receiver(&tls)?;
    runs_on(cut_at_commit(&receiver, &tls, Fate::Cut)?, Outcome::Failed, 1)?;
    was_dropped(&mut receiver)?;
    receiver.send(GUEST, &tls)?.wait(MOMENT)?.expect(0)?;
    has_arrived(&mut receiver).map(drop)
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again_over_tls() -> Result<()> {
    let keys = good();
    let tls = format!("--tls {}", keys.path().display());
    let mut receiver = receiver(&tls)?;
    let sent = cut_at_commit(&receiver, &tls, Fate::PassThenCut)?.expect(0)?.report()?;
    ensure!(sent.outcome == Outcome::Completed && sent.guest_owner == GuestOwner::Destination, "{}", sent.to_json());
    has_arrived(&mut receiver)?;
    receiver.send(GUEST, &tls)?.wait(MOMENT)?.expect(0)?;
    has_arrived(&mut receiver).map(drop)
}

/// Cuts every connection at the next bytes of memory, once it is told to.
struct CutWhenTold {
    fate: Fate,
    /// To come.
    cuts: Arc<AtomicU32>,
}

impl Tamper for CutWhenTold {
    fn memory(&self, _offset: usize, _bytes: &mut Vec<u8>) -> Fate {
        let is_due = self.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |cuts| cuts.checked_sub(1)).is_ok();
        if is_due { self.fate } else { Fate::Pass }
    }
}

#[test]
fn a_cut_in_post_copy_is_recovered_over_tls() -> Result<()> {
    if let Err(reason) = userfaultfd() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let keys = good();
    let tls = format!("--tls {}", keys.path().display());
    for fate in [Fate::Cut, Fate::PassThenCut] {
        let mut receiver = receiver(&tls)?;
        let cuts = Arc::new(AtomicU32::new(0));
        let proxy = Proxy::start(&receiver.address, CutWhenTold { fate, cuts: Arc::clone(&cuts) })?;
        // Gives the guest away at once; its pages take two seconds.
        let mut sender = send(&proxy, &format!("{tls} --post-copy 0 --compress none --bandwidth 80Mbit/s"))?;
        sender.stderr.next_with("the guest runs at the destination", MOMENT)?;
        cuts.store(1, Ordering::SeqCst);
        let sent = sender.wait(MOMENT)?.expect(0)?.report()?;
        ensure!(cuts.load(Ordering::SeqCst) == 0, "nothing was cut");
        for report in [sent, has_arrived(&mut receiver)?] {
            let recoveries = report.post_copy.as_ref().context("it did not come to post-copy")?.recoveries;
            ensure!(report.outcome == Outcome::Completed && recoveries == 1, "{}", report.to_json());
        }
    }
    Ok(())
}
