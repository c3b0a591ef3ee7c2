//! When to stop copying rounds: numbers in, a decision with its reason out.
//!
//! Every round ends with one question: another round, or is it time to stop the guest? [`Policy`] answers it from what
//! was measured ([`RoundFacts`]) and what is allowed ([`Limits`]). [`predict`] puts the same question to the same
//! policy in imagined time, so a plan cannot disagree with the engine about the rules. Nothing here knows a clock, a
//! socket or a page; time comes in as a [`Duration`](std::time::Duration).
//!
//! | symbol | here | meaning |
//! |---|---|---|
//! | `v_mem` | the guest's memory | moved whole in round 0 |
//! | `d` | [`Estimator::dirty_rate`] | pages the guest dirties a second |
//! | `b` | [`Estimator::page_rate`], [`Estimator::bandwidth`] | pages resent, and wire bytes moved, a second |
//! | `n_th` | [`Limits::max_rounds`] | rounds before stop-and-copy |
//! | `v_th` | [`Limits::max_volume`] | memory moved before stop-and-copy |
//! | `p_th` | [`Limits::dirty_threshold`] | so few dirty pages that one more round is not worth it |
#![forbid(unsafe_code)]

mod curve;
mod decision;
mod estimate;
mod facts;
mod foresight;
mod history;
mod judge;
mod limits;
mod model;
mod throttling;
mod tightening;

pub use curve::DirtyCurve;
pub use decision::{Decision, Reason, Verdict};
pub use estimate::Estimator;
pub use facts::{Bottleneck, PauseFacts, RoundFacts};
pub use judge::Policy;
pub use judge::SAMPLE_PAGES;
pub use limits::{DirtyThreshold, Limits, MAX_ROUNDS, OnLimit, Plateau, PostCopy, VolumeLimit};
pub use model::{Bounds, MeasuredGuest, ModelInput, PageCost, PredictedRound, Prediction, predict, predict_measured};
