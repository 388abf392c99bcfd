//! UDP flows of an agent: each is of one peer of a local port.

use std::{rc::Rc, time::Instant};

use tokio::{sync::Notify, task::coop::consume_budget};
use ztna_netstack::{FlowId, Refusal, Transport, TunnelDrop};

use super::Forwards;
use crate::tunnel::{
    netstack::UdpFlow,
    splice::Refused,
    udp_port::{Peer, UdpPort},
};

impl Forwards {
    /// Gives a payload to the peer of its flow.
    pub(super) fn answer(self: &Rc<Self>, id: FlowId, payload: &[u8]) {
        let Some((port, peer)) = self.udp_peer(id) else {
            return;
        };
        let held = port.is_held();
        if port.answer(payload, peer).is_err() {
            self.netstack.counters.dropped(TunnelDrop::LocalFull, 1);
        }
        if held {
            self.refuse_or_take();
        }
    }

    /// Answers the sender of a packet that the service has refused; if it cannot be answered alone,
    /// the port refuses all senders for a while.
    pub(super) fn refused(self: &Rc<Self>, id: FlowId, refusal: Refusal) {
        let Some((port, peer)) = self.udp_peer(id) else {
            return;
        };
        self.netstack.counters.udp_refused.add(1);
        // The error may come from the relay, so the way is probed.
        let refused = match refusal {
            Refusal::Refused => Refused::Reset,
            Refusal::Unreachable => Refused::NoWay,
        };
        self.was_refused(port.forward.service.clone(), refused);
        let mut asked = port.address;
        if let Some(local) = peer.1 {
            asked.set_ip(local.ip);
        }
        if self.errors.port_unreachable(peer.0, asked) {
            return;
        }
        if let Some(time) = port.hold() {
            self.refuse_or_take();
            let run = self.clone();
            self.netstack.spawn(async move {
                tokio::time::sleep(time).await;
                run.refuse_or_take();
            });
        }
    }

    fn udp_peer(&self, id: FlowId) -> Option<(Rc<UdpPort>, Peer)> {
        match self.netstack.udp.borrow().get(&id)? {
            UdpFlow::Forward { port, peer } => Some((port.clone(), *peer)),
            UdpFlow::Backend(_) => None,
        }
    }

    /// Makes flows of the packets to a port.
    pub(super) async fn read(&self, port: &Rc<UdpPort>) {
        let room = Rc::new(Notify::new());
        let service = &port.forward.service;
        loop {
            consume_budget().await;
            port.readable().await;
            if self.closed(service).is_none() {
                self.netstack.tx_queue.has_room(&room).await;
            }
            let buffer = &mut *self.netstack.buffer.borrow_mut();
            let Ok((len, peer)) = port.receive(buffer) else {
                // Nothing to read, or an ICMP error about an answer, whose peer is gone.
                continue;
            };
            if let Some(reason) = self.closed(service) {
                self.netstack.counters.dropped(reason, 1);
                continue;
            }
            let now = Instant::now();
            if let Some(id) = self.udp_flow(port, peer, now) {
                self.netstack.stack.borrow_mut().send_udp(id, &buffer[..len], now);
                self.netstack.send_out();
            }
        }
    }

    /// The flow of this peer, opened if it has none.
    fn udp_flow(&self, port: &Rc<UdpPort>, peer: Peer, now: Instant) -> Option<FlowId> {
        let netstack = &self.netstack;
        let is_open = |id| netstack.stack.borrow().contains(id);
        port.flow(peer, is_open, || {
            let to = port.forward.destination;
            let opened = netstack.stack.borrow_mut().open(Transport::Udp, self.source(to), to, now);
            let id = opened?;
            netstack.add_udp(id, UdpFlow::Forward { port: port.clone(), peer });
            Some(id)
        })
    }
}
