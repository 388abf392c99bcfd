//! One admitted connection: its datagrams go where they belong until it ends.

use std::{any::Any, net::SocketAddr, pin::pin, rc::Rc};

use bytes::Bytes;
use noq::{Connection, ConnectionError};
use tokio_stream::{Stream, StreamExt};

use crate::{
    boundary::limits::IdentityClass,
    counters::DropReason,
    driver::yield_once,
    event::{ConnId, Event},
    packet::is_packet,
    panics::{contained, guarded},
    relay::Relay,
    shard::Shard,
};

/// Datagrams taken from a connection at a time.
const BATCH: usize = 16;
/// Turns a connection gives away after a batch so that its target can transmit. Each lets the
/// target send up to 20 packets.
const TURNS: usize = 32;

/// Runs a server's connection: everything it sends is relayed. Reports its end.
pub(crate) async fn serve(shard: Rc<Shard>, id: ConnId, connection: Connection) {
    let each = async |datagrams: &[Bytes]| {
        let crowded = match &mut *shard.relay.borrow_mut() {
            Some(relay) => relay.relay(&shard, id, datagrams),
            None => None,
        };
        if let Some(target) = crowded {
            give_way(&shard, target).await;
        }
    };
    let end = guarded(read(&shard, id, connection, each)).await;
    finish(&shard, id, end);
}

/// Waits while a crowded target transmits, so that a burst waits where it came from and not in the
/// target's queue. A target that makes no progress is not waited for.
async fn give_way(shard: &Shard, target: ConnId) {
    let mut sent = None;
    for _ in 0..TURNS {
        let progress = |relay: &Relay| relay.progress(&shard.peers.borrow(), target);
        let now = shard.relay.borrow().as_ref().and_then(progress);
        if now.is_none() || now == sent {
            return;
        }
        sent = now;
        yield_once().await;
    }
}

/// Runs a client's connection: everything it is sent goes up. Reports its end.
pub(crate) async fn deliver(shard: Rc<Shard>, id: ConnId, connection: Connection) {
    let mut observed = pin!(connection.observed_external_addr());
    let each = async |datagrams: &[Bytes]| {
        let tunnel = shard.peers.borrow().get(id).and_then(|peer| peer.tunnel.clone());
        let Some(tunnel) = tunnel else {
            return pass_up(&shard, id, datagrams);
        };
        let packets = || datagrams.iter().filter(|d| is_packet(d));
        count_received(&shard, id, packets());
        tunnel.receive(packets());
        let others: Vec<Bytes> = datagrams.iter().filter(|d| !is_packet(d)).cloned().collect();
        if !others.is_empty() {
            pass_up(&shard, id, &others);
        }
    };
    let reader = read(&shard, id, connection, each);
    let end = guarded(async {
        let mut reader = pin!(reader);
        loop {
            tokio::select! {
                end = &mut reader => break end,
                address = next(&mut observed) => report(&shard, id, address),
            }
        }
    })
    .await;
    finish(&shard, id, end);
}

/// Hands a client's datagrams to the control plane.
fn pass_up(shard: &Shard, id: ConnId, datagrams: &[Bytes]) {
    let n = datagrams.len() as u64;
    let data = datagrams.iter().map(|d| Bytes::copy_from_slice(d)).collect();
    let taken = shard.outbox.offer(Event::Datagrams { conn: id, data });
    count_received(shard, id, datagrams.iter());
    if !taken {
        let mut class = IdentityClass::default();
        if let Some(peer) = shard.peers.borrow_mut().get_mut(id) {
            class = peer.class;
            peer.totals.dropped += n;
        }
        shard.counters.drops.add(class, DropReason::OutboxFull, n);
    }
}

fn count_received<'a>(shard: &Shard, id: ConnId, datagrams: impl Iterator<Item = &'a Bytes>) {
    if let Some(peer) = shard.peers.borrow_mut().get_mut(id) {
        for datagram in datagrams {
            peer.totals.received_datagrams += 1;
            peer.totals.received_bytes += datagram.len() as u64;
        }
    }
}

async fn next(observed: &mut (impl Stream<Item = SocketAddr> + Unpin)) -> SocketAddr {
    match observed.next().await {
        Some(address) => address,
        // The stream ends with the connection, which the reader reports.
        None => std::future::pending().await,
    }
}

fn report(shard: &Shard, id: ConnId, address: SocketAddr) {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    if !shard.outbox.offer(Event::ObservedAddress { conn: id, address }) {
        shard.counters.drops.add(IdentityClass::default(), DropReason::OutboxFull, 1);
    }
}

async fn read(
    shard: &Shard,
    id: ConnId,
    connection: Connection,
    mut each: impl AsyncFnMut(&[Bytes]),
) -> ConnectionError {
    let mut batch = [const { Bytes::new() }; BATCH];
    loop {
        let n = match connection.read_many_datagrams(&mut batch).await {
            Ok(n) => n,
            Err(end) => return end,
        };
        each(&batch[..n]).await;
        batch[..n].fill(Bytes::new());
        if n < BATCH {
            count_overflow(shard, id);
        }
    }
}

/// The receive queue is empty at this moment, so what arrived and was not read has been lost.
fn count_overflow(shard: &Shard, id: ConnId) {
    if let Some(peer) = shard.peers.borrow_mut().get_mut(id)
        && std::mem::take(&mut peer.audit)
    {
        shard.counters.drops.add(peer.class, DropReason::ReceiveQueueFull, peer.take_overflow());
    }
}

fn finish(shard: &Shard, id: ConnId, end: Result<ConnectionError, Box<dyn Any + Send>>) {
    match end {
        Ok(error) => shard.dismiss(id, Some(&error)),
        // What a defect left behind may not be sound: a second panic must not go further either.
        Err(_) => drop(contained(|| shard.dismiss(id, None))),
    }
}
