//! Post-copy: the guest is given away before all of its memory is there, and the rest is served.
//!
//! Up to Commit it is the same handover as after pre-copy, but for the remainder: instead of the pages the destination
//! gets their bitmap. From the moment Commit goes out the missing pages are pushed and fetched, because the guest may touch
//! them as soon as it is resumed there.
//!
//! The source keeps the memory, paused, until Complete. When a connection breaks, both ends keep what they have; the pump
//! reconnects, the destination says what has arrived, and a new *generation* of lanes serves what is left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, never, select, tick};

use super::PROGRESS_EVERY;
use super::driver::{Driver, session_error};
use super::event::{Event, Phase};
use super::push::{Lanes, Push, Served};
use super::pump::{Command, Ended, Pump};
use super::rounds::LastRound;
use crate::bitmap::PageBitmap;
use crate::error::Error;
use crate::protocol::{SourceEnd, SourceEvent};
