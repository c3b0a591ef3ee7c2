//! Who waits for something that only a few can have at a time, and who is next.
//!
//! A guest in its last round stands still, so it goes first. Among its like a guest's turn comes by what it has had: each
//! request starts where the guest's last one ended, or now if that is later, and the earliest start is next (start-time
//! fair queueing, Goyal, Vin and Cheng 1996). So guests share evenly however many threads each of them has, and who was
//! idle for a while gets nothing for that afterwards. Now and then one goes before those that stand still: nobody waits
//! for ever.
//!
//! Pure: who waits is named by the caller, and nothing here blocks.

use std::collections::HashMap;

/// A guest among those that share.
pub(super) type MemberId = u64;

/// Those who wait, of whom `W` is what it takes to tell them.
#[derive(Debug)]
pub(super) struct Line<W> {
    waiting: Vec<Waiting<W>>,
    /// Where the next request of each guest starts that has had something, urgent ones apart: what goes first would put the
    /// others' reckoning out.
    accounts: HashMap<(MemberId, Urgency), u64>,
    /// Where the request that was granted last started, of each urgency.
    now: [u64; 2],
    /// Requests so far: among equals the first comes first.
    asked: u64,
    /// Urgent requests granted in a row while others waited.
    ahead: u32,
}

#[derive(Debug)]
struct Waiting<W> {
    member: MemberId,
    urgency: Urgency,
    start: u64,
    asked: u64,
    who: W,
}

/// How much hangs on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::source) enum Urgency {
    /// A guest stands still until it is done.
    Urgent,
    /// The guest runs.
    Ordinary,
}

impl<W> Line<W> {
    pub(super) fn new() -> Self {
        Self { waiting: Vec::new(), accounts: HashMap::new(), now: [0; 2], asked: 0, ahead: 0 }
    }

    /// Queues up for so much; the number names the request.
    pub(super) fn join(&mut self, member: MemberId, urgency: Urgency, cost: u64, who: W) -> u64 {
        let account = self.accounts.entry((member, urgency)).or_default();
        let start = (*account).max(self.now[urgency as usize]);
        *account = start.saturating_add(cost);
        self.asked += 1;
        self.waiting.push(Waiting { member, urgency, start, asked: self.asked, who });
        self.asked
    }

    /// Gives a request up, if it still waits.
    pub(super) fn leave(&mut self, asked: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.asked != asked);
        self.waiting.len() < before
    }

    /// Takes out whoever is next.
    pub(super) fn call(&mut self) -> Option<W> {
        let first = |urgency| {
            let of_it = self.waiting.iter().enumerate().filter(|(_, waiting)| waiting.urgency == urgency);
            of_it.min_by_key(|(_, waiting)| (waiting.start, waiting.asked)).map(|(index, _)| index)
        };
        let (urgent, ordinary) = (first(Urgency::Urgent), first(Urgency::Ordinary));
        let index = match (urgent, ordinary) {
            (Some(_), Some(ordinary)) if self.ahead >= AHEAD => ordinary,
            (Some(urgent), _) => urgent,
            (None, ordinary) => ordinary?,
        };
        self.ahead = if Some(index) == urgent && ordinary.is_some() { self.ahead + 1 } else { 0 };
        let Waiting { urgency, start, who, .. } = self.waiting.swap_remove(index);
        let now = &mut self.now[urgency as usize];
        *now = start.max(*now);
        Some(who)
    }

    /// A guest asks for nothing any more.
    pub(super) fn forget(&mut self, member: MemberId) {
        debug_assert!(self.waiting.iter().all(|waiting| waiting.member != member), "its threads have ended");
        self.accounts.retain(|(account, _), _| *account != member);
    }
}

/// Urgent requests that are granted before one of the others that wait.
const AHEAD: u32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    use Urgency::{Ordinary, Urgent};

    /// Serves `turns` requests of guests that each always have `threads` requests waiting; how many each got.
    fn serve(guests: &[(Urgency, usize)], turns: usize) -> Vec<usize> {
        let mut line = Line::new();
        for (member, &(urgency, threads)) in guests.iter().enumerate() {
            (0..threads).for_each(|_| _ = line.join(member as u64, urgency, 10, member));
        }
        let mut served = vec![0; guests.len()];
        for _ in 0..turns {
            let member = line.call().expect("all wait again");
            served[member] += 1;
            line.join(member as u64, guests[member].0, 10, member);
        }
        served
    }

    #[test]
    fn guests_share_evenly_however_many_threads_they_have() {
        assert_eq!(serve(&[(Ordinary, 1), (Ordinary, 4), (Ordinary, 2)], 300), [100, 100, 100]);
    }

    #[test]
    fn who_stands_still_goes_first_and_the_others_still_get_on() {
        assert_eq!(serve(&[(Ordinary, 2), (Urgent, 1), (Urgent, 3), (Ordinary, 1)], 320), [10, 150, 150, 10]);
    }

    #[test]
    fn large_requests_count_for_more() {
        let mut line = Line::new();
        let mut bytes = [0u64; 2];
        let cost = [64, 16];
        (0..2).for_each(|member: usize| _ = line.join(member as u64, Ordinary, cost[member], member));
        for _ in 0..1000 {
            let member = line.call().unwrap();
            bytes[member] += cost[member];
            line.join(member as u64, Ordinary, cost[member], member);
        }
        assert!(bytes[0].abs_diff(bytes[1]) <= 64, "{bytes:?}");
    }

    #[test]
    fn an_idle_guest_has_saved_nothing_up() {
        let mut line = Line::new();
        (0..100).for_each(|_| {
            line.join(1, Ordinary, 10, 1);
            line.call();
        });
        (0..4).for_each(|_| _ = line.join(2, Ordinary, 10, 2));
        (0..4).for_each(|_| _ = line.join(1, Ordinary, 10, 1));
        let order: Vec<_> = std::iter::from_fn(|| line.call()).collect();
        assert_eq!(order, [2, 2, 1, 2, 1, 2, 1, 1]);
    }

    #[test]
    fn who_has_left_is_not_called() {
        let mut line = Line::new();
        let asked = line.join(1, Ordinary, 1, "first");
        line.join(2, Ordinary, 1, "second");
        assert!(line.leave(asked) && !line.leave(asked));
        assert_eq!((line.call(), line.call()), (Some("second"), None));
        line.forget(1);
        line.forget(2);
    }
}
