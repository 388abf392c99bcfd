//! What is looked after by the clock: addresses that changed, connectors that fell silent, leases
//! that ran out, meters that are full again, gauges.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    event::{ConnId, Event},
    panics::contained,
    shard::Shard,
};

/// How often every connection is looked at.
const PERIOD: Duration = Duration::from_millis(250);

/// The least time between two reports of a changed DATAGRAM size.
const REPORT_LIMIT: Duration = Duration::from_secs(1);

/// Runs for as long as the engine does.
pub(crate) async fn run(shard: Rc<Shard>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        shard.counters.ticks.add(1);
        shard.counters.uptime_us.set(now.duration_since(shard.started).as_micros() as u64);
        addresses(&shard);
        datagram_limits(&shard, now);
        connectors(&shard, now);
        shard.meters.borrow_mut().sweep(now);
    }
}

/// Reports every connection whose peer sends from another address than last time, and asks busy
/// ones to count what they lost. Ends those that a defect has left unusable: what comes after this
/// may ask any connection.
fn addresses(shard: &Shard) {
    let mut broken = Vec::new();
    for (conn, peer) in shard.peers.borrow_mut().iter_mut() {
        peer.audit = true;
        let Some(remote) = contained(|| peer.current_remote()) else {
            broken.push(conn);
            continue;
        };
        if remote != peer.remote && peer.endpoint.is_none() {
            peer.remote = remote;
            shard.counters.address_changes.add(1);
            shard.outbox.push(Event::AddressChanged { conn, remote });
        }
    }
    for conn in broken {
        shard.dismiss(conn, None);
    }
}

/// Reports what the connections of clients can carry, when it changes.
fn datagram_limits(shard: &Shard, now: Instant) {
    for (conn, peer) in shard.peers.borrow_mut().iter_mut() {
        if peer.endpoint.is_none() {
            continue;
        }
        let max_datagram = peer.connection.max_datagram_size().unwrap_or(0);
        let due = peer.datagram_limit.is_none_or(|(last, at)| {
            last != max_datagram && now.duration_since(at) >= REPORT_LIMIT
        });
        if due && shard.outbox.offer(Event::DatagramLimit { conn, max_datagram }) {
            peer.datagram_limit = Some((max_datagram, now));
        }
    }
}

/// Passes over connectors that were sent to and acknowledge nothing.
fn connectors(shard: &Shard, now: Instant) {
    let Some(relay) = &mut *shard.relay.borrow_mut() else {
        return;
    };
    let limit = relay.config.relay.stall_timeout;
    let routes = &mut relay.forwarder.routes;
    let serving: Vec<ConnId> = routes.connectors().collect();
    let mut peers = shard.peers.borrow_mut();
    for conn in serving {
        if let Some(peer) = peers.get_mut(conn) {
            let stats = peer.connection.stats();
            let (acks, sent) = (stats.frame_rx.acks, stats.frame_tx.datagram);
            routes.set_stalled(conn, peer.health.stalled(acks, sent, now, limit));
        }
    }
    relay.forwarder.expire(now);
    shard.counters.leases.set(relay.forwarder.leases() as u64);
    shard.counters.half_open.set(relay.half_open() as u64);
}
