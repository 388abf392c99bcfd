//! The way back by learned flows, for `inner-addresses = off`: packets pass untouched.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{event::ConnId, flow::FlowKey, packet::PacketInfo};

/// Flows remembered at once; with more, a new one is refused until some have expired.
const MAX_FLOWS: usize = 262_144;
/// A flow without a packet for so long is forgotten: longer than any connector keeps it.
const IDLE: Duration = Duration::from_secs(180);

/// How often the idle ones are looked for: that walks all of them.
const SWEEP: Duration = Duration::from_secs(30);

/// Which agent each flow of a connector belongs to.
#[derive(Debug, Default)]
pub struct Flows {
    flows: HashMap<Key, (ConnId, Instant)>,
    swept: Option<Instant>,
}

/// A connector, a transport, and the agent's address and port.
///
/// The service's end is left out: connectors answer UDP from the backend's address, whatever
/// address the agent wrote to.
type Key = (ConnId, u8, (IpAddr, u16));

impl Flows {
    /// Learns an agent's flow; `false` if another live agent uses the same one, or there is no
    /// room.
    pub fn outbound(
        &mut self,
        agent: ConnId,
        connector: ConnId,
        packet: &[u8],
        info: &PacketInfo,
        now: Instant,
        live: impl Fn(ConnId) -> bool,
    ) -> bool {
        let flow = FlowKey::from_agent(packet, info);
        let key = (connector, flow.protocol, flow.agent);
        if let Some((owner, used)) = self.flows.get_mut(&key) {
            let free = *owner == agent || now.duration_since(*used) > IDLE || !live(*owner);
            if free {
                (*owner, *used) = (agent, now);
            }
            return free;
        }
        let room = self.flows.len() < MAX_FLOWS;
        if room {
            self.flows.insert(key, (agent, now));
        }
        room
    }

    /// The agent a connector's packet belongs to.
    pub fn inbound(
        &mut self,
        connector: ConnId,
        packet: &[u8],
        info: &PacketInfo,
        now: Instant,
    ) -> Option<ConnId> {
        let flow = FlowKey::to_agent(packet, info);
        let (agent, used) = self.flows.get_mut(&(connector, flow.protocol, flow.agent))?;
        *used = now;
        Some(*agent)
    }

    /// Forgets the flows that have been idle too long.
    pub fn expire(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.duration_since(swept) > SWEEP) {
            self.swept = Some(now);
            self.flows.retain(|_, (_, used)| now.duration_since(*used) <= IDLE);
        }
    }

    /// Flows remembered.
    pub fn len(&self) -> usize {
        self.flows.len()
    }
}
