//! One engine thread's state: its connections, and the relay between them.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use noq::{Connection, ConnectionError, PathId, VarInt};
use tokio::task::AbortHandle;

use crate::{
    boundary::limits::{IdentityClass, Rates},
    bucket::Bucket,
    counters::{Counters, DropReason, ServiceBoard},
    egress::Egress,
    event::{CloseCause, ConnId, Event, Inspection, Totals},
    handshakes::HandshakeBudget,
    limiter::{LimiterIndex, RateLimiters},
    outbox::Outbox,
    panics::contained,
    relay::Relay,
    tunnel::{Tunnel, TunnelBoard, Tunnels},
};

/// Everything the tasks of one engine thread share. No lock: they all run on that thread.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) counters: Arc<Counters>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) board: Arc<ServiceBoard>,
    pub(crate) egress: Arc<Egress>,
    pub(crate) handshakes: Arc<HandshakeBudget>,
    pub(crate) started: Instant,
    pub(crate) peers: RefCell<Peers>,
    /// Client connections that are not made yet, by request.
    pub(crate) dials: RefCell<HashMap<u64, AbortHandle>>,
    pub(crate) limiters: RefCell<RateLimiters>,
    pub(crate) tunnels: RefCell<Tunnels>,
    pub(crate) tunnel_board: Arc<TunnelBoard>,
    /// Present once the engine listens.
    pub(crate) relay: RefCell<Option<Relay>>,
}

/// One admitted connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    /// The address last reported, IPv4-mapped given as IPv4.
    pub(crate) remote: SocketAddr,
    pub(crate) totals: Totals,
    pub(crate) class: IdentityClass,
    pub(crate) limiter: Option<LimiterIndex>,
    /// The id of that limiter: all connections of an identity have one, or all of a source network.
    pub(crate) quota: Option<u64>,
    pub(crate) control: Bucket,
    pub(crate) icmp: Bucket,
    pub(crate) health: Health,
    /// Datagrams that QUIC let go because they were not looked at in time, as far as counted.
    pub(crate) overflowed: u64,
    /// Set by housekeeping: count overflows when the receive queue is empty next.
    pub(crate) audit: bool,
    /// A client's own endpoint.
    pub(crate) endpoint: Option<noq::Endpoint>,
    /// A client's tunnel: the IP packets it is sent go there.
    pub(crate) tunnel: Option<Rc<Tunnel>>,
    /// Bytes of payload a client's connection queues.
    pub(crate) send_queue: usize,
    /// The largest DATAGRAM payload last reported, and when.
    pub(crate) datagram_limit: Option<(usize, Instant)>,
    /// Code and reason, where the engine itself has closed the connection.
    pub(crate) disconnected: Option<(u32, &'static str)>,
    /// What reads from the connection.
    pub(crate) reader: Option<AbortHandle>,
    admitted: Instant,
}

/// Whether a connector acknowledges what it is sent.
#[derive(Debug, Default)]
pub(crate) struct Health {
    acks: u64,
    sent: u64,
    /// Since when something is out that nothing has been acknowledged after.
    waiting: Option<Instant>,
}

impl Health {
    /// Takes the newest figures; true if it was sent to and acknowledged nothing for `limit`.
    pub(crate) fn stalled(&mut self, acks: u64, sent: u64, now: Instant, limit: Duration) -> bool {
        if acks != self.acks {
            *self = Self { acks, sent, waiting: None };
        } else if sent > self.sent && self.waiting.is_none() {
            self.waiting = Some(now);
        }
        self.waiting.is_some_and(|since| now.duration_since(since) >= limit)
    }
}

impl Peer {
    pub(crate) fn new(
        connection: Connection,
        remote: SocketAddr,
        limits: (Bucket, Bucket),
    ) -> Self {
        Self {
            connection,
            remote,
            totals: Totals::default(),
            class: IdentityClass::default(),
            limiter: None,
            quota: None,
            control: limits.0,
            icmp: limits.1,
            health: Health::default(),
            overflowed: 0,
            audit: false,
            endpoint: None,
            tunnel: None,
            send_queue: 0,
            datagram_limit: None,
            disconnected: None,
            reader: None,
            admitted: Instant::now(),
        }
    }

    /// Closes the connection, and remembers why for the report of its end.
    pub(crate) fn disconnect(&mut self, code: u32, reason: &'static str) {
        self.disconnected = Some((code, reason));
        self.connection.close(VarInt::from_u32(code), reason.as_bytes());
    }

    /// The address the peer's packets come from now.
    pub(crate) fn current_remote(&self) -> SocketAddr {
        remote_of(&self.connection).unwrap_or(self.remote)
    }

    /// Datagrams lost to a full receive queue since the last call. Exact only while that queue is
    /// empty.
    pub(crate) fn take_overflow(&mut self) -> u64 {
        let arrived = self.connection.stats().frame_rx.datagram;
        let lost = arrived.saturating_sub(self.totals.received_datagrams + self.overflowed);
        self.overflowed += lost;
        self.totals.dropped += lost;
        lost
    }

    pub(crate) fn inspect(&self) -> Inspection {
        let path = self.connection.path_stats(PathId::ZERO);
        let stats = self.connection.stats();
        Inspection {
            rtt_us: path.as_ref().map_or(0, |p| p.rtt.as_micros() as u64),
            mtu: path.as_ref().map_or(0, |p| p.current_mtu),
            max_datagram: self.connection.max_datagram_size().unwrap_or(0),
            cwnd: path.map_or(0, |p| p.cwnd),
            sent_packets: stats.sent_packets,
            lost_packets: stats.lost_packets,
            received_packets: stats.udp_rx.datagrams,
            totals: self.totals,
        }
    }
}

/// The connection table: slots with generations.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    peer: Option<Box<Peer>>,
}

impl Peers {
    pub(crate) fn insert(&mut self, peer: Peer) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, peer: None });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.peer = Some(Box::new(peer));
        ConnId::new(slot, entry.generation)
    }

    #[inline]
    pub(crate) fn get(&self, id: ConnId) -> Option<&Peer> {
        let slot = self.slots.get(id.slot())?;
        (slot.generation == id.generation()).then_some(slot.peer.as_deref()).flatten()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Peer> {
        let slot = self.slots.get_mut(id.slot())?;
        (slot.generation == id.generation()).then_some(slot.peer.as_deref_mut()).flatten()
    }

    fn remove(&mut self, id: ConnId) -> Option<Box<Peer>> {
        let slot = self.slots.get_mut(id.slot()).filter(|s| s.generation == id.generation())?;
        let peer = slot.peer.take()?;
        self.free.push(id.slot() as u32);
        Some(peer)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ConnId, &mut Peer)> {
        self.part_mut(0, 1)
    }

    /// One of so many parts of all.
    pub(crate) fn part_mut(
        &mut self,
        part: usize,
        parts: usize,
    ) -> impl Iterator<Item = (ConnId, &mut Peer)> {
        self.slots.iter_mut().enumerate().skip(part).step_by(parts).filter_map(|(slot, s)| {
            let generation = s.generation;
            Some((ConnId::new(slot as u32, generation), s.peer.as_deref_mut()?))
        })
    }
}

impl Shard {
    /// Admits a connection, reports it, and runs what `reader` makes of it.
    pub(crate) fn admit<R: Future<Output = ()> + 'static>(
        &self,
        peer: Peer,
        request: Option<u64>,
        handshake: Duration,
        reader: impl FnOnce(ConnId, Connection) -> R,
    ) {
        let connection = peer.connection.clone();
        let remote = peer.remote;
        // All that may panic comes first: a connection is in the table with its event and its reader,
        // or not at all.
        let certificates = certificates(&connection);
        let id = self.peers.borrow_mut().insert(peer);
        self.counters.admitted.add(1);
        self.counters.connections.set(self.peers.borrow().len() as u64);
        self.outbox.push(Event::Connected {
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

    /// Counts DATAGRAMs that a connection's send queue has taken.
    pub(crate) fn count_sent(&self, id: ConnId, datagrams: u64, bytes: u64) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(id) {
            peer.totals.sent_datagrams += datagrams;
            peer.totals.sent_bytes += bytes;
        }
    }

    /// Puts a connection on a limiter, off the one before.
    pub(crate) fn set_limits(&self, id: ConnId, limiter: u64, class: IdentityClass, rates: Rates) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(id) {
            let mut limiters = self.limiters.borrow_mut();
            peer.class = class;
            peer.quota = Some(limiter);
            // Attached before it is detached: the same limiter must not end in between.
            let now = Instant::now();
            let before = peer.limiter.replace(limiters.attach(limiter, rates, now));
            if let Some(before) = before {
                limiters.detach(before, now);
            }
        }
    }

    /// Takes a connection out of everything and reports its end. `None`: a defect ended it.
    pub(crate) fn dismiss(&self, id: ConnId, error: Option<&ConnectionError>) {
        let now = Instant::now();
        if let Some(relay) = &mut *self.relay.borrow_mut() {
            relay.forwarder.remove(id, now);
            self.counters.leases.set(relay.forwarder.leases() as u64);
        }
        let Some(mut peer) = self.peers.borrow_mut().remove(id) else {
            return;
        };
        if let Some(limiter) = peer.limiter {
            self.limiters.borrow_mut().detach(limiter, now);
        }
        if let Some(tunnel) = peer.tunnel.take() {
            tunnel.detach(id);
        }
        let (cause, code, reason) = match error {
            Some(error) => {
                let lost = peer.take_overflow();
                self.counters.drops.add(peer.class, DropReason::ReceiveQueueFull, lost);
                match (error, peer.disconnected) {
                    (ConnectionError::LocallyClosed, Some((code, reason))) => {
                        (CloseCause::Local, code.into(), reason.into())
                    }
                    _ => describe(error),
                }
            }
            None => {
                self.counters.connection_panics.add(1);
                (CloseCause::Panic, 0, "internal error".into())
            }
        };
        self.counters.closed.add(1);
        self.counters.connections.set(self.peers.borrow().len() as u64);
        self.outbox.push(Event::Closed {
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
            contained(|| peer.connection.close(VarInt::from_u32(0), b"internal error"));
            if let Some(reader) = peer.reader.take() {
                reader.abort();
            }
            contained(|| drop(peer));
        }
    }
}

/// The address a connection's packets come from, IPv4-mapped given as IPv4.
pub(crate) fn remote_of(connection: &Connection) -> Option<SocketAddr> {
    let remote = connection.path(PathId::ZERO)?.remote_address().ok()?;
    Some(SocketAddr::new(remote.ip().to_canonical(), remote.port()))
}

fn certificates(connection: &Connection) -> Vec<Vec<u8>> {
    connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().ok())
        .map(|chain| chain.iter().map(|der| der.to_vec()).collect())
        .unwrap_or_default()
}

fn describe(error: &ConnectionError) -> (CloseCause, u64, String) {
    match error {
        ConnectionError::LocallyClosed => (CloseCause::Local, 0, String::new()),
        ConnectionError::ApplicationClosed(close) => {
            (CloseCause::Application, close.error_code.into_inner(), printable(&close.reason))
        }
        ConnectionError::ConnectionClosed(close) => {
            (CloseCause::Peer, close.error_code.into(), printable(&close.reason))
        }
        ConnectionError::TransportError(e) => {
            (CloseCause::Transport, e.code.into(), printable(e.reason.as_bytes()))
        }
        ConnectionError::TimedOut => (CloseCause::IdleTimeout, 0, String::new()),
        ConnectionError::Reset => (CloseCause::Reset, 0, String::new()),
        other => (CloseCause::Transport, 0, other.to_string()),
    }
}

/// A peer's words made safe for a log: one line of at most 256 characters.
pub(crate) fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .take(256)
        .map(|c| if c.is_control() { '\u{FFFD}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_stalls_when_it_was_sent_to_and_acknowledges_nothing() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let limit = Duration::from_secs(3);
        let mut health = Health::default();
        assert!(!health.stalled(5, 10, at(0), limit));
        assert!(!health.stalled(5, 10, at(9), limit), "idle is not stalled");
        assert!(!health.stalled(5, 11, at(10), limit));
        assert!(!health.stalled(5, 20, at(12), limit));
        assert!(health.stalled(5, 20, at(13), limit));
        assert!(!health.stalled(6, 20, at(14), limit), "it answers again");
        assert!(!health.stalled(6, 20, at(20), limit));
    }

    #[test]
    fn a_peers_words_are_one_printable_line() {
        assert_eq!(printable(b"a\nb\x1b[31m\xff"), "a\u{FFFD}b\u{FFFD}[31m\u{FFFD}");
        assert_eq!(printable(&[b'x'; 999]).len(), 256);
    }
}
