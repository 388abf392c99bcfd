//! Housekeeping by the clock: changed addresses, silent connectors, expired leases, limiters that
//! are full again, gauges.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use noq::Connection;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    boundary::event::{ConnId, Event},
    panics::contained,
    quic::outstanding,
    shard::Shard,
    shared::Shared,
    table::{Peer, Side},
};

/// The interval at which every connection is checked.
const PERIOD: Duration = Duration::from_millis(250);
/// Turns of one check of all connections: packets wait for a part of it and not for the whole.
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
            shard.shared.counters.ticks.add(1);
            shard
                .shared
                .counters
                .uptime_us
                .set(now.duration_since(shard.shared.started).as_micros() as u64);
            connectors(&shard, now);
            if let Some(listener) = &*shard.listener.borrow() {
                let admission = &listener.admission;
                shard.shared.counters.half_open.set(admission.half_open() as u64);
                shard.shared.counters.joins.set(admission.joins.under_way() as u64);
            }
            shard.peers.borrow_mut().limiters.sweep(now);
        }
    }
}

/// Checks a turn's part of the connections, asks busy ones to count lost datagrams, and ends the
/// ones that a defect has left unusable.
fn look(shard: &Shard, turn: usize, now: Instant) {
    let (shared, mut broken) = (&shard.shared, Vec::new());
    // Once a second: it copies the state of the congestion control.
    let look_at_acks = shard.shared.counters.ticks.get().is_multiple_of(4);
    for (conn, peer) in shard.peers.borrow_mut().part_mut(turn, TURNS) {
        peer.overflow.ask();
        let looked = contained(|| match &mut peer.side {
            Side::Accepted { .. } => {
                address(shared, conn, peer);
                if look_at_acks {
                    acknowledgements(shared, peer, now);
                }
            }
            Side::Dialled { datagram_limit: last, .. } => {
                datagram_limit(shared, conn, &peer.queue.connection, last, now);
            }
        });
        if looked.is_none() {
            broken.push(conn);
        }
    }
    for conn in broken {
        shard.dismiss(conn, None);
    }
}

/// Reports the address of a client when it has changed since the last report. With a full outbox a
/// later check reports the newest one.
fn address(shared: &Shared, conn: ConnId, peer: &mut Peer) {
    let remote = peer.current_remote();
    if remote != peer.remote && shared.outbox.offer(Event::AddressChanged { conn, remote }) {
        peer.remote = remote;
        shared.counters.address_changes.add(1);
    }
}

/// Closes a connection whose peer takes packets and acknowledges none.
fn acknowledgements(shared: &Shared, peer: &mut Peer, now: Instant) {
    if peer.disconnected.is_none() && outstanding::too_much(peer.connection(), now) {
        shared.counters.closed_unacknowledged.add(1);
        peer.disconnect(NOTHING_ACKNOWLEDGED, "packets are not acknowledged");
    }
}

/// Reports the DATAGRAM limit of a client's own connection, when it changes.
fn datagram_limit(
    shared: &Shared,
    conn: ConnId,
    connection: &Connection,
    last: &mut Option<(usize, Instant)>,
    now: Instant,
) {
    let max_datagram = connection.max_datagram_size().unwrap_or(0);
    let due = last
        .is_none_or(|(last, at)| last != max_datagram && now.duration_since(at) >= REPORT_LIMIT);
    if due && shared.outbox.offer(Event::DatagramLimit { conn, max_datagram }) {
        *last = Some((max_datagram, now));
    }
}

/// Passes over connectors that acknowledge no packets.
fn connectors(shard: &Shard, now: Instant) {
    let Some(relay) = &mut *shard.relay.borrow_mut() else {
        return;
    };
    let limit = relay.config.stall_timeout;
    let routes = &mut relay.forwarder.routes;
    let serving: Vec<ConnId> = routes.connectors().collect();
    let mut peers = shard.peers.borrow_mut();
    for conn in serving {
        if let Some(Peer { queue, side: Side::Accepted { health, .. }, .. }) = peers.get_mut(conn)
            && let Some(stats) = contained(|| queue.connection.stats())
        {
            let (acks, sent) = (stats.frame_rx.acks, stats.frame_tx.datagram);
            routes.set_stalled(conn, health.stalled(acks, sent, now, limit));
        }
    }
    relay.forwarder.expire(now);
    shard.shared.counters.leases.set(relay.forwarder.leases() as u64);
}
