//! A client's connection: its IP packets go to its tunnel, other datagrams go up.

use std::{cell::RefCell, net::SocketAddr, pin::pin};

use bytes::Bytes;
use noq::{Connection, ConnectionError};
use tokio_stream::{Stream, StreamExt};

use super::Tunnels;
use crate::{
    boundary::{
        counters::DropReason,
        event::{ConnId, Event},
        limits::IdentityClass,
    },
    packet::is_packet,
    quic::receive::read,
    shared::Shared,
    table::Peers,
};

/// Delivers the datagrams of a connection until its end; returns the reason of the end.
pub(crate) async fn deliver(
    tunnels: &RefCell<Tunnels>,
    peers: &RefCell<Peers>,
    shared: &Shared,
    id: ConnId,
    connection: Connection,
) -> ConnectionError {
    let mut observed = pin!(connection.observed_external_addr());
    let each = async |datagrams: &[Bytes]| {
        let tunnel = tunnels.borrow().of(id).cloned();
        let Some(tunnel) = tunnel else {
            return pass_up(peers, shared, id, datagrams);
        };
        let packets = || datagrams.iter().filter(|d| is_packet(d));
        count_received(peers, id, packets());
        tunnel.receive(packets());
        let others: Vec<Bytes> = datagrams.iter().filter(|d| !is_packet(d)).cloned().collect();
        if !others.is_empty() {
            pass_up(peers, shared, id, &others);
        }
    };
    let mut reader = pin!(read(peers, shared, id, connection, each));
    loop {
        tokio::select! {
            end = &mut reader => break end,
            address = next(&mut observed) => report(shared, id, address),
        }
    }
}

/// Hands a client's datagrams to the control plane.
fn pass_up(peers: &RefCell<Peers>, shared: &Shared, id: ConnId, datagrams: &[Bytes]) {
    let data = datagrams.iter().map(|d| Bytes::copy_from_slice(d)).collect();
    let taken = shared.outbox.offer(Event::Datagrams { conn: id, data });
    count_received(peers, id, datagrams.iter());
    if !taken {
        let (reason, n) = (DropReason::OutboxFull, datagrams.len() as u64);
        peers.borrow_mut().count_dropped(&shared.counters, id, reason, n);
    }
}

fn count_received<'a>(
    peers: &RefCell<Peers>,
    id: ConnId,
    datagrams: impl Iterator<Item = &'a Bytes>,
) {
    let (n, bytes) = datagrams.fold((0, 0), |(n, bytes), d| (n + 1, bytes + d.len() as u64));
    peers.borrow_mut().count_received(id, n, bytes);
}

async fn next(observed: &mut (impl Stream<Item = SocketAddr> + Unpin)) -> SocketAddr {
    match observed.next().await {
        Some(address) => address,
        // The stream ends with the connection, which the reader reports.
        None => std::future::pending().await,
    }
}

fn report(shared: &Shared, id: ConnId, address: SocketAddr) {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    if !shared.outbox.offer(Event::ObservedAddress { conn: id, address }) {
        shared.counters.drops.add(IdentityClass::default(), DropReason::OutboxFull, 1);
    }
}
