//! Flow control: a source waits for a crowded target, so that a burst waits at its source and not
//! in the target's queue.

use std::cell::RefCell;

use crate::{
    boundary::event::ConnId, panics::contained, queue::SendQueue, quic::driver::yield_once,
    table::Peers,
};

/// Turns that a connection gives away after a batch so that its target can transmit. Each lets the
/// target send up to 20 packets.
const TURNS: usize = 32;

/// Whether a target with so many queued bytes should transmit before it gets more: its queue is
/// over half full then.
pub(crate) fn is_crowded(queue: &SendQueue, bytes: usize) -> bool {
    bytes > queue.limit() / 2
}

/// Waits while a crowded target transmits. A target that makes no progress is not waited for.
pub(crate) async fn give_way(peers: &RefCell<Peers>, target: ConnId) {
    let mut sent = None;
    for _ in 0..TURNS {
        let now = progress(&peers.borrow(), target);
        if now.is_none() || now == sent {
            return;
        }
        sent = now;
        yield_once().await;
    }
}

/// DATAGRAMs that a crowded target has sent so far; `None` for any other.
fn progress(peers: &Peers, target: ConnId) -> Option<u64> {
    let queue = &peers.get(target)?.queue;
    let queued = contained(|| queue.queued())?;
    is_crowded(queue, queued).then(|| queue.connection.stats().frame_tx.datagram)
}
