//! The way from a tunnel to the relay: a short queue in front of the connection's own.
//!
//! Nothing is dropped for want of room. A maker of packets waits for a full queue, so that the
//! pressure reaches its TCP instead of drops by the QUIC congestion controller.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::pin,
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use noq::SendDatagramError;
use tokio::sync::Notify;
use ztna_netstack::{Counters, TunnelDrop};

use crate::{boundary::event::ConnId, queue::SendQueue};

/// Datagrams that wait for the connection before their makers have to.
const QUEUE: usize = 64;
/// Datagrams that answer others may wait beyond that; then they are dropped.
const HARD_LIMIT: usize = 512;
/// Datagrams one flow writes before others get their turn.
pub(super) const TURN: usize = 32;

/// The way out of one tunnel.
#[derive(Debug)]
pub(super) struct TxQueue {
    attached: RefCell<Option<Attached>>,
    queue: RefCell<VecDeque<Bytes>>,
    waiting: RefCell<VecDeque<Rc<Notify>>>,
    work: Notify,
    changed: Notify,
    generation: Cell<u64>,
    counters: Arc<Counters>,
}

#[derive(Clone, Debug)]
struct Attached {
    id: ConnId,
    queue: SendQueue,
}

impl TxQueue {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            attached: RefCell::default(),
            queue: RefCell::default(),
            waiting: RefCell::default(),
            work: Notify::new(),
            changed: Notify::new(),
            generation: Cell::default(),
            counters,
        }
    }

    pub(super) fn attach(&self, id: ConnId, queue: SendQueue) {
        self.replace(Some(Attached { id, queue }));
    }

    /// Goes on with another connection, which takes what waits.
    pub(super) fn take_over(&self, id: ConnId, queue: SendQueue) {
        self.attached.replace(Some(Attached { id, queue }));
        self.changed.notify_waiters();
        self.work.notify_one();
        self.wake(usize::MAX);
    }

    /// Releases this connection, if it is the attached one.
    pub(super) fn detach(&self, id: ConnId) {
        if self.conn() == Some(id) {
            self.replace(None);
        }
    }

    fn replace(&self, attached: Option<Attached>) {
        let gone = std::mem::take(&mut *self.queue.borrow_mut()).len();
        self.counters.dropped(TunnelDrop::Detached, gone as u64);
        self.attached.replace(attached);
        self.generation.set(self.generation.get() + 1);
        self.changed.notify_waiters();
        self.work.notify_one();
        self.wake(usize::MAX);
    }

    /// The connection it is attached to.
    pub(super) fn conn(&self) -> Option<ConnId> {
        self.attached.borrow().as_ref().map(|a| a.id)
    }

    /// The largest datagram that can be sent now, in bytes; `None` while detached.
    pub(super) fn datagram_limit(&self) -> Option<usize> {
        self.attached.borrow().as_ref().map(|a| a.queue.connection.max_datagram_size().unwrap_or(0))
    }

    /// Room in datagrams; none while detached.
    pub(super) fn room(&self) -> usize {
        match *self.attached.borrow() {
            Some(_) => QUEUE.saturating_sub(self.queue.borrow().len()),
            None => 0,
        }
    }

    /// Wakes `waiter` when there is room again, after earlier waiters.
    pub(super) fn wait(&self, waiter: &Rc<Notify>) {
        self.waiting.borrow_mut().push_back(waiter.clone());
    }

    /// Waits until there is room. Returns at once while detached: waiting would only make it stale.
    pub(super) async fn has_room(&self, waiter: &Rc<Notify>) {
        while self.conn().is_some() && self.room() == 0 {
            self.wait(waiter);
            waiter.notified().await;
        }
    }

    /// Queues datagrams. False, and counted, for one that finds the queue far beyond full.
    pub(super) fn send(&self, datagram: Bytes) -> bool {
        let mut queue = self.queue.borrow_mut();
        if self.attached.borrow().is_none() {
            self.counters.dropped(TunnelDrop::Detached, 1);
            return false;
        }
        if queue.len() >= HARD_LIMIT {
            self.counters.dropped(TunnelDrop::TxQueueFull, 1);
            return false;
        }
        queue.push_back(datagram);
        if queue.len() == 1 {
            self.work.notify_one();
        }
        true
    }

    fn wake(&self, most: usize) {
        let mut waiting = self.waiting.borrow_mut();
        let n = most.min(waiting.len());
        waiting.drain(..n).for_each(|waiter| waiter.notify_one());
    }

    /// Moves the queue into the connection, for as long as the tunnel is open; reports the number
    /// and bytes of datagrams by connection.
    pub(super) async fn run(&self, taken: impl Fn(ConnId, u64, u64)) {
        let mut batch = Vec::with_capacity(HARD_LIMIT);
        loop {
            let generation = self.generation.get();
            let attached = self.attached.borrow().clone();
            let Some(attached) = attached.filter(|_| !self.queue.borrow().is_empty()) else {
                self.work.notified().await;
                continue;
            };
            batch.extend(self.queue.borrow_mut().drain(..));
            self.hand_over(&attached, &mut batch, generation, &taken).await;
            // Waiting tasks make new packets before this runs again.
            self.wake(usize::MAX);
            tokio::task::yield_now().await;
        }
    }

    async fn hand_over(
        &self,
        to: &Attached,
        batch: &mut Vec<Bytes>,
        generation: u64,
        taken: &impl Fn(ConnId, u64, u64),
    ) {
        let bytes: usize = batch.iter().map(Bytes::len).sum();
        let Attached { id, queue } = to;
        let fits = queue.queued() + bytes <= queue.limit();
        if fits && queue.connection.send_many_datagrams(batch).is_ok() {
            taken(*id, batch.len() as u64, bytes as u64);
            batch.clear();
            return;
        }
        let mut rest = batch.drain(..);
        while let Some(datagram) = rest.next() {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let size = datagram.len() as u64;
            let sent = if self.generation.get() == generation && self.conn() == Some(*id) {
                tokio::select! {
                    sent = queue.connection.send_datagram_wait(datagram.clone()) => Some(sent),
                    () = changed => None,
                }
            } else {
                None
            };
            match sent {
                Some(Ok(())) => taken(*id, 1, size),
                Some(Err(SendDatagramError::TooLarge)) => {
                    self.counters.dropped(TunnelDrop::TooLarge, 1);
                }
                None if self.generation.get() == generation => {
                    // Another connection has taken over.
                    let mut waiting = self.queue.borrow_mut();
                    let later = std::mem::take(&mut *waiting);
                    waiting.push_back(datagram);
                    waiting.extend(rest);
                    waiting.extend(later);
                    return;
                }
                Some(Err(_)) | None => self.counters.dropped(TunnelDrop::Detached, 1),
            }
        }
    }
}
