//! What is looked after by the clock: addresses that changed, connectors that fell silent, leases
//! that ran out, limiters that are full again, gauges.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    event::{ConnId, Event},
    outstanding,
    panics::contained,
    shard::{Peer, Shard},
};

/// How often every connection is looked at.
const PERIOD: Duration = Duration::from_millis(250);
/// Turns that one look at all connections takes: packets wait for a part of them and not for all.
const TURNS: usize = 10;

/// The code of the CONNECTION_CLOSE for a peer that acknowledges nothing; `wire/close_codes.py` has the others.
const NOTHING_ACKNOWLEDGED: u32 = 10;

/// The least time between two reports of a changed DATAGRAM size.
const REPORT_LIMIT: Duration = Duration::from_secs(1);

/// Runs for as long as the engine does.
pub(crate) async fn run(shard: Rc<Shard>) {
    let mut ticks = interval(PERIOD / TURNS as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in (0..TURNS).cycle() {
        ticks.tick().await;
        let now = Instant::now();
        look(&shard, turn, now);
        if turn == 0 {
            shard.counters.ticks.add(1);
            shard.counters.uptime_us.set(now.duration_since(shard.started).as_micros() as u64);
            connectors(&shard, now);
            shard.limiters.borrow_mut().sweep(now);
        }
    }
}

/// Looks at a turn's part of the connections, and asks busy ones to count what they lost. Ends
/// those that a defect has left unusable.
fn look(shard: &Shard, turn: usize, now: Instant) {
    let mut broken = Vec::new();
    // Once a second: it copies the state of the congestion control.
    let look_at_acks = shard.counters.ticks.get().is_multiple_of(4);
    for (conn, peer) in shard.peers.borrow_mut().part_mut(turn, TURNS) {
        peer.audit = true;
        let looked = contained(|| match peer.endpoint {
            None => {
                address(shard, conn, peer);
                if look_at_acks {
                    acknowledgements(shard, peer, now);
                }
            }
            Some(_) => datagram_limit(shard, conn, peer, now),
        });
        if looked.is_none() {
            broken.push(conn);
        }
    }
    for conn in broken {
        shard.dismiss(conn, None);
    }
}

/// Reports the address a client sends from, when it is another than the one last reported. While the
/// outbox is full it waits for a later look, which reports the newest one.
fn address(shard: &Shard, conn: ConnId, peer: &mut Peer) {
    let remote = peer.current_remote();
    if remote != peer.remote && shard.outbox.offer(Event::AddressChanged { conn, remote }) {
        peer.remote = remote;
        shard.counters.address_changes.add(1);
    }
}

/// Closes a connection whose peer takes packets and acknowledges none.
fn acknowledgements(shard: &Shard, peer: &mut Peer, now: Instant) {
    if peer.disconnected.is_none() && outstanding::too_much(&peer.connection, now) {
        shard.counters.closed_unacknowledged.add(1);
        peer.disconnect(NOTHING_ACKNOWLEDGED, "packets are not acknowledged");
    }
}

/// Reports what a client's own connection can carry, when it changes.
fn datagram_limit(shard: &Shard, conn: ConnId, peer: &mut Peer, now: Instant) {
    let max_datagram = peer.connection.max_datagram_size().unwrap_or(0);
    let due = peer
        .datagram_limit
        .is_none_or(|(last, at)| last != max_datagram && now.duration_since(at) >= REPORT_LIMIT);
    if due && shard.outbox.offer(Event::DatagramLimit { conn, max_datagram }) {
        peer.datagram_limit = Some((max_datagram, now));
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
        if let Some(peer) = peers.get_mut(conn)
            && let Some(stats) = contained(|| peer.connection.stats())
        {
            let (acks, sent) = (stats.frame_rx.acks, stats.frame_tx.datagram);
            routes.set_stalled(conn, peer.health.stalled(acks, sent, now, limit));
        }
    }
    relay.forwarder.expire(now);
    shard.counters.leases.set(relay.forwarder.leases() as u64);
    shard.counters.half_open.set(relay.admission.half_open() as u64);
}
