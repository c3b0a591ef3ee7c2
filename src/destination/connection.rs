//! What the first message of a connection makes of it.

use std::io::ErrorKind;
use std::time::Instant;

use super::bulk;
use super::claim::Claim;
use super::door::TurnedAway;
use super::follow;
use super::hub::{Counted, Hub};
use super::session;
use super::shared::Opener;
use crate::control::{Connection, MessageReader, MessageWriter};
use crate::error::Error;
use crate::protocol::Resumption;
use crate::sys::priority::ShortTurns;
use crate::transport::{Deadline, Stream, TransportError};
use crate::wire::{AnswerStatus, ChannelTotals, Lane, Message, RefuseReason, WireError};

/// Reads what a connection wants to be, and lets it, once it is as secure as it has to be.
pub(super) fn handle(counted: &mut Counted, stream: Stream) -> Result<(), Error> {
    let options = &counted.hub().options;
    let security = &options.security;
    // For all that it has to say before it is known: a peer that trickles must not stay for longer than a silent one.
    let deadline = Deadline::within(options.timeouts.handshake);
    if security.is_required() && first_byte(&stream, deadline)? != TLS_HANDSHAKE {
        return Err(turn_plain_away(stream, deadline));
    }
    let stream = security.accept(stream, deadline)?.with_patience(options.timeouts.transport())?;
    let certificate = stream.peer_certificate().cloned();
    let mut reader = MessageReader::of_lane(stream, &"new");
    let first = match reader.next_before(deadline) {
        Ok(message) => message,
        Err(error) => {
            if let Error::Wire(wire) = &error {
                turn_away(&reader, wire);
            }
            return Err(if is_tls(&error) { TransportError::TlsPeer.into() } else { error });
        }
    };
    counted.welcome()?;
    let peer = counted.peer();
    let hub = counted.hub();
    match first {
        hello @ Message::Hello(_) => session::run(hub, reader, hello, Opener { peer, certificate }),
        Message::Attach { session, token, lane, generation } => {
            let claim = Claim { session, token, certificate };
            attach(hub, reader, &claim, lane, generation)
        }
        Message::Resume { session, token } => resume(hub, reader, &Claim { session, token, certificate }),
        Message::Query { session, token } => answer(hub, reader, &Claim { session, token, certificate }),
        other => {
            let detail = format!("a connection does not begin with {}", other.name());
            reader.writer().send(&Message::Refuse { reason: RefuseReason::Other, detail })?;
            Err(TurnedAway::Stranger("it begins with another message than connections do").into())
        }
    }
}

/// A connection for pages: this thread becomes its worker.
fn attach(hub: &Hub, reader: MessageReader, claim: &Claim, lane: Lane, generation: u32) -> Result<(), Error> {
    let mut writer = reader.writer();
    let mut refuse = |detail| refuse(&mut writer, detail);
    let Some(shared) = hub.registry.find(claim.session) else { return refuse("no such session") };
    if !shared.is_of(claim) {
        return refuse("the certificate is not the one that the session began with");
    }
    let Some(arriving) = shared.arrival.get() else { return refuse("the session is not accepted yet") };
    let Some(stream) = reader.into_stream() else { return refuse("frames before Attached") };
    // Adopted under the machine's lock: should the session end right now, the connection ends with it.
    let attached = shared.feed(|machine| machine.attach(Instant::now(), claim.token, lane, generation).map(|()| shared.adopt(stream.control())));
    let running = match attached {
        Ok(running) => running,
        Err(error) => return writer.send(&error.refusal()).and(Err(TurnedAway::Lane(error).into())),
    };
    let greeted = writer.send(&Message::Attached { lane });
    match (lane, generation) {
        (Lane::Bulk(channel), 0) => match greeted {
            Ok(()) => {
                let turns = if hub.registry.is_calm() { ShortTurns::take_with_beat() } else { ShortTurns::take() };
                bulk::receive(stream, channel, arriving, &shared, turns);
            }
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

/// Says no to a connection that is not what it says it is.
fn refuse(writer: &mut MessageWriter, detail: &'static str) -> Result<(), Error> {
    writer.send(&Message::Refuse { reason: RefuseReason::Authorization, detail: detail.into() })?;
    Err(TurnedAway::Stranger(detail).into())
}

/// A source that comes back in post-copy, or in doubt on the way to it.
fn resume(hub: &Hub, mut reader: MessageReader, claim: &Claim) -> Result<(), Error> {
    let mut writer = reader.writer();
    let handshake = hub.options.timeouts.handshake;
    let Some(shared) = hub.registry.find(claim.session) else {
        let resumption = hub.registry.resume(claim);
        let is_complete = told(&mut writer, resumption)?;
        if is_complete && matches!(reader.next_within(handshake), Ok(Message::Released)) {
            hub.registry.released(claim);
        }
        return Ok(());
    };
    if !shared.is_of(claim) {
        return told(&mut writer, Resumption::Refused).map(drop);
    }
    let mut connection = Some(Connection::new(reader));
    let resumption = shared.feed(|machine| {
        let resumption = machine.resume(Instant::now(), claim.token);
        if let Resumption::Accepted { generation } = resumption {
            shared.keep_newer(generation, connection.take().expect("kept once"));
        }
        resumption
    });
    let is_complete = told(&mut writer, resumption)?;
    if is_complete && matches!(connection.map(|mut connection| connection.next_within(handshake)), Some(Ok(Message::Released))) {
        hub.registry.released(claim);
    }
    Ok(())
}

/// Answers a source that came back, unless its session goes on; whether it was told that everything has arrived.
fn told(writer: &mut MessageWriter, resumption: Resumption) -> Result<bool, Error> {
    tracing::info!(?resumption, "a source came back");
    if let Some(answer) = resumption.answer() {
        writer.send(&answer)?;
    }
    if resumption == Resumption::Refused {
        return Err(NO_SESSION.into());
    }
    Ok(matches!(resumption, Resumption::Complete { .. }))
}

/// A source in doubt.
fn answer(hub: &Hub, mut reader: MessageReader, claim: &Claim) -> Result<(), Error> {
    let status = hub.registry.answer(claim);
    tracing::info!(?status, "a source in doubt asked");
    reader.writer().send(&Message::Answer(status))?;
    if status == AnswerStatus::Running
        && let Ok(Message::Released) = reader.next_within(hub.options.timeouts.handshake)
    {
        hub.registry.released(claim);
    }
    Ok(())
}

/// Tells a sender that does not know it that only TLS goes here. What others said stands in the error.
fn turn_plain_away(stream: Stream, deadline: Deadline) -> Error {
    let mut reader = MessageReader::new(stream);
    match reader.next_before(deadline) {
        Ok(_) => {
            let detail = "this receiver takes TLS connections only: the sender needs --tls".into();
            // It may be gone already.
            let _ = reader.writer().send(&Message::Refuse { reason: RefuseReason::Authorization, detail });
            TransportError::PlainPeer.into()
        }
        Err(error) => error,
    }
}

/// The first byte of a connection, which stays to be read.
fn first_byte(stream: &Stream, deadline: Deadline) -> Result<u8, TransportError> {
    let late = || TransportError::Late { limit: deadline.limit() };
    let first = stream.first_byte(deadline.left().ok_or_else(late)?);
    first.map_err(|source| match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => late(),
        _ => TransportError::Broken { lane: "new".to_owned(), source },
    })
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

/// Another token, or another session's.
const NO_SESSION: TurnedAway = TurnedAway::Stranger("it wants to resume a session that is not there, or not its own");
/// The first byte of a TLS connection. No message begins with it.
const TLS_HANDSHAKE: u8 = 22;
