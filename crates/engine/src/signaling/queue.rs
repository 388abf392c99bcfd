//! Frames on their way down to one peer, bounded, and the orders that its streams' tasks wait for.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use bytes::Bytes;
use tokio::{sync::Notify, task::AbortHandle};

use crate::boundary::event::StreamEnd;

/// Frames that may wait for one connection.
const MAX_FRAMES: usize = 16;
/// Their bytes.
const MAX_BYTES: usize = 128 * 1024;

/// The signaling of one connection, shared by its entry in the table and its streams' tasks.
#[derive(Debug, Default)]
pub(crate) struct Signaling {
    /// Waiting for the stream that the client has opened, or will.
    pub(crate) client: Queue,
    /// Waiting for the stream that this server opens.
    pub(crate) server: Queue,
    /// Whether a stream of the client is open.
    pub(crate) client_open: Cell<bool>,
    /// The stream that a connector is sent to, once it was sent to: it puts what it reads from all its
    /// streams together, so halves of two frames must never meet.
    choice: Cell<Option<Stream>>,
    /// Why the client's stream has to end, once it has.
    condemned: Cell<Option<StreamEnd>>,
    pub(crate) condemnation: Notify,
    /// Frames dropped because too much waited, of which the control plane has not heard.
    pub(crate) dropped: Cell<u32>,
    /// The task of the server's stream, once there is one.
    pub(crate) writer: RefCell<Option<AbortHandle>>,
}

/// Which end has opened a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Client,
    Server,
}

/// Frames for one stream, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    frames: RefCell<VecDeque<Bytes>>,
    added: Notify,
}

impl Queue {
    /// Waits for the next frame.
    pub(crate) async fn next(&self) -> Bytes {
        loop {
            // Bound to a name, so that the borrow ends before the wait.
            let frame = self.frames.borrow_mut().pop_front();
            match frame {
                Some(frame) => return frame,
                None => self.added.notified().await,
            }
        }
    }

    fn waiting(&self) -> (usize, usize) {
        let frames = self.frames.borrow();
        (frames.len(), frames.iter().map(Bytes::len).sum())
    }
}

impl Signaling {
    /// Queues a frame whole. Returns the stream it waits for, or `None` when too much waits already.
    pub(crate) fn send(&self, frame: Bytes, to_agent: bool) -> Option<Stream> {
        let stream = match self.choice.get() {
            _ if to_agent => Stream::Client,
            Some(chosen) => chosen,
            None if self.client_open.get() => Stream::Client,
            None => Stream::Server,
        };
        let (client, server) = (self.client.waiting(), self.server.waiting());
        if client.0 + server.0 >= MAX_FRAMES || client.1 + server.1 + frame.len() > MAX_BYTES {
            return None;
        }
        if !to_agent {
            self.choice.set(Some(stream));
        }
        let queue = match stream {
            Stream::Client => &self.client,
            Stream::Server => &self.server,
        };
        queue.frames.borrow_mut().push_back(frame);
        queue.added.notify_one();
        Some(stream)
    }

    /// Orders the end of the client's stream.
    pub(crate) fn condemn(&self, why: StreamEnd) {
        if self.client_open.get() {
            self.condemned.set(Some(why));
            self.condemnation.notify_one();
        }
    }

    /// Ends the server's stream with its task; the client's is ended by the one who reads it.
    pub(crate) fn close(&self) {
        if let Some(writer) = self.writer.take() {
            writer.abort();
        }
    }

    /// Why the client's stream has to end; asked once.
    pub(crate) fn take_condemned(&self) -> Option<StreamEnd> {
        self.condemned.take()
    }
}

/// What a connection's entry keeps of its signaling: nothing until there is some.
pub(crate) type Handle = Option<Rc<Signaling>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_is_sent_to_on_the_stream_that_was_chosen_first() {
        let signaling = Signaling::default();
        let send = |to_agent| signaling.send(Bytes::from_static(b"frame"), to_agent);
        assert_eq!(send(false), Some(Stream::Server), "nothing is open");
        signaling.client_open.set(true);
        assert_eq!(send(false), Some(Stream::Server));
        assert_eq!(send(true), Some(Stream::Client));
        let signaling = Signaling::default();
        signaling.client_open.set(true);
        assert_eq!(signaling.send(Bytes::new(), false), Some(Stream::Client));
        signaling.client_open.set(false);
        assert_eq!(signaling.send(Bytes::new(), false), Some(Stream::Client), "the next one's");
    }

    #[test]
    fn so_much_waits_and_no_more() {
        let signaling = Signaling::default();
        for _ in 0..MAX_FRAMES {
            assert!(signaling.send(Bytes::from_static(b"frame"), true).is_some());
        }
        assert_eq!(signaling.send(Bytes::new(), false), None);
        let signaling = Signaling::default();
        assert!(signaling.send(vec![0; MAX_BYTES].into(), true).is_some());
        assert_eq!(signaling.send(Bytes::from_static(b"1"), true), None);
    }
}
