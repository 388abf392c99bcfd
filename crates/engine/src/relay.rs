//! Carries out what [`forward`](crate::forward) decides: batches to targets, ICMP answers to
//! senders, and a count for everything that goes nowhere.

use std::time::Instant;

use bytes::Bytes;
use noq::{Connection, SendDatagramError};

use crate::{
    admission::Admission,
    boundary::limits::IdentityClass,
    config::ListenConfig,
    counters::{Counters, DropReason},
    event::{ConnId, Event},
    forward::{Delivery, Forwarder, Refusal, Verdict},
    icmp::{self, IcmpError},
    limiter::LimiterIndex,
    panics::contained,
    routes::ServiceIndex,
    shard::{Peers, Shard},
};

/// A server's part of a shard.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) config: ListenConfig,
    pub(crate) forwarder: Forwarder,
    pub(crate) admission: Admission,
    pub(crate) endpoints: Vec<noq::Endpoint>,
    run: Run,
    answer: Vec<u8>,
}

/// Consecutive packets of one batch that go the same way.
#[derive(Debug, Default)]
struct Run {
    to: Option<Leg>,
    /// The target's limiter.
    limiter: Option<LimiterIndex>,
    packets: Vec<Bytes>,
    /// For each packet, the datagram it came in and where it starts there.
    origins: Vec<(usize, usize)>,
    /// The last target of the batch whose queue is over half full.
    crowded: Option<ConnId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leg {
    to: ConnId,
    service: ServiceIndex,
    to_agent: bool,
}

/// Where a packet came from, for an answer about it.
struct Origin<'a> {
    from: ConnId,
    packet: &'a [u8],
}

impl Relay {
    pub(crate) fn new(config: ListenConfig, forwarder: Forwarder) -> Self {
        Self {
            admission: Admission::new(&config),
            config,
            forwarder,
            endpoints: Vec::new(),
            run: Run::default(),
            answer: Vec::new(),
        }
    }

    /// What noq is told to queue, so that it never discards what [`fits`] let in: it charges 32
    /// bytes for each datagram, and the smallest relayed one has 20.
    pub(crate) fn transport_queue(limit: usize) -> usize {
        limit * 13 / 5 + 4096
    }

    /// Relays the datagrams of one connection, in their order. Returns a target that should be
    /// let transmit before more comes, if there is one.
    pub(crate) fn relay(
        &mut self,
        shard: &Shard,
        from: ConnId,
        datagrams: &[Bytes],
    ) -> Option<ConnId> {
        let now = Instant::now();
        let peers = &mut *shard.peers.borrow_mut();
        // Taken, so that a panic lets go of it: nothing may be left for the next connection's batch.
        let mut run = std::mem::take(&mut self.run);
        let mut limiter = None;
        if let Some(peer) = peers.get_mut(from) {
            limiter = peer.limiter;
            peer.totals.received_datagrams += datagrams.len() as u64;
            peer.totals.received_bytes += datagrams.iter().map(|d| d.len() as u64).sum::<u64>();
        }
        for (index, datagram) in datagrams.iter().enumerate() {
            #[cfg(test)]
            assert!(datagram != tests::DEFECT, "injected by a test");
            match self.forwarder.forward(from, datagram, now) {
                Verdict::Deliver(Delivery { to, packet, packet_at, service, to_agent }) => {
                    let leg = Some(Leg { to, service, to_agent });
                    if run.to != leg {
                        self.flush(&mut run, shard, peers, from, datagrams, now);
                        run.to = leg;
                        run.limiter = peers.get(to).and_then(|p| p.limiter);
                    }
                    let size = packet.len();
                    if !shard.limiters.borrow_mut().admit(limiter, run.limiter, size, now) {
                        let reason = DropReason::RateLimited;
                        self.count_drop(shard, peers, from, reason, Some(service), 1);
                        continue;
                    }
                    run.packets.push(packet);
                    run.origins.push((index, packet_at));
                }
                Verdict::Control => control(shard, peers, from, datagram, now),
                Verdict::Drop(Refusal { reason, service, answer }) => {
                    self.count_drop(shard, peers, from, reason, service, 1);
                    if let Some((error, at)) = answer {
                        let origin = Origin { from, packet: &datagram[at..] };
                        self.answer(&shard.counters, peers, origin, error, now);
                    }
                }
            }
        }
        self.flush(&mut run, shard, peers, from, datagrams, now);
        let translated = self.forwarder.take_translated();
        if translated > 0 {
            shard.counters.translated.add(translated);
        }
        let crowded = run.crowded.take();
        self.run = run;
        crowded
    }

    /// What a target has sent so far; `None` unless its queue is over half full.
    pub(crate) fn progress(&self, peers: &Peers, target: ConnId) -> Option<u64> {
        let (connection, limit) = (&peers.get(target)?.connection, self.config.send_queue);
        let crowded = contained(|| queued(connection, limit))? > limit / 2;
        crowded.then(|| connection.stats().frame_tx.datagram)
    }

    /// Hands the collected run to its target.
    fn flush(
        &mut self,
        run: &mut Run,
        shard: &Shard,
        peers: &mut Peers,
        from: ConnId,
        datagrams: &[Bytes],
        now: Instant,
    ) {
        let Some(leg) = run.to.take() else {
            return;
        };
        let Run { packets, origins, crowded, .. } = run;
        let limit = self.config.send_queue;
        let target = peers.get(leg.to).and_then(|peer| {
            let connection = peer.connection.clone();
            let queued = contained(|| queued(&connection, limit))?;
            Some((connection, queued))
        });
        let Some((connection, queued)) = target else {
            let n = packets.len() as u64;
            self.count_drop(shard, peers, from, DropReason::TargetGone, Some(leg.service), n);
            packets.clear();
            origins.clear();
            return;
        };
        let bytes: usize = packets.iter().map(Bytes::len).sum();
        if queued + bytes > limit / 2 {
            *crowded = Some(leg.to);
            // A packet is a slice of everything received with it. One that may wait must not keep
            // all of that from being freed.
            packets.iter_mut().for_each(|p| *p = Bytes::copy_from_slice(p));
        }
        let send_all = || connection.send_many_datagrams(packets).is_ok();
        if queued + bytes <= limit && contained(send_all) == Some(true) {
            self.count_delivered(shard, peers, from, leg, packets.len() as u64, bytes as u64);
        } else {
            // Something does not fit: one by one, to tell which and why.
            for (packet, (index, at)) in packets.drain(..).zip(origins.drain(..)) {
                let size = packet.len() as u64;
                match send(&connection, packet, limit) {
                    Ok(()) => self.count_delivered(shard, peers, from, leg, 1, size),
                    Err(reason) => {
                        self.count_drop(shard, peers, from, reason, Some(leg.service), 1);
                        if reason == DropReason::TooLarge {
                            let mtu = connection.max_datagram_size().unwrap_or(0);
                            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                            let origin = Origin { from, packet: &datagrams[index][at..] };
                            let error = IcmpError::TooBig { mtu };
                            self.answer(&shard.counters, peers, origin, error, now);
                        }
                    }
                }
            }
        }
        packets.clear();
        origins.clear();
    }

    fn count_delivered(
        &self,
        shard: &Shard,
        peers: &mut Peers,
        from: ConnId,
        leg: Leg,
        n: u64,
        bytes: u64,
    ) {
        let counters = &shard.counters;
        let service = self.forwarder.routes.counters(leg.service);
        if leg.to_agent {
            counters.relayed_to_agent_packets.add(n);
            counters.relayed_to_agent_bytes.add(bytes);
            if let Some(service) = service {
                service.to_agent_packets.add(n);
                service.to_agent_bytes.add(bytes);
            }
        } else {
            counters.relayed_to_connector_packets.add(n);
            counters.relayed_to_connector_bytes.add(bytes);
            if let Some(service) = service {
                service.to_connector_packets.add(n);
                service.to_connector_bytes.add(bytes);
            }
        }
        if let Some(peer) = peers.get_mut(leg.to) {
            peer.totals.sent_datagrams += n;
            peer.totals.sent_bytes += bytes;
        }
        let limiter = |conn| peers.get(conn).and_then(|p| p.limiter);
        let (from, to) = (limiter(from), limiter(leg.to));
        if from.is_some() || to.is_some() {
            shard.limiters.borrow().moved(from, to, bytes);
        }
    }

    fn count_drop(
        &self,
        shard: &Shard,
        peers: &mut Peers,
        from: ConnId,
        reason: DropReason,
        service: Option<ServiceIndex>,
        n: u64,
    ) {
        let mut class = IdentityClass::default();
        if let Some(peer) = peers.get_mut(from) {
            peer.totals.dropped += n;
            class = peer.class;
        }
        shard.counters.drops.add(class, reason, n);
        if let Some(service) = service.and_then(|s| self.forwarder.routes.counters(s)) {
            service.drops.add(reason, n);
        }
    }

    /// Tells a sender why its packet is not delivered, within its rate.
    fn answer(
        &mut self,
        counters: &Counters,
        peers: &mut Peers,
        origin: Origin<'_>,
        error: IcmpError,
        now: Instant,
    ) {
        let (v4, v6) = (self.config.relay.icmp_source_v4, self.config.relay.icmp_source_v6);
        let Some(peer) = peers.get_mut(origin.from) else {
            return;
        };
        self.answer.clear();
        if icmp::error(error, origin.packet, v4, v6, &mut self.answer).is_none()
            || !peer.icmp.take(now)
        {
            return;
        }
        let packet = Bytes::copy_from_slice(&self.answer);
        let size = packet.len() as u64;
        if send(&peer.connection, packet, self.config.send_queue).is_ok() {
            counters.icmp_sent.add(1);
            peer.totals.sent_datagrams += 1;
            peer.totals.sent_bytes += size;
        }
    }
}

/// Passes a registration up, within the connection's rate.
fn control(shard: &Shard, peers: &mut Peers, from: ConnId, datagram: &Bytes, now: Instant) {
    let Some(peer) = peers.get_mut(from) else {
        return;
    };
    let reason = if !peer.control.take(now) {
        DropReason::ControlFlood
    } else if shard
        .outbox
        .offer(Event::Control { conn: from, data: Bytes::copy_from_slice(datagram) })
    {
        return;
    } else {
        DropReason::OutboxFull
    };
    shard.counters.drops.add(peer.class, reason, 1);
    peer.totals.dropped += 1;
}

/// Payload bytes waiting to be sent, where [`Relay::transport_queue`] of `limit` is noq's own
/// limit.
pub(crate) fn queued(connection: &Connection, limit: usize) -> usize {
    Relay::transport_queue(limit).saturating_sub(connection.datagram_send_buffer_space())
}

/// Queues one datagram unless the queue is full; never pushes out an older one.
pub(crate) fn send(connection: &Connection, packet: Bytes, limit: usize) -> Result<(), DropReason> {
    let sent = contained(|| {
        if queued(connection, limit) + packet.len() > limit {
            return Err(DropReason::SendQueueFull);
        }
        connection.send_datagram(packet).map_err(|e| match e {
            SendDatagramError::TooLarge => DropReason::TooLarge,
            _ => DropReason::TargetGone,
        })
    });
    sent.unwrap_or(Err(DropReason::TargetGone))
}

#[cfg(test)]
mod tests;
