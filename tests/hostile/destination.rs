//! A hostile destination, driven by hand.

use std::io::{ErrorKind, Read};
use std::thread::{self, JoinHandle};

use pageferry::transport::{Endpoint, Listener, Stream};
use pageferry::wire::{Features, Lane, Message, Offer};

use crate::talk::{PATIENCE, Talk};

pub(crate) struct EvilDestination {
    pub(crate) listener: Listener,
    pub(crate) control: Talk,
    pub(crate) offer: Offer,
    /// Threads that take everything that comes on a bulk connection.
    sinks: Vec<JoinHandle<()>>,
}

impl EvilDestination {
    /// Listens, and runs `script` on a thread of its own with the first source that says Hello.
    pub(crate) fn run<T: Send + 'static>(script: impl FnOnce(&mut Self) -> T + Send + 'static) -> (Endpoint, JoinHandle<T>) {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = listener.endpoint().clone();
        let thread = thread::Builder::new().name("evil".into());
        let thread = thread.spawn(move || {
            let mut control = next(&listener);
            let Some(Message::Hello(offer)) = control.hear() else { panic!("a source begins with Hello") };
            script(&mut Self { listener, control, offer, sinks: Vec::new() })
        });
        (endpoint, thread.unwrap())
    }

    pub(crate) fn accept(&mut self) {
        self.control.say(&Message::Accept { channels: self.offer.channels, codecs: self.offer.codecs, features: Features::NONE, granule: 1 });
    }

    /// The next connection, and the Attach that it begins with.
    pub(crate) fn bulk(&mut self) -> (Talk, u16) {
        let mut bulk = next(&self.listener);
        let Some(Message::Attach { session, token, lane: Lane::Bulk(channel), generation: 0 }) = bulk.hear() else {
            panic!("a bulk connection begins with Attach")
        };
        assert!(session == self.offer.session && token == self.offer.token);
        (bulk, channel)
    }

    /// Accepts, and attaches all channels; what they carry is thrown away.
    pub(crate) fn attach_all(&mut self) {
        self.accept();
        for _ in 0..self.offer.channels {
            let stream = self.attach();
            self.sinks.push(thread::spawn(move || swallow(stream)));
        }
    }

    /// Attaches one channel and leaves it alone.
    pub(crate) fn attach(&mut self) -> Stream {
        let (mut bulk, channel) = self.bulk();
        bulk.say(&Message::Attached { lane: Lane::Bulk(channel) });
        bulk.into_stream()
    }

    /// Goes by the rules up to Finish.
    pub(crate) fn hear_finish(&mut self) {
        self.attach_all();
        let heard = self.control.hear();
        assert!(matches!(heard, Some(Message::Finish { .. })), "{heard:?}");
    }

    /// Goes by the rules up to Commit.
    pub(crate) fn hear_commit(&mut self) {
        self.hear_finish();
        self.control.say(&Message::Ready);
        let heard = self.control.hear();
        assert!(matches!(heard, Some(Message::Commit { .. })), "{heard:?}");
    }

    /// Waits for the source to come back and ask.
    pub(crate) fn hear_query(&mut self) -> Talk {
        let mut doubt = next(&self.listener);
        let heard = doubt.hear();
        assert!(matches!(heard, Some(Message::Query { .. })), "{heard:?}");
        doubt
    }
}

pub(crate) fn next(listener: &Listener) -> Talk {
    Talk::over(listener.accept(PATIENCE).unwrap().expect("a connection"))
}

fn swallow(mut stream: Stream) {
    let mut piece = vec![0; 64 << 10];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
