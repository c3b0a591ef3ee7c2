//! Peers that do not speak pageferry, or not properly.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, ensure};
use pageferry::stats::Outcome;
use pageferry::wire::{Lane, Message, RefuseReason, SessionId, Token, decode_message};

use crate::processes::{MOMENT, Process, SEND, command};
use crate::proxy::{Fate, Proxy, Tamper};
use crate::{GUEST, receiver, runs_on, still_serves, was_dropped};

/// A server that answers every connection with the same bytes; `None` says nothing and waits.
fn server(answer: Option<&'static [u8]>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            match answer {
                Some(answer) => {
                    let mut request = [0; 16];
                    let _ = stream.read(&mut request).and_then(|_| stream.write_all(answer));
                }
                None => silent.push(stream),
            }
        }
    });
    Ok(address)
}

fn send_to(address: &str) -> Result<Process> {
    Process::start(command(SEND, &format!("--to {address} --guest {GUEST} --json -")))
}

#[test]
fn a_sender_knows_a_server_that_is_not_a_receiver() -> Result<()> {
    let address = server(Some(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))?;
    let report = runs_on(send_to(&address)?.wait(MOMENT)?, Outcome::Failed, 1)?;
    ensure!(report.reason.contains("pageferry") && report.reason.contains("HTTP"), "{}", report.reason);
    Ok(())
}

#[test]
fn a_sender_survives_a_server_that_hangs_up() -> Result<()> {
    runs_on(send_to(&server(Some(b""))?)?.wait(MOMENT)?, Outcome::Failed, 1).map(drop)
}

#[test]
fn a_sender_does_not_wait_for_ever_for_a_server_that_says_nothing() -> Result<()> {
    runs_on(send_to(&server(None)?)?.wait(Duration::from_secs(17))?, Outcome::Failed, 1).map(drop)
}

/// What the receiver at `address` answers to `bytes` before it hangs up.
fn say(address: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(MOMENT))?;
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    // A connection that is reset has ended as well.
    if let Err(error) = stream.read_to_end(&mut answer) {
        ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    }
    Ok(answer)
}

#[test]
fn a_receiver_keeps_serving_whoever_calls() -> Result<()> {
    let mut receiver = receiver("")?;
    let mut silent = Vec::new();
    for bytes in
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[0; 4096], &[0xff; 100_000], b"PGFERRY"]
    {
        let answer = if bytes == b"PGFERRY" {
            // The beginning of something: it waits for the rest, but not for ever.
            Vec::new()
        } else {
            say(&receiver.address, bytes)?
        };
        ensure!(answer.is_empty(), "it talks to strangers: {answer:?}");
        let mut stream = TcpStream::connect(&receiver.address)?;
        stream.write_all(&bytes[..bytes.len().min(7)])?;
        silent.push(stream);
    }
    still_serves(&mut receiver)?;
    drop(silent);
    still_serves(&mut receiver)
}

#[test]
fn another_version_is_told_so() -> Result<()> {
    let mut receiver = receiver("")?;
    let mut hello = Vec::new();
    Message::Query { session: SessionId([1; 16]), token: Token([2; 16]) }.encode(&mut hello)?;
    hello[8..10].copy_from_slice(&999_u16.to_le_bytes());
    let checksum = xxhash_rust::xxh3::xxh3_64(&hello[..24]);
    hello[24..32].copy_from_slice(&checksum.to_le_bytes());
    match decode_message(&say(&receiver.address, &hello)?)? {
        Some((Message::Refuse { reason: RefuseReason::Version, detail }, _)) => ensure!(detail.contains("999"), "{detail}"),
        other => anyhow::bail!("{other:?}"),
    }
    still_serves(&mut receiver)
}

#[test]
fn a_session_that_nobody_knows_is_not_answered_for() -> Result<()> {
    let mut receiver = receiver("")?;
    let (session, token) = (SessionId([1; 16]), Token([2; 16]));
    let mut attach = Vec::new();
    Message::Attach { session, token, lane: Lane::Bulk(0), generation: 0 }.encode(&mut attach)?;
    let answer = decode_message(&say(&receiver.address, &attach)?)?;
    ensure!(matches!(answer, Some((Message::Refuse { reason: RefuseReason::Authorization, .. }, _))), "{answer:?}");
    still_serves(&mut receiver)
}

/// Does something to the memory connections from a certain offset on.
struct Spoil {
    from: usize,
    how: fn(&mut Vec<u8>) -> Fate,
    /// Once is enough.
    done: Mutex<bool>,
}

impl Tamper for Spoil {
    fn memory(&self, offset: usize, bytes: &mut Vec<u8>) -> Fate {
        let mut done = self.done.lock().expect("no holder panics");
        if *done || offset + bytes.len() <= self.from {
            return Fate::Pass;
        }
        *done = true;
        (self.how)(bytes)
    }
}

/// Fails unless both ends give up, with `words` as the reason.
fn spoiled(how: fn(&mut Vec<u8>) -> Fate, words: &[&str]) -> Result<()> {
    let mut receiver = receiver("")?;
    let proxy = Proxy::start(&receiver.address, Spoil { from: 1 << 20, how, done: Mutex::new(false) })?;
    let report = runs_on(send_to(&proxy.address)?.wait(MOMENT)?, Outcome::Failed, 1)?;
    let dropped = was_dropped(&mut receiver)?;
    for word in words {
        ensure!(report.reason.contains(word), "the sender: {}", report.reason);
        ensure!(dropped.reason.contains(word), "the receiver: {}", dropped.reason);
    }
    still_serves(&mut receiver)
}

#[test]
fn a_frame_that_was_altered_on_the_way_is_noticed() -> Result<()> {
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        Fate::Pass
    };
    spoiled(flip, &["checksum", "channel"])
}

#[test]
fn bytes_that_went_missing_are_noticed() -> Result<()> {
    let lose = |bytes: &mut Vec<u8>| {
        bytes.truncate(bytes.len() / 2);
        Fate::Pass
    };
    spoiled(lose, &["channel"])
}

#[test]
fn bytes_that_came_twice_are_noticed() -> Result<()> {
    let repeat = |bytes: &mut Vec<u8>| {
        bytes.extend_from_within(..);
        Fate::Pass
    };
    spoiled(repeat, &["channel"])
}

#[test]
fn a_network_that_breaks_in_the_middle_of_a_frame_is_survived() -> Result<()> {
    let cut = |bytes: &mut Vec<u8>| {
        bytes.truncate(bytes.len() / 2);
        Fate::PassThenCut
    };
    spoiled(cut, &["peer"])
}
