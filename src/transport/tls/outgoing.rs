//! The sending half: bytes to records, records to the socket.

use std::io::{self, ErrorKind, IoSlice, Write};

use socket2::Socket;

use super::super::patience::Patient;
use super::record::{APPLICATION_DATA, HEADER_BYTES, MAX_CONTENT, OVERHEAD, RecordKey};

/// Records on their way out.
pub(super) struct Outgoing {
    key: RecordKey,
    /// Whole records, then the content of an open one.
    buffer: Vec<u8>,
    /// A write failed half-way: the records after it would make no sense to the peer.
    is_broken: bool,
}

impl Outgoing {
    pub(super) fn new(key: RecordKey) -> Self {
        Self { key, buffer: Vec::new(), is_broken: false }
    }

    /// Records sealed with the key so far.
    pub(super) fn sealed(&self) -> u64 {
        self.key.count()
    }

    /// Seals what comes from now on with another key.
    pub(super) fn rekey(&mut self, key: RecordKey) {
        self.key = key;
    }

    /// Makes records of as much of `parts`, one after the other, as goes out at once; how much that is.
    pub(super) fn seal(&mut self, parts: &[IoSlice<'_>]) -> usize {
        // Once, for good: all that it ever holds.
        self.buffer.reserve(BATCH_RECORDS * (MAX_CONTENT + OVERHEAD) + SPARE);
        let mut parts = parts.iter().map(|part| &**part).filter(|part| !part.is_empty());
        let mut part: &[u8] = &[];
        let mut sealed = 0;
        for _ in 0..BATCH_RECORDS {
            let record = self.buffer.len();
            self.buffer.extend_from_slice(&[0; HEADER_BYTES]);
            let mut room = MAX_CONTENT;
            while room > 0 {
                if part.is_empty() {
                    let Some(next) = parts.next() else { break };
                    part = next;
                }
                let (taken, rest) = part.split_at(room.min(part.len()));
                self.buffer.extend_from_slice(taken);
                room -= taken.len();
                part = rest;
            }
            if room == MAX_CONTENT {
                self.buffer.truncate(record);
                break;
            }
            self.close_record(record, APPLICATION_DATA);
            sealed += MAX_CONTENT - room;
        }
        sealed
    }

    /// Makes a record of something that is not data.
    pub(super) fn seal_other(&mut self, content: u8, bytes: &[u8]) {
        let record = self.buffer.len();
        self.buffer.extend_from_slice(&[0; HEADER_BYTES]);
        self.buffer.extend_from_slice(bytes);
        self.close_record(record, content);
    }

    fn close_record(&mut self, record: usize, content: u8) {
        let bytes = self.buffer.len() - record - HEADER_BYTES;
        self.buffer.resize(record + bytes + OVERHEAD, 0);
        self.key.seal(&mut self.buffer[record..], content, bytes);
    }

    /// Writes all records out.
    pub(super) fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        self.check()?;
        let written = Patient(socket).write_all(&self.buffer);
        self.is_broken = written.is_err();
        self.buffer.clear();
        written
    }

    /// Writes out what the socket takes without waiting, of a connection that ends.
    pub(super) fn flush_at_once(&mut self, socket: &Socket) {
        if !self.is_broken {
            // A peer that has gone, or does not read, does not get to know.
            let _ = socket.send_with_flags(&self.buffer, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        }
        self.is_broken = true;
        self.buffer.clear();
    }

    /// # Errors
    /// After a write that failed half-way.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_broken { Err(io::Error::new(ErrorKind::BrokenPipe, "a write to it failed before")) } else { Ok(()) }
    }
}

/// Records written at once: enough that the system call counts little.
const BATCH_RECORDS: usize = 4;
/// Room for a KeyUpdate in front of them.
const SPARE: usize = 64;
