//! A server's connection: all its datagrams are relayed.

use std::cell::RefCell;

use bytes::Bytes;
use noq::{Connection, ConnectionError};

use crate::{
    boundary::event::ConnId,
    quic::receive::read,
    relay::{backpressure::give_way, delivery::Relay},
    shared::Shared,
    table::Peers,
};

/// Relays the datagrams of a connection until its end; returns the reason of the end.
pub(crate) async fn serve(
    relay: &RefCell<Option<Relay>>,
    peers: &RefCell<Peers>,
    shared: &Shared,
    id: ConnId,
    connection: Connection,
) -> ConnectionError {
    let each = async |datagrams: &[Bytes]| {
        let crowded = match &mut *relay.borrow_mut() {
            Some(relay) => relay.relay(&mut peers.borrow_mut(), shared, id, datagrams),
            None => None,
        };
        if let Some(target) = crowded {
            give_way(peers, target).await;
        }
    };
    read(peers, shared, id, connection, each).await
}
