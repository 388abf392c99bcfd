//! One engine thread's state, and the begin and end of a connection.
//!
//! Only the makers and enders of connections see all of it: the thread, the endpoints, dials and
//! the housekeeping. The relay and the tunnels are given the connection table and [`Shared`].
//!
//! A task that needs several cells borrows them in the order `listener`, `relay`, `tunnels`, `peers`,
//! `backlog`,
//! and holds none over an await. Borrowing a cell twice is a panic: it ends a connection with
//! "internal error", or the engine.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use noq::{Connection, ConnectionError, VarInt};
use tokio::task::AbortHandle;

use crate::{
    boundary::{
        counters::ServiceBoard,
        event::{CloseCause, ConnId, Event},
    },
    panics::{Panic, contained},
    quic::{egress::Egress, failure::describe, handshakes::HandshakeBudget, listener::Listener},
    relay::{delivery::Relay, usage::UsageBoard},
    shared::Shared,
    signaling::backlog::Backlog,
    table::{Peer, Peers},
    tunnel::{TunnelBoard, Tunnels},
};

/// Everything the tasks of one engine thread share. No lock: they all run on that thread.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) shared: Shared,
    pub(crate) board: Arc<ServiceBoard>,
    pub(crate) egress: Arc<Egress>,
    pub(crate) handshakes: Arc<HandshakeBudget>,
    /// Client connections under way, by request.
    pub(crate) dials: RefCell<HashMap<u64, AbortHandle>>,
    /// Present once the engine listens.
    pub(crate) listener: RefCell<Option<Listener>>,
    /// Present with the listener.
    pub(crate) relay: RefCell<Option<Relay>>,
    pub(crate) tunnels: RefCell<Tunnels>,
    pub(crate) peers: RefCell<Peers>,
    pub(crate) backlog: RefCell<Backlog>,
}

/// The boards of the counters.
pub(crate) type Boards = (Arc<ServiceBoard>, Arc<UsageBoard>, Arc<TunnelBoard>);

impl Shard {
    /// The state of a thread that has nothing to do yet.
    pub(crate) fn new(shared: Shared, (board, usage, tunnel_board): Boards) -> Self {
        Self {
            shared,
            board,
            egress: Arc::default(),
            handshakes: Arc::default(),
            dials: RefCell::default(),
            listener: RefCell::default(),
            relay: RefCell::default(),
            tunnels: RefCell::new(Tunnels::new(tunnel_board)),
            peers: RefCell::new(Peers::new(usage)),
            backlog: RefCell::default(),
        }
    }

    /// Admits a connection, reports it, and runs its `reader`.
    pub(crate) fn admit<R: Future<Output = ()> + 'static>(
        &self,
        peer: Peer,
        request: Option<u64>,
        handshake: Duration,
        reader: impl FnOnce(ConnId, Connection) -> R,
    ) {
        let Shared { counters, outbox, .. } = &self.shared;
        let connection = peer.connection().clone();
        let remote = peer.remote;
        // All that may panic comes first: a connection is in the table with its event and its reader,
        // or not at all.
        let certificates = certificates(&connection);
        let id = self.peers.borrow_mut().insert(peer);
        counters.admitted.add(1);
        counters.connections.set(self.peers.borrow().len() as u64);
        outbox.push(Event::Connected {
            conn: id,
            request,
            remote,
            certificates,
            handshake_us: handshake.as_micros() as u64,
        });
        let reader = tokio::task::spawn_local(reader(id, connection));
        if let Some(peer) = self.peers.borrow_mut().get_mut(id) {
            peer.reader = Some(reader.abort_handle());
        }
    }

    /// Reports a connection's end, with which its reader ended.
    pub(crate) fn ended(&self, id: ConnId, end: Result<ConnectionError, Panic>) {
        match end {
            Ok(error) => self.dismiss(id, Some(&error)),
            // The state after a defect may not be sound: a second panic must not go further either.
            Err(_) => drop(contained(|| self.dismiss(id, None))),
        }
    }

    /// Takes a connection out of everything and reports its end. `None`: a defect ended it.
    pub(crate) fn dismiss(&self, id: ConnId, error: Option<&ConnectionError>) {
        let Shared { counters, outbox, .. } = &self.shared;
        let now = Instant::now();
        if let Some(relay) = &mut *self.relay.borrow_mut() {
            relay.forwarder.remove(id, now);
            counters.leases.set(relay.forwarder.leases() as u64);
        }
        let Some(mut peer) = self.peers.borrow_mut().remove(id, now) else {
            return;
        };
        self.tunnels.borrow_mut().detach(id);
        self.backlog.borrow_mut().set(id, 0);
        if let Some(signaling) = peer.signaling.take() {
            signaling.close();
        }
        let (cause, code, reason) = match error {
            Some(error) => {
                peer.count_overflow(counters);
                match (error, peer.disconnected) {
                    (ConnectionError::LocallyClosed, Some((code, reason))) => {
                        (CloseCause::Local, code.into(), reason.into())
                    }
                    _ => describe(error),
                }
            }
            None => {
                counters.connection_panics.add(1);
                (CloseCause::Panic, 0, "internal error".into())
            }
        };
        counters.closed.add(1);
        counters.connections.set(self.peers.borrow().len() as u64);
        outbox.push(Event::Closed {
            conn: id,
            cause,
            code,
            reason,
            duration_us: now.duration_since(peer.admitted).as_micros() as u64,
            totals: peer.totals,
        });
        if error.is_none() {
            // Its reader would wait for ever where nothing wakes it. Each step may panic, and what
            // is dropped while a panic unwinds must not: the last handle is dropped by itself.
            contained(|| peer.connection().close(VarInt::from_u32(0), b"internal error"));
            if let Some(reader) = peer.reader.take() {
                reader.abort();
            }
            contained(|| drop(peer));
        }
    }
}

/// The certificates that a peer has shown, DER, its own first.
pub(crate) fn certificates(connection: &Connection) -> Vec<Vec<u8>> {
    connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().ok())
        .map(|chain| chain.iter().map(|der| der.to_vec()).collect())
        .unwrap_or_default()
}
