//! Introductions, and the answers to packets that went past the relay.

use std::time::Instant;

use bytes::Bytes;

use super::{Delivery, Forwarder, Refusal, WayBack, checked};
use crate::{
    boundary::{counters::DropReason, event::ConnId},
    icmp::IcmpError,
    packet::source_unicast,
    relay::{
        nat::{Claim, Conflict},
        routes::{Routes, Target},
    },
};

impl Forwarder {
    /// Replaces the connectors of a service.
    pub fn set_service(&mut self, name: &Bytes, targets: Vec<Target>, now: Instant) {
        let before = self.routes.connectors_of(name);
        self.routes.set_service(name, targets);
        let WayBack::Leases(nat) = &mut self.way_back else {
            return;
        };
        let after = self.routes.connectors_of(name);
        for connector in before.iter().filter(|c| !after.contains(c)) {
            nat.leave(*connector, now);
        }
        for connector in after.into_iter().filter(|c| !before.contains(c)) {
            nat.serve(connector, now);
            nat.make_way_at(connector, |agent| self.routes.share(connector, agent), now);
        }
    }

    /// Changes what an agent may reach, where connectors see it by an address that another one may use.
    pub(super) fn reroute(
        &mut self,
        agent: ConnId,
        now: Instant,
        change: impl FnOnce(&mut Routes),
    ) {
        let before = match &self.way_back {
            WayBack::Leases(nat) if nat.keeps_own(agent) => self.routes.connectors_for(agent),
            _ => return change(&mut self.routes),
        };
        change(&mut self.routes);
        if let WayBack::Leases(nat) = &mut self.way_back {
            let after = self.routes.connectors_for(agent);
            for connector in before.iter().filter(|c| !after.contains(c)) {
                nat.leave(*connector, now);
            }
            for connector in after.iter().filter(|c| !before.contains(c)) {
                nat.make_way(agent, *connector, now);
            }
        }
    }

    /// Why an agent and a connector cannot be introduced to each other.
    ///
    /// `None`: they can be, and for 20 s no other agent can whose answers could not be told from this
    /// one's.
    pub fn conflict(&mut self, agent: ConnId, connector: ConnId, now: Instant) -> Option<Conflict> {
        let WayBack::Leases(nat) = &mut self.way_back else {
            return Some(Conflict::Learned);
        };
        if self.routes.is_agent(connector) {
            // Its packets without a lease count as its own as an agent.
            return Some(Conflict::Ambiguous);
        }
        nat.conflict(agent, connector, |other| self.routes.share(connector, other), now)
    }

    /// The agent and the connector may from now on send to each other directly: answers that come
    /// here all the same go to the agent if no other can be meant.
    pub fn introduce(&mut self, agent: ConnId, connector: ConnId) {
        if let WayBack::Leases(nat) = &mut self.way_back {
            nat.introduce(agent, connector);
        }
    }

    /// Takes an introduction back, or gives up the place held for one.
    pub fn separate(&mut self, agent: ConnId, connector: ConnId, now: Instant) {
        if let WayBack::Leases(nat) = &mut self.way_back {
            nat.separate(agent, connector, now);
        }
    }

    /// A connector's packet that no lease leads back.
    #[inline(never)]
    pub(super) fn not_back(
        &mut self,
        from: ConnId,
        datagram: &Bytes,
        refusal: Refusal,
        now: Instant,
    ) -> Result<Delivery, Refusal> {
        let WayBack::Leases(nat) = &mut self.way_back else {
            return Err(refusal);
        };
        match refusal.reason {
            DropReason::NoAgent if self.routes.is_agent(from) => {
                return self.onward(from, datagram, 0, None, now);
            }
            DropReason::NoAgent | DropReason::NotAllowed => {}
            _ => return Err(refusal),
        }
        let info = checked(datagram, source_unicast)?;
        let shares = |agent| self.routes.share(from, agent);
        let agent = match nat.claimant(from, info.destination, shares, now) {
            Some(Claim::Of(agent)) => agent,
            Some(Claim::Ambiguous) => {
                return Err(Refusal { reason: DropReason::DirectAmbiguous, ..refusal });
            }
            None => return Err(refusal),
        };
        let Some(service) = self.routes.shared_service(from, agent, info.source) else {
            let answer = Some((IcmpError::AdministrativelyProhibited, 0));
            return Err(Refusal { reason: DropReason::NotAllowed, service: None, answer });
        };
        nat.bind(from, agent, info.destination);
        let packet = datagram.slice(..info.total_len);
        Ok(Delivery { to: agent, packet, packet_at: 0, service, to_agent: true })
    }
}
