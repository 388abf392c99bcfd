//! A server's connection: everything it sends is relayed.

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

/// Relays what a connection sends until it ends; returns why it did.
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
