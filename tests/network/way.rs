//! One way through a connection: what has been read and not yet passed on.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::script::Directions;

pub(super) struct Way<'s> {
    pub(super) from: &'s TcpStream,
    pub(super) to: &'s TcpStream,
    pub(super) direction: Directions,
    /// Part of a message.
    pub(super) unread: Vec<u8>,
    /// Pieces on their way, and when they are due.
    queue: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    /// Bytes that may go by now, where they are counted.
    allowance: u64,
    counted: Instant,
    /// Nothing more comes.
    has_ended: bool,
    is_closed: bool,
}

impl<'s> Way<'s> {
    pub(super) fn new(from: &'s TcpStream, to: &'s TcpStream, direction: Directions) -> Self {
        Self {
            from,
            to,
            direction,
            unread: Vec::new(),
            queue: VecDeque::new(),
            queued: 0,
            allowance: 0,
            counted: Instant::now(),
            has_ended: false,
            is_closed: false,
        }
    }

    /// Whether there is still something to do.
    pub(super) fn is_open(&self) -> bool {
        !self.is_closed
    }

    /// Whether more may be read: what is under way is bounded, as in a network.
    pub(super) fn takes_more(&self) -> bool {
        !self.has_ended && self.queued < MOST_QUEUED
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What has come, if anything.
    pub(super) fn read(&mut self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; 1 << 14];
        match self.from.read(&mut bytes) {
            Ok(0) => self.has_ended = true,
            Ok(count) => {
                bytes.truncate(count);
                return Ok(bytes);
            }
            Err(error) if is_harmless(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Vec::new())
    }

    pub(super) fn push(&mut self, piece: Vec<u8>, delay: Duration) {
        if !piece.is_empty() {
            self.queued += piece.len();
            self.queue.push_back((Instant::now() + delay, piece));
        }
    }

    /// Writes what is due, as much of it as goes, with no more than `rate` bytes a second.
    pub(super) fn flush(&mut self, rate: Option<u64>) -> Result<()> {
        let now = Instant::now();
        let passed_us = u64::try_from((now - self.counted).as_micros()).unwrap_or(u64::MAX);
        let earned = rate.unwrap_or(0).saturating_mul(passed_us) / 1_000_000;
        if earned > 0 || rate.is_none() {
            self.allowance = (self.allowance + earned).min(rate.unwrap_or(0) / 10);
            self.counted = now;
        }
        while let Some((due, piece)) = self.queue.front_mut() {
            let most = rate.map_or(piece.len(), |_| usize::try_from(self.allowance).map_or(piece.len(), |most| most.min(piece.len())));
            if *due > now || most == 0 {
                break;
            }
            match (&mut &*self.to).write(&piece[..most]) {
                Ok(0) => bail!("closed"),
                Ok(count) => {
                    piece.drain(..count);
                    self.queued -= count;
                    self.allowance = self.allowance.saturating_sub(count as u64);
                    if piece.is_empty() {
                        self.queue.pop_front();
                    }
                }
                Err(error) if is_harmless(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if self.has_ended && self.queue.is_empty() && !self.is_closed {
            self.is_closed = true;
            // Fails when it is closed both ways.
            let _ = self.to.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

fn is_harmless(error: &std::io::Error) -> bool {
    [ErrorKind::Interrupted, ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind())
}

/// Bytes under way in a connection.
const MOST_QUEUED: usize = 256 << 10;
