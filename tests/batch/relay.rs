//! A relay between sender and receiver that breaks one connection: the first that has carried enough.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// Starts one towards `receiver`; where it listens. It lives as long as this process.
pub(crate) fn start(receiver: &str) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, receiver) = (listener.local_addr()?.to_string(), receiver.to_owned());
    let broken = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let Ok(far) = TcpStream::connect(&receiver) else { break };
            let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { break };
            let broken = Arc::clone(&broken);
            std::thread::spawn(move || pass(near, far, Some(&broken)));
            std::thread::spawn(move || pass(far_too, near_too, None));
        }
    });
    Ok(address)
}

/// Until one end closes, or this is the connection to break.
fn pass(mut from: TcpStream, mut to: TcpStream, broken: Option<&AtomicBool>) {
    let (mut buffer, mut carried) = ([0; 16 << 10], 0);
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        carried += bytes;
        if carried > ENOUGH && broken.is_some_and(|broken| !broken.swap(true, Ordering::Relaxed)) {
            break;
        }
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    // An end that is gone already is as well.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Bytes that only pages come to.
const ENOUGH: usize = 1 << 20;
