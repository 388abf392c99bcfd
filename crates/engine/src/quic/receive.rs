//! The DATAGRAMs of a connection, read in batches until it ends.

use std::cell::RefCell;

use bytes::Bytes;
use noq::{Connection, ConnectionError};

use crate::{boundary::event::ConnId, shared::Shared, table::Peers};

/// Datagrams taken from a connection at a time.
const BATCH: usize = 16;

/// Gives each batch to `each`; returns why there are no more.
pub(crate) async fn read(
    peers: &RefCell<Peers>,
    shared: &Shared,
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
        // The receive queue is empty at this moment, so what arrived and was not read has been lost.
        if n < BATCH
            && let Some(peer) = peers.borrow_mut().get_mut(id)
            && peer.overflow.take_due()
        {
            peer.count_overflow(&shared.counters);
        }
    }
}
