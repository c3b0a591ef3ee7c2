//! The exit codes of the programs.

use std::process::ExitCode;

use crate::stats::Outcome;

/// How a program ends; the numbers are an interface that other tools rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Completed = 0,
    /// Failed or aborted: the guest runs at the source; in post-copy, given up, at the destination without all of its memory.
    Failed = 1,
    /// The flags make no sense, or ask for what is not built in.
    Usage = 2,
    /// The peer refused.
    Refused = 3,
    /// Who holds the guest is not known.
    InDoubt = 4,
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Completed => Self::Completed,
            Outcome::Aborted | Outcome::Failed => Self::Failed,
            Outcome::Refused => Self::Refused,
            Outcome::InDoubt => Self::InDoubt,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
