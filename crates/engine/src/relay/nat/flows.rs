//! The way back by learned flows, for `inner-addresses = off`: packets pass untouched.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use crate::{
    boundary::event::ConnId,
    packet::{Fragment, PacketInfo},
    relay::nat::{QUARANTINE, flow::FlowKey},
};

/// Flows remembered at once, those of datagrams in fragments included.
const MAX_FLOWS: usize = 262_144;
/// How long the rest of a datagram may follow its first fragment: longer than a receiver waits for
/// it (60 s, RFC 8200 section 4.5).
const FRAGMENTS: Duration = Duration::from_secs(75);
/// A flow that had a packet so lately is passed over, a few times, when one has to make room.
const RECENT: Duration = Duration::from_secs(300);
const PASSED_OVER: usize = 8;

/// The interval at which idle flows are removed, since that walks all of them.
const SWEEP: Duration = Duration::from_secs(30);

/// The agent of each flow of a connector.
#[derive(Debug, Default)]
pub struct Flows {
    flows: HashMap<Key, Flow>,
    agents: FxHashMap<ConnId, Agent>,
    /// The newest connection of each identity.
    newest: HashMap<[u8; 32], ConnId>,
    quotas: HashMap<u64, Quota>,
    swept: Option<Instant>,
}

/// An agent: its proven identity, and the quota of its flows.
#[derive(Clone, Copy, Debug)]
struct Agent {
    identity: Option<[u8; 32]>,
    quota: u64,
}

/// The owner of a flow. It stays the owner until the flow has been idle, even after it has left:
/// late packets must not reach the next agent with the same address.
#[derive(Debug)]
struct Flow {
    agent: ConnId,
    of: Agent,
    used: Instant,
}

/// The flows of all agents of one quota.
#[derive(Debug, Default)]
struct Quota {
    held: usize,
    /// In the order of learning; some may be gone.
    order: VecDeque<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A connector, a transport, and the agent's address and port.
    ///
    /// The service's end is left out: connectors answer UDP from the backend's address, and not
    /// from the one that the agent wrote to.
    Flow(ConnId, u8, (IpAddr, u16)),
    /// A datagram in fragments, of which only the first has ports.
    Datagram { connector: ConnId, protocol: u8, source: IpAddr, destination: IpAddr, id: u32 },
}

impl Key {
    fn flow(connector: ConnId, flow: FlowKey) -> Self {
        Self::Flow(connector, flow.protocol, flow.agent)
    }

    fn datagram(connector: ConnId, info: &PacketInfo) -> Self {
        Self::Datagram {
            connector,
            protocol: info.protocol,
            source: info.source,
            destination: info.destination,
            id: info.fragment_id,
        }
    }

    /// The idle time for which it stays one agent's.
    fn rest(self) -> Duration {
        match self {
            Self::Flow(..) => QUARANTINE,
            Self::Datagram { .. } => FRAGMENTS,
        }
    }
}

impl Flows {
    /// An agent appears, by its proven identity if it has one. Agents of one `quota` share the
    /// bounds of one agent.
    pub fn attach(&mut self, agent: ConnId, identity: Option<[u8; 32]>, quota: u64) {
        if self.agents.insert(agent, Agent { identity, quota }).is_none()
            && let Some(identity) = identity
        {
            self.newest.insert(identity, agent);
        }
    }

    /// An agent is gone.
    pub fn detach(&mut self, agent: ConnId) {
        if let Some(Agent { identity: Some(identity), .. }) = self.agents.remove(&agent)
            && self.newest.get(&identity) == Some(&agent)
        {
            self.newest.remove(&identity);
        }
    }

    /// Learns an agent's flow; `false` if another agent uses the same one, there is no room, or the
    /// packet is a fragment of a datagram whose first one has not passed. An identity takes its flows
    /// along to another connection.
    pub fn outbound(
        &mut self,
        agent: ConnId,
        connector: ConnId,
        packet: &[u8],
        info: &PacketInfo,
        now: Instant,
    ) -> bool {
        let datagram = || Key::datagram(connector, info);
        let flow = || Key::flow(connector, FlowKey::from_agent(packet, info));
        match info.fragment {
            Fragment::Whole => self.learn(flow(), agent, now),
            Fragment::First => self.learn(flow(), agent, now) && self.learn(datagram(), agent, now),
            Fragment::Later => {
                self.flows.contains_key(&datagram()) && self.learn(datagram(), agent, now)
            }
        }
    }

    /// The agent a connector's packet belongs to: the one that sent last, or the newest connection of
    /// its identity once that one is gone.
    pub fn inbound(
        &mut self,
        connector: ConnId,
        packet: &[u8],
        info: &PacketInfo,
        now: Instant,
    ) -> Option<ConnId> {
        let key = match info.fragment {
            Fragment::Later => Key::datagram(connector, info),
            _ => Key::flow(connector, FlowKey::to_agent(packet, info)),
        };
        let flow = self.flows.get_mut(&key).filter(|f| now.duration_since(f.used) <= key.rest())?;
        flow.used = now;
        let (agent, of) = (flow.agent, flow.of);
        if info.fragment == Fragment::First {
            // A sender uses an identification again only when the datagram before is gone.
            let datagram = Key::datagram(connector, info);
            self.forget(&datagram);
            self.insert(datagram, Flow { agent, of, used: now });
        }
        let newest = || of.identity.and_then(|identity| self.newest.get(&identity).copied());
        if self.agents.contains_key(&agent) { Some(agent) } else { newest().or(Some(agent)) }
    }

    /// Forgets the flows that have been idle too long.
    pub fn expire(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.duration_since(swept) > SWEEP) {
            self.swept = Some(now);
            let quotas = &mut self.quotas;
            self.flows.retain(|key, flow| {
                let stays = now.duration_since(flow.used) <= key.rest();
                if !stays {
                    release(quotas, flow.of.quota);
                }
                stays
            });
        }
    }

    /// Flows remembered.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    fn learn(&mut self, key: Key, agent: ConnId, now: Instant) -> bool {
        let of = self.agents.get(&agent).copied();
        let of = of.unwrap_or(Agent { identity: None, quota: agent.0 });
        match self.flows.get_mut(&key) {
            Some(flow) if flow.agent == agent => {
                flow.used = now;
                return true;
            }
            Some(flow) => {
                let same = of.identity.is_some() && of.identity == flow.of.identity;
                if !same && now.duration_since(flow.used) <= key.rest() {
                    return false;
                }
                self.forget(&key);
            }
            None => {}
        }
        self.insert(key, Flow { agent, of, used: now })
    }

    /// A quota may have as many flows as there are places left, so that there always are some for
    /// another. One that has more, since others came, gives two of its own up for each new one: those
    /// that have been idle longest, as far as that is seen at once.
    fn insert(&mut self, key: Key, flow: Flow) -> bool {
        let (number, now) = (flow.of.quota, flow.used);
        for _ in 0..2 {
            let held = self.quotas.get(&number).map_or(0, |quota| quota.held);
            if held < MAX_FLOWS - self.flows.len() {
                break;
            }
            self.displace(number, now);
        }
        if self.flows.len() >= MAX_FLOWS {
            return false;
        }
        self.flows.insert(key, flow);
        let quota = self.quotas.entry(number).or_default();
        quota.held += 1;
        quota.order.push_back(key);
        if quota.order.len() > 2 * quota.held + 64 {
            let own = |key: &Key| self.flows.get(key).is_some_and(|f| f.of.quota == number);
            quota.order.retain(own);
        }
        true
    }

    /// Takes a flow from a quota that has one.
    fn displace(&mut self, number: u64, now: Instant) {
        let mut passed_over = 0;
        while let Some(quota) = self.quotas.get_mut(&number)
            && let Some(key) = quota.order.pop_front()
        {
            let Some(flow) = self.flows.get(&key).filter(|flow| flow.of.quota == number) else {
                continue;
            };
            if now.duration_since(flow.used) < RECENT && passed_over < PASSED_OVER {
                passed_over += 1;
                quota.order.push_back(key);
                continue;
            }
            return self.forget(&key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(flow) = self.flows.remove(key) {
            release(&mut self.quotas, flow.of.quota);
        }
    }
}

/// One flow of a quota fewer.
fn release(quotas: &mut HashMap<u64, Quota>, number: u64) {
    if let Some(quota) = quotas.get_mut(&number) {
        quota.held -= 1;
        if quota.held == 0 {
            quotas.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests;
