//! The way back by learned flows, for `inner-addresses = off`: packets pass untouched.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

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
    flows: HashMap<Key, Flow>,
    /// The agents that have proven who they are.
    identities: FxHashMap<ConnId, [u8; 32]>,
    swept: Option<Instant>,
}

/// Whose a flow is. It stays so until it has been idle, also when the agent has left: what is late for
/// it must not reach the next one with the same address.
#[derive(Debug)]
struct Flow {
    agent: ConnId,
    identity: Option<[u8; 32]>,
    used: Instant,
}

/// A connector, a transport, and the agent's address and port.
///
/// The service's end is left out: connectors answer UDP from the backend's address, whatever
/// address the agent wrote to.
type Key = (ConnId, u8, (IpAddr, u16));

impl Flows {
    /// An agent appears, by its proven identity if it has one.
    pub fn attach(&mut self, agent: ConnId, identity: Option<[u8; 32]>) {
        match identity {
            Some(identity) => self.identities.insert(agent, identity),
            None => self.identities.remove(&agent),
        };
    }

    /// An agent is gone.
    pub fn detach(&mut self, agent: ConnId) {
        self.identities.remove(&agent);
    }

    /// Learns an agent's flow; `false` if another agent uses the same one, or there is no room. An
    /// identity takes its flows along to another connection.
    pub fn outbound(
        &mut self,
        agent: ConnId,
        connector: ConnId,
        packet: &[u8],
        info: &PacketInfo,
        now: Instant,
    ) -> bool {
        let flow = FlowKey::from_agent(packet, info);
        let key = (connector, flow.protocol, flow.agent);
        if let Some(flow) = self.flows.get_mut(&key) {
            if flow.agent != agent {
                let identity = self.identities.get(&agent).copied();
                let same = identity.is_some() && identity == flow.identity;
                if !same && now.duration_since(flow.used) <= IDLE {
                    return false;
                }
                (flow.agent, flow.identity) = (agent, identity);
            }
            flow.used = now;
            return true;
        }
        let room = self.flows.len() < MAX_FLOWS;
        if room {
            let identity = self.identities.get(&agent).copied();
            self.flows.insert(key, Flow { agent, identity, used: now });
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
        let flow = self.flows.get_mut(&(connector, flow.protocol, flow.agent))?;
        flow.used = now;
        Some(flow.agent)
    }

    /// Forgets the flows that have been idle too long.
    pub fn expire(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.duration_since(swept) > SWEEP) {
            self.swept = Some(now);
            self.flows.retain(|_, flow| now.duration_since(flow.used) <= IDLE);
        }
    }

    /// Flows remembered.
    pub fn len(&self) -> usize {
        self.flows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTOR: ConnId = ConnId(9);

    /// UDP from 100.64.0.1:5000 to 10.0.0.53:53.
    const PACKET: [u8; 28] = [
        0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 100, 64, 0, 1, 10, 0, 0, 53, 0x13, 0x88, 0,
        53, 0, 8, 0, 0,
    ];

    #[test]
    fn a_flow_is_one_agents_until_it_has_been_idle() {
        let (mut flows, now) = (Flows::default(), Instant::now());
        let info = PacketInfo::parse(&PACKET).unwrap();
        let sends = |flows: &mut Flows, agent, now| {
            flows.outbound(ConnId(agent), CONNECTOR, &PACKET, &info, now)
        };
        flows.attach(ConnId(1), None);
        assert!(sends(&mut flows, 1, now));
        flows.detach(ConnId(1));
        flows.attach(ConnId(2), None);
        assert!(!sends(&mut flows, 2, now + IDLE), "it may still be answered");
        assert!(sends(&mut flows, 2, now + IDLE + Duration::from_secs(1)));
    }

    #[test]
    fn an_identity_takes_its_flows_along() {
        let (mut flows, now) = (Flows::default(), Instant::now());
        let info = PacketInfo::parse(&PACKET).unwrap();
        let sends = |flows: &mut Flows, agent| {
            flows.outbound(ConnId(agent), CONNECTOR, &PACKET, &info, now)
        };
        flows.attach(ConnId(1), Some([1; 32]));
        assert!(sends(&mut flows, 1));
        flows.detach(ConnId(1));
        for (agent, identity) in [(2, Some([1; 32])), (3, Some([3; 32]))] {
            flows.attach(ConnId(agent), identity);
        }
        assert!(sends(&mut flows, 2) && !sends(&mut flows, 3));
    }
}
