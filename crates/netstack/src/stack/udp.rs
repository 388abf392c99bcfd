//! UDP flows: having no end of their own, they end by idleness or want of room.

use std::{net::IpAddr, time::Instant};

use bytes::Bytes;
use ztna_packet::icmp::IcmpError;

use super::{Flow, Refusal, Stack};
use crate::{
    counters::TunnelDrop,
    flow::{FlowId, FlowKey},
    packet_builder::PacketBuilder,
};

/// The port of DNS, with one question and one answer (RFC 1035).
pub(super) const DNS: u16 = 53;

impl Stack {
    /// A UDP flow between these ends.
    pub(super) fn udp_flow(&self, key: &FlowKey, dns: bool, wrapper: Bytes, now: Instant) -> Flow {
        let dns = dns || key.local.port() == DNS || key.remote.port() == DNS;
        let idle = if dns { self.limits.dns_idle } else { self.limits.udp_idle };
        Flow::Udp { used: now, idle, wrapper }
    }

    /// Writes a UDP packet of a flow, as fragments where it is larger than its path carries. False,
    /// and counted, if it is larger than a packet can be.
    pub fn send_udp(&mut self, id: FlowId, payload: &[u8], now: Instant) -> bool {
        let datagram = self.datagram;
        let Some((key, Flow::Udp { used, wrapper, .. })) = self.flows.get_mut(id) else {
            return false;
        };
        *used = now;
        let mtu = self.paths.mtu(key.remote.ip(), datagram.saturating_sub(wrapper.len()));
        let sent = self.out.udp(wrapper, key.local, key.remote, payload, mtu);
        if !sent {
            self.counters.dropped(TunnelDrop::TooLarge, 1);
        }
        sent
    }

    /// No backend takes a UDP flow's packets: answers, and forgets the flow.
    pub fn refuse_udp(&mut self, id: FlowId, refusal: Refusal, now: Instant) {
        let Some((&key, Flow::Udp { .. })) = self.flows.get_mut(id) else {
            return;
        };
        let mut lost = PacketBuilder::default();
        lost.udp(&[], key.remote, key.local, &[], usize::MAX);
        self.remove(id);
        let lost = lost.take().next();
        if let Some(lost) = lost {
            let error = match refusal {
                Refusal::Refused => IcmpError::PortUnreachable,
                Refusal::Unreachable => IcmpError::HostUnreachable,
            };
            self.error(error, lost.packet(), &key, now);
        }
    }

    /// Ends the UDP flow of this source that has been idle for longest. Otherwise a resolver that
    /// asks from a new port each time would be refused for want of flows that it has long finished.
    pub(super) fn displace(&mut self, source: IpAddr) -> bool {
        let flows = self.flows.iter().filter_map(|(id, key, flow)| match flow {
            Flow::Udp { used, .. } if key.remote.ip() == source => Some((*used, id)),
            _ => None,
        });
        let Some((_, id)) = flows.min_by_key(|(used, _)| *used) else {
            return false;
        };
        self.remove(id);
        self.displaced.push(id);
        self.counters.udp_displaced.add(1);
        true
    }

    /// The flows that made room for others; the caller closes their sockets.
    pub fn take_displaced(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.displaced)
    }

    pub(super) fn expire_udp(&mut self, now: Instant) -> Vec<FlowId> {
        let mut ended = self.take_displaced();
        let displaced = ended.len();
        ended.extend(self.flows.iter().filter_map(|(id, _, flow)| match flow {
            Flow::Udp { used, idle, .. } => {
                (now.saturating_duration_since(*used) >= *idle).then_some(id)
            }
            _ => None,
        }));
        for id in &ended[displaced..] {
            self.remove(*id);
        }
        ended
    }
}
