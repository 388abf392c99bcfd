//! The connection table of one engine thread, with the limiters that connections share.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use noq::{Connection, PathId, VarInt};
use tokio::task::AbortHandle;

use crate::{
    boundary::{
        counters::{Counters, DropReason},
        event::{ConnId, Inspection, Totals},
        limits::{IdentityClass, Rates},
    },
    bucket::Bucket,
    queue::{Overflow, SendQueue},
    relay::{
        limiter::{LimiterIndex, RateLimiters},
        usage::UsageBoard,
    },
    signaling,
    slots::Slots,
};

/// One admitted connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The connection with its send queue.
    pub(crate) queue: SendQueue,
    /// The address last reported, IPv4-mapped given as IPv4.
    pub(crate) remote: SocketAddr,
    pub(crate) totals: Totals,
    pub(crate) class: IdentityClass,
    pub(crate) limiter: Option<LimiterIndex>,
    /// The id of that limiter: all connections of an identity have one, or all of a source network.
    pub(crate) quota: Option<u64>,
    pub(crate) overflow: Overflow,
    pub(crate) side: Side,
    /// Code and reason, if the engine itself has closed the connection.
    pub(crate) disconnected: Option<(u32, &'static str)>,
    pub(crate) signaling: signaling::queue::Handle,
    /// The reader of the connection.
    pub(crate) reader: Option<AbortHandle>,
    pub(crate) admitted: Instant,
}

/// The end that began the connection, and the state of only such connections.
#[derive(Debug)]
pub(crate) enum Side {
    /// The peer came to this server.
    Accepted {
        /// Bucket of its registration messages.
        control: Bucket,
        /// Bucket of ICMP answers to it.
        icmp: Bucket,
        health: Health,
    },
    /// This client went to a server.
    Dialled {
        /// The client's own endpoint.
        endpoint: noq::Endpoint,
        /// The largest DATAGRAM payload last reported, and when.
        datagram_limit: Option<(usize, Instant)>,
    },
}

/// Whether a connector acknowledges packets.
#[derive(Debug, Default)]
pub(crate) struct Health {
    acks: u64,
    sent: u64,
    /// The moment since which packets are out without any acknowledgement.
    waiting: Option<Instant>,
}

impl Health {
    /// Takes the newest figures; true if it has acknowledged no packets for `limit`.
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
    pub(crate) fn new(queue: SendQueue, remote: SocketAddr, side: Side) -> Self {
        Self {
            queue,
            remote,
            totals: Totals::default(),
            class: IdentityClass::default(),
            limiter: None,
            quota: None,
            overflow: Overflow::default(),
            side,
            disconnected: None,
            signaling: None,
            reader: None,
            admitted: Instant::now(),
        }
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.queue.connection
    }

    /// Closes the connection, and remembers why for the report of its end.
    pub(crate) fn disconnect(&mut self, code: u32, reason: &'static str) {
        self.disconnected = Some((code, reason));
        self.connection().close(VarInt::from_u32(code), reason.as_bytes());
    }

    /// The address the peer's packets come from now.
    pub(crate) fn current_remote(&self) -> SocketAddr {
        remote_of(self.connection()).unwrap_or(self.remote)
    }

    /// Counts the DATAGRAMs lost to a full receive queue since the last call. Exact only while that
    /// queue is empty.
    pub(crate) fn count_overflow(&mut self, counters: &Counters) {
        let lost = self.overflow.take(&self.queue.connection, self.totals.received_datagrams);
        self.totals.dropped += lost;
        counters.drops.add(self.class, DropReason::ReceiveQueueFull, lost);
    }

    pub(crate) fn inspect(&self) -> Inspection {
        let path = self.connection().path_stats(PathId::ZERO);
        let stats = self.connection().stats();
        Inspection {
            rtt_us: path.as_ref().map_or(0, |p| p.rtt.as_micros() as u64),
            mtu: path.as_ref().map_or(0, |p| p.current_mtu),
            max_datagram: self.connection().max_datagram_size().unwrap_or(0),
            cwnd: path.map_or(0, |p| p.cwnd),
            sent_packets: stats.sent_packets,
            lost_packets: stats.lost_packets,
            received_packets: stats.udp_rx.datagrams,
            totals: self.totals,
        }
    }
}

/// The address a connection's packets come from, IPv4-mapped given as IPv4.
pub(crate) fn remote_of(connection: &Connection) -> Option<SocketAddr> {
    let remote = connection.path(PathId::ZERO)?.remote_address().ok()?;
    Some(SocketAddr::new(remote.ip().to_canonical(), remote.port()))
}

/// The connection table.
#[derive(Debug)]
pub(crate) struct Peers {
    slots: Slots<Box<Peer>>,
    pub(crate) limiters: RateLimiters,
}

impl Peers {
    /// No connections; `usage` will show the usage of new ones.
    pub(crate) fn new(usage: Arc<UsageBoard>) -> Self {
        Self { slots: Slots::default(), limiters: RateLimiters::new(usage) }
    }

    pub(crate) fn insert(&mut self, peer: Peer) -> ConnId {
        self.slots.insert(Box::new(peer)).into()
    }

    #[inline]
    pub(crate) fn get(&self, id: ConnId) -> Option<&Peer> {
        self.slots.get(id.into()).map(Box::as_ref)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Peer> {
        self.slots.get_mut(id.into()).map(Box::as_mut)
    }

    /// Takes a connection out, off its limiter.
    pub(crate) fn remove(&mut self, id: ConnId, now: Instant) -> Option<Box<Peer>> {
        let peer = self.slots.remove(id.into())?;
        if let Some(limiter) = peer.limiter {
            self.limiters.detach(limiter, now);
        }
        Some(peer)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
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
        self.slots.part_mut(part, parts).map(|(id, peer)| (id.into(), peer.as_mut()))
    }

    /// Puts a connection on a limiter, off the one before.
    pub(crate) fn set_limits(
        &mut self,
        id: ConnId,
        limiter: u64,
        class: IdentityClass,
        rates: Rates,
    ) {
        if self.get(id).is_none() {
            return;
        }
        // Attached before it is detached: the same limiter must not end in between.
        let now = Instant::now();
        let after = self.limiters.attach(limiter, rates, now);
        if let Some(peer) = self.get_mut(id) {
            peer.class = class;
            peer.quota = Some(limiter);
            if let Some(before) = peer.limiter.replace(after) {
                self.limiters.detach(before, now);
            }
        }
    }

    /// Counts DATAGRAMs that were read from a connection.
    pub(crate) fn count_received(&mut self, id: ConnId, datagrams: u64, bytes: u64) {
        if let Some(peer) = self.get_mut(id) {
            peer.totals.received_datagrams += datagrams;
            peer.totals.received_bytes += bytes;
        }
    }

    /// Counts DATAGRAMs that a connection's send queue has taken.
    pub(crate) fn count_sent(&mut self, id: ConnId, datagrams: u64, bytes: u64) {
        if let Some(peer) = self.get_mut(id) {
            peer.totals.sent_datagrams += datagrams;
            peer.totals.sent_bytes += bytes;
        }
    }

    /// Counts DATAGRAMs from a connection that were dropped.
    pub(crate) fn count_dropped(
        &mut self,
        counters: &Counters,
        id: ConnId,
        reason: DropReason,
        datagrams: u64,
    ) {
        let mut class = IdentityClass::default();
        if let Some(peer) = self.get_mut(id) {
            peer.totals.dropped += datagrams;
            class = peer.class;
        }
        counters.drops.add(class, reason, datagrams);
    }
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
}
