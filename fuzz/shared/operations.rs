//! Bytes as operations on a state machine of the protocol.

use crate::script::Script;
use crate::{post_copy, torment};

/// On a machine in pre-copy.
pub fn of_pre_copy(mut script: Script) -> Vec<torment::Operation> {
    use torment::Operation;
    let messages = torment::messages();
    let mut next = move || {
        Some(match script.below(12)? {
            0..3 => Operation::Message(script.message(&messages)?),
            3 => Operation::Closed,
            4 => Operation::Pass(u64::from(script.wide()? % 4000)),
            5..7 => Operation::Act,
            7 => Operation::GiveUp,
            8 => Operation::Reconnected,
            9 => Operation::ReconnectFailed,
            10 => Operation::Query(script.below(2)? == 1),
            _ => Operation::Drain,
        })
    };
    std::iter::from_fn(&mut next).take(MOST).collect()
}

/// On a machine in post-copy.
pub fn of_post_copy(mut script: Script) -> Vec<post_copy::Operation> {
    use post_copy::Operation;
    let messages = post_copy::messages();
    let mut next = move || {
        Some(match script.below(16)? {
            0..3 => Operation::Message(script.message(&messages)?),
            3 => Operation::Closed,
            4 => Operation::Pass(u64::from(script.wide()? % 4000)),
            5..7 => Operation::Act,
            7 => Operation::GiveUp,
            8 => Operation::Connect(script.below(4)? > 0),
            9 => Operation::Interrupt(script.below(3)?.into()),
            10 => Operation::Attach(script.below(3)?.into()),
            11 => Operation::Resume(script.below(4)? > 0),
            12 => Operation::Resumed(script.below(3)?.into()),
            13 => Operation::Complete,
            14 => Operation::Again,
            _ => Operation::Drain,
        })
    };
    std::iter::from_fn(&mut next).take(MOST).collect()
}

/// Operations in a session: further than any of them leads.
const MOST: usize = 400;
