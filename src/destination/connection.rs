//! What the first message of a connection makes of it.

use std::time::{Duration, Instant};

use super::bulk;
use super::follow;
use super::hub::Hub;
use super::session;
use crate::control::{Connection, MessageReader, MessageWriter};
use crate::error::Error;
use crate::protocol::Resumption;
use crate::transport::{Stream, TransportError};
use crate::wire::{AnswerStatus, ChannelTotals, Lane, Message, RefuseReason, SessionId, Token, WireError};

/// Reads what a connection wants to be, and lets it, once it is as secure as it has to be.
pub(super) fn handle(hub: &Hub, stream: Stream) -> Result<(), Error> {
    let (security, timeout) = (&hub.options.security, hub.options.timeouts.handshake);
    let unheard = |source| TransportError::Broken { lane: "new".to_owned(), source };
    if security.is_required() && stream.first_byte(timeout).map_err(unheard)? != TLS_HANDSHAKE {
        return Err(turn_plain_away(hub, stream));
    }
    let stream = security.accept(stream, timeout)?;
    let mut reader = MessageReader::new(stream);
    let first = match reader.next_within(hub.options.timeouts.handshake) {
        Ok(message) => message,
        Err(error) => {
            if let Error::Wire(wire) = &error {
                turn_away(&reader, wire);
            }
            return Err(if is_tls(&error) { TransportError::TlsPeer.into() } else { error });
        }
    };
    match first {
        hello @ Message::Hello(_) => session::run(hub, reader, hello),
        Message::Attach { session, token, lane, generation } => attach(hub, reader, session, token, lane, generation),
        Message::Resume { session, token } => resume(hub, reader, session, token),
        Message::Query { session, token } => answer(hub, reader, session, token),
        other => {
            let detail = format!("a connection does not begin with {}", other.name());
            reader.writer().send(&Message::Refuse { reason: RefuseReason::Other, detail })
        }
    }
}

/// A connection for pages: this thread becomes its worker.
fn attach(hub: &Hub, reader: MessageReader, session: SessionId, token: Token, lane: Lane, generation: u32) -> Result<(), Error> {
    let mut writer = reader.writer();
    let refuse = |detail: &str| Message::Refuse { reason: RefuseReason::Authorization, detail: detail.into() };
    let Some(shared) = hub.registry.find(session) else { return writer.send(&refuse("no such session")) };
    let Some(arriving) = shared.arrival.get() else { return writer.send(&refuse("the session is not accepted yet")) };
    let Some(stream) = reader.into_stream() else { return writer.send(&refuse("frames before Attached")) };
    // Adopted under the machine's lock: should the session end right now, the connection ends with it.
    let attached = shared.feed(|machine| machine.attach(Instant::now(), token, lane, generation).map(|()| shared.adopt(stream.control())));
    let running = match attached {
        Ok(running) => running,
        Err(error) => return writer.send(&error.refusal()),
    };
    let greeted = writer.send(&Message::Attached { lane });
    match (lane, generation) {
        (Lane::Bulk(channel), 0) => match greeted {
            Ok(()) => bulk::receive(stream, channel, arriving, &shared),
            // The session counts on every channel to report its end.
            Err(_) => {
                let gone = TransportError::Closed { lane: format!("bulk {channel}") };
                bulk::report_stopped(&shared.reports, channel, ChannelTotals::default(), gone.into());
            }
        },
        _ => follow::receive(stream, lane, generation, arriving, &shared),
    }
    drop(running);
    Ok(())
}

/// A source that comes back in post-copy, or in doubt on the way to it.
fn resume(hub: &Hub, mut reader: MessageReader, session: SessionId, token: Token) -> Result<(), Error> {
    let mut writer = reader.writer();
    let handshake = hub.options.timeouts.handshake;
    let Some(shared) = hub.registry.find(session) else {
        let resumption = hub.registry.resume(session, token);
        let is_complete = told(&mut writer, resumption)?;
        if is_complete && matches!(reader.next_within(handshake), Ok(Message::Released)) {
            hub.registry.released(session, token);
        }
        return Ok(());
    };
    let mut connection = Some(Connection::new(reader)?);
    let resumption = shared.feed(|machine| {
        let resumption = machine.resume(Instant::now(), token);
        if let Resumption::Accepted { generation } = resumption {
            shared.keep_newer(generation, connection.take().expect("kept once"));
        }
        resumption
    });
    let is_complete = told(&mut writer, resumption)?;
    if is_complete && connection.is_some_and(|connection| says_released(&connection, handshake)) {
        hub.registry.released(session, token);
    }
    Ok(())
}

/// Answers a source that came back, unless its session goes on; whether it was told that everything has arrived.
fn told(writer: &mut MessageWriter, resumption: Resumption) -> Result<bool, Error> {
    tracing::info!(?resumption, "a source came back");
    if let Some(answer) = resumption.answer() {
        writer.send(&answer)?;
    }
    Ok(matches!(resumption, Resumption::Complete { .. }))
}

/// Whether Released is the next message, before `timeout` is over.
fn says_released(connection: &Connection, timeout: Duration) -> bool {
    let until = Instant::now() + timeout;
    loop {
        match connection.inbound().recv_deadline(until) {
            Ok(Ok(None)) => {}
            said => return matches!(said, Ok(Ok(Some(Message::Released)))),
        }
    }
}

/// A source in doubt.
fn answer(hub: &Hub, mut reader: MessageReader, session: SessionId, token: Token) -> Result<(), Error> {
    let status = hub.registry.answer(session, token);
    tracing::info!(?status, "a source in doubt asked");
    reader.writer().send(&Message::Answer(status))?;
    if status == AnswerStatus::Running
        && let Ok(Message::Released) = reader.next_within(hub.options.timeouts.handshake)
    {
        hub.registry.released(session, token);
    }
    Ok(())
}

/// Tells a sender that does not know it that only TLS goes here. What others said stands in the error.
fn turn_plain_away(hub: &Hub, stream: Stream) -> Error {
    let mut reader = MessageReader::new(stream);
    match reader.next_within(hub.options.timeouts.handshake) {
        Ok(_) => {
            let detail = "this receiver takes TLS connections only: the sender needs --tls".into();
            // It may be gone already.
            let _ = reader.writer().send(&Message::Refuse { reason: RefuseReason::Authorization, detail });
            TransportError::PlainPeer.into()
        }
        Err(error) => error,
    }
}

/// Whether it was the beginning of a TLS handshake that made no sense.
fn is_tls(error: &Error) -> bool {
    matches!(error, Error::Wire(WireError::NotPageferry { first }) if first.first() == Some(&TLS_HANDSHAKE))
}

/// Tells a peer that speaks (some) pageferry why it is not understood. To others it says nothing they could read.
fn turn_away(reader: &MessageReader, error: &WireError) {
    let reason = match error {
        WireError::NotPageferry { .. } => return,
        WireError::Version { .. } => RefuseReason::Version,
        _ => RefuseReason::Other,
    };
    // It may be gone already.
    let _ = reader.writer().send(&Message::Refuse { reason, detail: error.to_string() });
}

/// The first byte of a TLS connection. No message begins with it.
const TLS_HANDSHAKE: u8 = 22;
