//! Carries out the decisions of [`forward`](crate::relay::forward): batches to targets, ICMP
//! answers to senders, and a count for each dropped datagram.

use std::time::Instant;

use bytes::Bytes;

use crate::{
    boundary::{
        counters::{Counters, DropReason},
        event::{ConnId, Event},
    },
    config::RelayConfig,
    icmp::{self, IcmpError},
    panics::contained,
    relay::{
        backpressure::is_crowded,
        forward::{Delivery, Forwarder, Refusal, Verdict},
        limiter::LimiterIndex,
        routes::ServiceIndex,
    },
    shared::Shared,
    table::{Peer, Peers, Side},
};

/// The delivery of packets of a server's connections.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) config: RelayConfig,
    pub(crate) forwarder: Forwarder,
    run: Run,
    answer: Vec<u8>,
}

/// Consecutive packets of one batch for one target.
#[derive(Debug, Default)]
struct Run {
    to: Option<Leg>,
    /// The target's limiter.
    limiter: Option<LimiterIndex>,
    packets: Vec<Bytes>,
    /// For each packet, its datagram and its offset there.
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

/// The source of a packet, for an answer about it.
struct Origin<'a> {
    from: ConnId,
    packet: &'a [u8],
}

impl Relay {
    pub(crate) fn new(config: RelayConfig, forwarder: Forwarder) -> Self {
        Self { config, forwarder, run: Run::default(), answer: Vec::new() }
    }

    /// Relays the datagrams of one connection, in their order. Returns a target that should
    /// transmit before it gets more, if there is one.
    pub(crate) fn relay(
        &mut self,
        peers: &mut Peers,
        shared: &Shared,
        from: ConnId,
        datagrams: &[Bytes],
    ) -> Option<ConnId> {
        let now = Instant::now();
        // Taken, so that a panic drops it: the next connection's batch must find it empty.
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
                        self.flush(&mut run, peers, shared, from, datagrams, now);
                        run.to = leg;
                        run.limiter = peers.get(to).and_then(|p| p.limiter);
                    }
                    let size = packet.len();
                    if !peers.limiters.admit(limiter, run.limiter, size, now) {
                        let reason = DropReason::RateLimited;
                        self.count_drop(peers, shared, from, reason, Some(service), 1);
                        continue;
                    }
                    run.packets.push(packet);
                    run.origins.push((index, packet_at));
                }
                Verdict::Control => control(peers, shared, from, datagram, now),
                Verdict::Drop(Refusal { reason, service, answer }) => {
                    self.count_drop(peers, shared, from, reason, service, 1);
                    if let Some((error, at)) = answer {
                        let origin = Origin { from, packet: &datagram[at..] };
                        self.answer(peers, &shared.counters, origin, error, now);
                    }
                }
            }
        }
        self.flush(&mut run, peers, shared, from, datagrams, now);
        let translated = self.forwarder.take_translated();
        if translated > 0 {
            shared.counters.translated.add(translated);
        }
        let crowded = run.crowded.take();
        self.run = run;
        crowded
    }

    /// Hands the collected run to its target.
    fn flush(
        &mut self,
        run: &mut Run,
        peers: &mut Peers,
        shared: &Shared,
        from: ConnId,
        datagrams: &[Bytes],
        now: Instant,
    ) {
        let Some(leg) = run.to.take() else {
            return;
        };
        let Run { packets, origins, crowded, .. } = run;
        let target = peers.get(leg.to).and_then(|peer| {
            let queue = peer.queue.clone();
            let queued = contained(|| queue.queued())?;
            Some((queue, queued))
        });
        let Some((queue, queued)) = target else {
            let n = packets.len() as u64;
            self.count_drop(peers, shared, from, DropReason::TargetGone, Some(leg.service), n);
            packets.clear();
            origins.clear();
            return;
        };
        let bytes: usize = packets.iter().map(Bytes::len).sum();
        if is_crowded(&queue, queued + bytes) {
            *crowded = Some(leg.to);
            // A packet is a slice of everything received with it. One that may wait must not keep
            // all of that from being freed.
            packets.iter_mut().for_each(|p| *p = Bytes::copy_from_slice(p));
        }
        let send_all = || queue.connection.send_many_datagrams(packets).is_ok();
        if queued + bytes <= queue.limit() && contained(send_all) == Some(true) {
            self.count_delivered(peers, shared, from, leg, packets.len() as u64, bytes as u64);
        } else {
            // Something does not fit: one by one, to tell which and why.
            for (packet, (index, at)) in packets.drain(..).zip(origins.drain(..)) {
                let size = packet.len() as u64;
                match queue.send(packet) {
                    Ok(()) => self.count_delivered(peers, shared, from, leg, 1, size),
                    Err(reason) => {
                        self.count_drop(peers, shared, from, reason, Some(leg.service), 1);
                        if reason == DropReason::TooLarge {
                            let mtu = queue.connection.max_datagram_size().unwrap_or(0);
                            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                            let origin = Origin { from, packet: &datagrams[index][at..] };
                            let error = IcmpError::TooBig { mtu };
                            self.answer(peers, &shared.counters, origin, error, now);
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
        peers: &mut Peers,
        shared: &Shared,
        from: ConnId,
        leg: Leg,
        n: u64,
        bytes: u64,
    ) {
        let counters = &shared.counters;
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
        peers.count_sent(leg.to, n, bytes);
        let limiter = |conn| peers.get(conn).and_then(|p| p.limiter);
        let (from, to) = (limiter(from), limiter(leg.to));
        if from.is_some() || to.is_some() {
            peers.limiters.moved(from, to, bytes);
        }
    }

    fn count_drop(
        &self,
        peers: &mut Peers,
        shared: &Shared,
        from: ConnId,
        reason: DropReason,
        service: Option<ServiceIndex>,
        n: u64,
    ) {
        peers.count_dropped(&shared.counters, from, reason, n);
        if let Some(service) = service.and_then(|s| self.forwarder.routes.counters(s)) {
            service.drops.add(reason, n);
        }
    }

    /// Answers the sender of an undelivered packet, within its rate.
    fn answer(
        &mut self,
        peers: &mut Peers,
        counters: &Counters,
        origin: Origin<'_>,
        error: IcmpError,
        now: Instant,
    ) {
        let (v4, v6) = (self.config.icmp_source_v4, self.config.icmp_source_v6);
        let Some(Peer { queue, totals, side: Side::Accepted { icmp: rate, .. }, .. }) =
            peers.get_mut(origin.from)
        else {
            return;
        };
        self.answer.clear();
        if icmp::error(error, origin.packet, v4, v6, &mut self.answer).is_none() || !rate.take(now)
        {
            return;
        }
        let packet = Bytes::copy_from_slice(&self.answer);
        let size = packet.len() as u64;
        if queue.send(packet).is_ok() {
            counters.icmp_sent.add(1);
            totals.sent_datagrams += 1;
            totals.sent_bytes += size;
        }
    }
}

/// Passes a registration up, within the connection's rate.
fn control(peers: &mut Peers, shared: &Shared, from: ConnId, datagram: &Bytes, now: Instant) {
    let Some(Peer { class, totals, side: Side::Accepted { control: rate, .. }, .. }) =
        peers.get_mut(from)
    else {
        return;
    };
    let reason = if !rate.take(now) {
        DropReason::ControlFlood
    } else if shared
        .outbox
        .offer(Event::Control { conn: from, data: Bytes::copy_from_slice(datagram) })
    {
        return;
    } else {
        DropReason::OutboxFull
    };
    shared.counters.drops.add(*class, reason, 1);
    totals.dropped += 1;
}

#[cfg(test)]
mod tests;
