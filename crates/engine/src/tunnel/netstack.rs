//! The userspace stack of a tunnel with the tasks of its flows, shared by forwards and backends.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};
use ztna_netstack::{Arrival, Counters, FlowId, Limits, Stack, Transport};

use super::{
    tx_queue::TxQueue,
    udp_backend::UdpBackend,
    udp_port::{Peer, UdpPort},
};
use crate::error::EngineError;

/// The userspace stack of a tunnel with the sockets of its flows.
#[derive(Debug)]
pub(super) struct Netstack {
    pub(super) tx_queue: Rc<TxQueue>,
    pub(super) stack: RefCell<Stack>,
    pub(super) counters: Arc<Counters>,
    /// The task that moves the bytes of each TCP flow.
    splices: RefCell<HashMap<FlowId, SpliceEntry>>,
    /// The socket of each UDP flow.
    pub(super) udp: RefCell<HashMap<FlowId, UdpFlow>>,
    /// Bytes of the first packets of UDP flows, held in case a backend refuses them.
    pub(super) first_bytes: Rc<Cell<usize>>,
    /// The buffer for reads from the UDP sockets; never held across a wait.
    pub(super) buffer: RefCell<Vec<u8>>,
    tasks: RefCell<JoinSet<()>>,
    closed: Cell<bool>,
}

#[derive(Debug)]
struct SpliceEntry {
    wake: Rc<Notify>,
    /// Of a connector's flow.
    service: Option<Bytes>,
}

/// The interval at which idle flows are ended.
const PERIOD: Duration = Duration::from_secs(1);
/// The largest UDP payload, that of IPv6.
const MAX_PAYLOAD: usize = 65_527;

/// A UDP flow's way to its local end.
#[derive(Debug)]
pub(super) enum UdpFlow {
    /// A socket of its own to the application.
    Backend(UdpBackend),
    /// One of the peers of a local port.
    Forward { port: Rc<UdpPort>, peer: Peer },
}

impl Netstack {
    pub(super) fn new(
        tx_queue: Rc<TxQueue>,
        counters: Arc<Counters>,
    ) -> Result<Rc<Self>, EngineError> {
        let mut seed = [0; 8];
        aws_lc_rs::rand::fill(&mut seed).map_err(|e| EngineError::of("random numbers", e))?;
        let seed = u64::from_ne_bytes(seed);
        let stack = Stack::new(Limits::default(), counters.clone(), seed, Instant::now());
        Ok(Rc::new(Self {
            tx_queue,
            stack: RefCell::new(stack),
            counters,
            splices: RefCell::default(),
            udp: RefCell::default(),
            first_bytes: Rc::default(),
            buffer: RefCell::new(vec![0; MAX_PAYLOAD]),
            tasks: RefCell::default(),
            closed: Cell::default(),
        }))
    }

    /// Runs a task for as long as the tunnel is open.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> Option<AbortHandle> {
        if self.closed.get() {
            return None;
        }
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        Some(tasks.spawn_local(task))
    }

    /// Ends every flow and task.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.tasks.borrow_mut().abort_all();
        self.udp.borrow_mut().clear();
    }

    /// Takes in packets from the relay. `arrived` gets the arrivals that need a socket.
    pub(super) fn receive<'a>(
        &self,
        datagrams: impl Iterator<Item = &'a Bytes>,
        mut arrived: impl FnMut(Arrival<'_>),
    ) {
        let now = Instant::now();
        let mut touched: Option<FlowId> = None;
        for datagram in datagrams {
            let arrival = self.stack.borrow_mut().receive(datagram, now);
            match arrival {
                Arrival::Done => {}
                Arrival::Tcp(id) => {
                    if let Some(before) = touched.replace(id).filter(|before| *before != id) {
                        self.wake(before);
                    }
                }
                wants_socket => arrived(wants_socket),
            }
            // A burst of answers leaves before the queue's bound drops some.
            if self.stack.borrow().waiting() >= 64 {
                self.send_out();
            }
        }
        touched.iter().for_each(|id| self.wake(*id));
        self.send_out();
    }

    /// Wakes the task of a flow.
    pub(super) fn wake(&self, id: FlowId) {
        if let Some(entry) = self.splices.borrow().get(&id) {
            entry.wake.notify_one();
        }
    }

    /// Hands the stack's datagrams to the tx queue.
    pub(super) fn send_out(&self) {
        let mut stack = self.stack.borrow_mut();
        let (mut packets, mut bytes) = (0, 0);
        for outgoing in stack.take() {
            let size = outgoing.packet().len() as u64;
            if self.tx_queue.send(outgoing.datagram) {
                packets += 1;
                bytes += size;
            }
        }
        if packets > 0 {
            self.counters.packets_out.add(packets);
            self.counters.bytes_out.add(bytes);
        }
    }

    /// Learns the limit of the connection and ends idle flows, over and over.
    pub(super) async fn look_after(&self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.learn_limit();
            let ended = self.stack.borrow_mut().expire(Instant::now());
            for id in ended {
                self.drop_udp(id);
            }
            self.send_out();
        }
    }

    /// Sets packet sizes by the limit of the connection.
    pub(super) fn learn_limit(&self) {
        if let Some(limit) = self.tx_queue.datagram_limit().filter(|limit| *limit > 0) {
            self.stack.borrow_mut().set_datagram_limit(limit);
        }
    }

    /// Registers the task of a TCP flow, a connector's with its service; `wake` is notified when it
    /// has work.
    pub(super) fn begin_splice(self: &Rc<Self>, id: FlowId, service: Option<Bytes>) -> Splice {
        let wake = Rc::new(Notify::new());
        let entry = SpliceEntry { wake: wake.clone(), service };
        self.splices.borrow_mut().insert(id, entry);
        Splice { netstack: self.clone(), id, wake }
    }

    /// Ends the flows of a connector unless `stays` is true of their service and transport.
    pub(super) fn retain(&self, stays: impl Fn(&Bytes, Transport) -> bool) {
        for (id, entry) in self.splices.borrow().iter() {
            if entry.service.as_ref().is_some_and(|service| !stays(service, Transport::Tcp)) {
                if let Some(flow) = self.stack.borrow_mut().tcp(*id) {
                    flow.abort();
                }
                entry.wake.notify_one();
            }
        }
        let gone: Vec<FlowId> = (self.udp.borrow().iter())
            .filter(|(_, flow)| match flow {
                UdpFlow::Backend(flow) => !stays(&flow.backend.service, Transport::Udp),
                UdpFlow::Forward { .. } => false,
            })
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.stack.borrow_mut().remove(id);
            self.drop_udp(id);
        }
    }

    /// Gives a UDP flow its way, and closes the sockets of flows that made room for it.
    pub(super) fn add_udp(&self, id: FlowId, flow: UdpFlow) {
        let displaced = self.stack.borrow_mut().take_displaced();
        for id in displaced {
            self.drop_udp(id);
        }
        self.udp.borrow_mut().insert(id, flow);
    }

    /// Closes the socket of a UDP flow.
    pub(super) fn drop_udp(&self, id: FlowId) -> Option<UdpFlow> {
        self.udp.borrow_mut().remove(&id)
    }
}

/// The right to move the bytes of one TCP flow; letting go of it ends the flow, also after a panic.
#[derive(Debug)]
pub(super) struct Splice {
    pub(super) netstack: Rc<Netstack>,
    pub(super) id: FlowId,
    pub(super) wake: Rc<Notify>,
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.netstack.splices.borrow_mut().remove(&self.id);
        // Borrowed only if a defect inside the stack brought us here: then the stack is not sound.
        if let Ok(mut stack) = self.netstack.stack.try_borrow_mut() {
            stack.release(self.id);
        }
    }
}
