//! A connection's DATAGRAMs: the send queue, and the losses of the receive queue.

use bytes::Bytes;
use noq::{Connection, SendDatagramError};

use crate::{boundary::counters::DropReason, panics::contained};

/// A connection with the limit of its send queue.
#[derive(Clone, Debug)]
pub(crate) struct SendQueue {
    pub(crate) connection: Connection,
    /// Bytes of payload.
    limit: usize,
}

impl SendQueue {
    /// The queue of a connection whose transport was made with [`transport_queue`] of `limit`.
    pub(crate) fn new(connection: Connection, limit: usize) -> Self {
        Self { connection, limit }
    }

    /// Payload bytes waiting to be sent.
    pub(crate) fn queued(&self) -> usize {
        transport_queue(self.limit).saturating_sub(self.connection.datagram_send_buffer_space())
    }

    /// The most payload bytes that may wait.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Queues one datagram unless the queue is full; never pushes out an older one.
    pub(crate) fn send(&self, packet: Bytes) -> Result<(), DropReason> {
        let sent = contained(|| {
            if self.queued() + packet.len() > self.limit {
                return Err(DropReason::SendQueueFull);
            }
            self.connection.send_datagram(packet).map_err(|e| match e {
                SendDatagramError::TooLarge => DropReason::TooLarge,
                _ => DropReason::TargetGone,
            })
        });
        sent.unwrap_or(Err(DropReason::TargetGone))
    }
}

/// The size of noq's own queue, in which no datagram of a [`SendQueue`] is ever discarded: noq
/// charges 32 bytes for each datagram, and the smallest relayed one has 20.
pub(crate) fn transport_queue(limit: usize) -> usize {
    limit * 13 / 5 + 4096
}

/// DATAGRAMs of a connection that QUIC dropped because they were not read in time.
#[derive(Debug, Default)]
pub(crate) struct Overflow {
    counted: u64,
    /// Whether to count them when the receive queue is empty next.
    due: bool,
}

impl Overflow {
    /// Asks for a count, since a busy connection's receive queue is seldom empty.
    pub(crate) fn ask(&mut self) {
        self.due = true;
    }

    /// Whether a count was asked for; the question is answered then.
    pub(crate) fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    /// DATAGRAMs lost since the last call, of which `read` were read so far. Exact only while the
    /// receive queue is empty.
    pub(crate) fn take(&mut self, connection: &Connection, read: u64) -> u64 {
        let arrived = connection.stats().frame_rx.datagram;
        let lost = arrived.saturating_sub(read + self.counted);
        self.counted += lost;
        lost
    }
}
