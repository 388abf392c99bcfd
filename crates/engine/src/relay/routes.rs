//! The routes: services that a connection may reach. Commands write them; every packet reads them.
//!
//! A service lists its connectors; an agent lists its services. An agent's connector for a service
//! is chosen when its first packet asks for it, and kept until it leaves, stalls, or one of a
//! better rank appears: a TCP connection through a connector does not survive a change.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::{
    boundary::{
        counters::{ServiceBoard, ServiceCounters},
        event::ConnId,
    },
    relay::service_address::{ServiceAddresses, is_service_address},
    slots::{SlotId, Slots},
};

/// The name of a live service in the route table.
pub type ServiceIndex = SlotId;

/// The rank of a connector that another one has replaced: what it still sends back is relayed.
pub const LEAVING: u32 = u32::MAX;

/// One connector of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its connection.
    pub conn: ConnId,
    /// Lower is preferred; among healthy connectors of the lowest rank an agent sticks to one by
    /// rendezvous hashing. [`LEAVING`] is never chosen.
    pub rank: u32,
    /// Stable name of the connector for that hash; the same identity gives the same key.
    pub key: u64,
}

/// Services with their connectors and agents.
#[derive(Debug, Default)]
pub struct Routes {
    services: Slots<Service>,
    by_name: HashMap<Bytes, ServiceIndex>,
    peers: FxHashMap<ConnId, Peer>,
    board: Arc<ServiceBoard>,
}

#[derive(Debug)]
struct Service {
    name: Bytes,
    service_addresses: ServiceAddresses,
    targets: Vec<Target>,
    /// Agents that list the service.
    agents: usize,
    /// Raised whenever the choice among `targets` may change.
    epoch: u64,
    counters: Arc<ServiceCounters>,
}

/// A connection's part in the table.
#[derive(Debug, Default)]
struct Peer {
    /// As an agent: the services that it may reach.
    reaches: Vec<AgentRoute>,
    /// As an agent: its name in rendezvous hashing.
    key: u64,
    /// As a connector: the services that it serves.
    serves: Vec<ServiceIndex>,
    /// As a connector: whether it leaves packets unacknowledged.
    stalled: bool,
}

#[derive(Debug)]
struct AgentRoute {
    service: ServiceIndex,
    /// Chosen in `epoch`; the choice is checked again when the epoch is older than the table's.
    chosen: Option<ConnId>,
    epoch: u64,
}

/// The route of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The service it belongs to.
    pub service: ServiceIndex,
    /// The connector to deliver to; `None` while the service has none.
    pub connector: Option<ConnId>,
}

impl Routes {
    /// An empty table that shows its services' counters on `board`.
    pub fn new(board: Arc<ServiceBoard>) -> Self {
        Self { board, ..Self::default() }
    }

    /// Replaces the connectors of a service.
    pub fn set_service(&mut self, name: &Bytes, targets: Vec<Target>) {
        let Some(index) = self.index(name, !targets.is_empty()) else {
            return;
        };
        let service = self.services.get_mut(index).expect("index() returns live services");
        let old = std::mem::replace(&mut service.targets, targets);
        let new: Vec<ConnId> = service.targets.iter().map(|t| t.conn).collect();
        for conn in old.iter().map(|t| t.conn).filter(|c| !new.contains(c)) {
            if let Some(peer) = self.peers.get_mut(&conn) {
                peer.serves.retain(|s| *s != index);
            }
            self.forget_if_unused(conn);
        }
        for conn in new {
            let serves = &mut self.peers.entry(conn).or_default().serves;
            if !serves.contains(&index) {
                serves.push(index);
            }
        }
        self.changed(index);
    }

    /// Replaces the services that an agent may reach; `key` names it in rendezvous hashing.
    pub fn set_agent(&mut self, conn: ConnId, services: &[Bytes], key: u64) {
        let old = self.peers.get_mut(&conn).map(|p| std::mem::take(&mut p.reaches));
        let mut old = old.unwrap_or_default();
        let mut reaches: Vec<AgentRoute> = Vec::with_capacity(services.len());
        for name in services {
            let service = self.index(name, true).expect("index() creates when told to");
            if reaches.iter().any(|r| r.service == service) {
                continue;
            }
            reaches.push(match old.iter().position(|r| r.service == service) {
                Some(at) => old.swap_remove(at),
                None => {
                    self.services.get_mut(service).expect("just found").agents += 1;
                    AgentRoute { service, chosen: None, epoch: 0 }
                }
            });
        }
        if !reaches.is_empty() {
            let peer = self.peers.entry(conn).or_default();
            peer.reaches = reaches;
            peer.key = key;
        }
        for gone in old {
            self.release(gone.service);
        }
        self.forget_if_unused(conn);
    }

    /// Takes a closed connection out of everything.
    pub fn remove(&mut self, conn: ConnId) {
        let Some(peer) = self.peers.remove(&conn) else {
            return;
        };
        for route in peer.reaches {
            self.release(route.service);
        }
        for index in peer.serves {
            if let Some(service) = self.services.get_mut(index) {
                service.targets.retain(|t| t.conn != conn);
                self.changed(index);
            }
        }
    }

    /// Notes whether a connector answers.
    pub fn set_stalled(&mut self, conn: ConnId, stalled: bool) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        if std::mem::replace(&mut peer.stalled, stalled) != stalled {
            for index in peer.serves.clone() {
                self.changed(index);
            }
        }
    }

    /// The route of an agent's packet: to `service`, or to the first it registered.
    ///
    /// `Err(true)`: it is an agent, but not of this service. `Err(false)`: it is no agent.
    pub fn from_agent(&mut self, agent: ConnId, service: Option<&[u8]>) -> Result<Route, bool> {
        let peer = self.peers.get_mut(&agent).filter(|p| !p.reaches.is_empty()).ok_or(false)?;
        let services = &self.services;
        let named = |r: &&mut AgentRoute| {
            service.is_none_or(|name| services.get(r.service).is_some_and(|s| s.name == name))
        };
        let route = peer.reaches.iter_mut().find(named).ok_or(true)?;
        let (at, chosen, key) = (route.service, route.chosen, peer.key);
        let service = self.services.get(at).expect("agents keep their services alive");
        if route.epoch == service.epoch {
            return Ok(Route { service: at, connector: chosen });
        }
        let epoch = service.epoch;
        let connector = self.choose(service, chosen, key);
        let route =
            self.peers.get_mut(&agent).and_then(|p| p.reaches.iter_mut().find(|r| r.service == at));
        if let Some(route) = route {
            (route.chosen, route.epoch) = (connector, epoch);
        }
        Ok(Route { service: at, connector })
    }

    /// The service by which `connector` may send to `agent` from `source`, if there is one.
    #[inline]
    pub fn shared_service(
        &self,
        connector: ConnId,
        agent: ConnId,
        source: IpAddr,
    ) -> Option<ServiceIndex> {
        let serves = &self.peers.get(&connector)?.serves;
        let mut reaches = self.peers.get(&agent)?.reaches.iter().map(|r| r.service);
        reaches.find(|s| serves.contains(s) && self.may_use(*s, source))
    }

    /// Whether a connector serves anything that an agent may reach.
    pub fn share(&self, connector: ConnId, agent: ConnId) -> bool {
        let (Some(connector), Some(agent)) = (self.peers.get(&connector), self.peers.get(&agent))
        else {
            return false;
        };
        agent.reaches.iter().any(|route| connector.serves.contains(&route.service))
    }

    /// The connectors of a service.
    pub fn connectors_of(&self, service: &Bytes) -> Vec<ConnId> {
        let service = self.by_name.get(service).and_then(|index| self.services.get(*index));
        service.map_or(vec![], |service| service.targets.iter().map(|t| t.conn).collect())
    }

    /// The connectors of what an agent may reach.
    pub fn connectors_for(&self, agent: ConnId) -> Vec<ConnId> {
        let reaches = self.peers.get(&agent).map_or(&[][..], |peer| &peer.reaches);
        let services = reaches.iter().filter_map(|route| self.services.get(route.service));
        let mut connectors: Vec<_> =
            services.flat_map(|service| service.targets.iter().map(|t| t.conn)).collect();
        connectors.sort_unstable();
        connectors.dedup();
        connectors
    }

    /// Whether packets of the service may go to or come from this address: any address except the
    /// ones of other services, by which a connector tells its services apart.
    #[inline]
    pub fn may_use(&self, service: ServiceIndex, address: IpAddr) -> bool {
        let owns = |s: &Service| s.service_addresses.contains(address);
        !is_service_address(address) || self.services.get(service).is_some_and(owns)
    }

    /// Whether the connection serves anything.
    #[inline]
    pub fn is_connector(&self, conn: ConnId) -> bool {
        self.peers.get(&conn).is_some_and(|p| !p.serves.is_empty())
    }

    /// Whether the connection may reach anything.
    #[inline]
    pub fn is_agent(&self, conn: ConnId) -> bool {
        self.peers.get(&conn).is_some_and(|p| !p.reaches.is_empty())
    }

    /// The connections that serve something.
    pub fn connectors(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.peers.iter().filter(|(_, p)| !p.serves.is_empty()).map(|(c, _)| *c)
    }

    /// A live service's counters.
    #[inline]
    pub fn counters(&self, service: ServiceIndex) -> Option<&ServiceCounters> {
        Some(&*self.services.get(service)?.counters)
    }

    /// Whether the table is as it was at the start.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.by_name.is_empty()
    }

    fn choose(&self, service: &Service, current: Option<ConnId>, key: u64) -> Option<ConnId> {
        let stalled = |t: &&Target| self.peers.get(&t.conn).is_some_and(|p| p.stalled);
        // If every connector is stalled, keep trying them.
        let targets = || service.targets.iter().filter(|t| t.rank != LEAVING);
        let all_stalled = targets().all(|t| stalled(&t));
        let usable = || targets().filter(|t| all_stalled || !stalled(t));
        let rank = usable().map(|t| t.rank).min()?;
        let best = || usable().filter(|t| t.rank == rank);
        best()
            .find(|t| Some(t.conn) == current)
            .or_else(|| best().max_by_key(|t| (mix(key ^ t.key.rotate_left(32)), t.conn)))
            .map(|t| t.conn)
    }

    fn index(&mut self, name: &Bytes, create: bool) -> Option<ServiceIndex> {
        if let Some(index) = self.by_name.get(name) {
            return Some(*index);
        }
        if !create {
            return None;
        }
        let counters = Arc::new(ServiceCounters::default());
        // A copy: the name may be a slice that holds a whole receive buffer.
        let name = Bytes::copy_from_slice(name);
        lock(&self.board).insert(name.clone(), counters.clone());
        let service = Service {
            name: name.clone(),
            service_addresses: ServiceAddresses::of(&name),
            targets: vec![],
            agents: 0,
            epoch: 1,
            counters,
        };
        let index = self.services.insert(service);
        self.by_name.insert(name, index);
        Some(index)
    }

    /// Updates the state after a change of a service's connectors.
    fn changed(&mut self, index: ServiceIndex) {
        let Some(service) = self.services.get_mut(index) else {
            return;
        };
        service.epoch += 1;
        let stalled = |t: &&Target| self.peers.get(&t.conn).is_some_and(|p| p.stalled);
        let targets = || service.targets.iter().filter(|t| t.rank != LEAVING);
        let healthy = targets().filter(|t| !stalled(t)).count();
        service.counters.connectors.set(targets().count() as u64);
        service.counters.healthy.set(healthy as u64);
        self.drop_if_unused(index);
    }

    /// One agent fewer lists the service.
    fn release(&mut self, index: ServiceIndex) {
        if let Some(service) = self.services.get_mut(index) {
            service.agents -= 1;
        }
        self.drop_if_unused(index);
    }

    fn drop_if_unused(&mut self, index: ServiceIndex) {
        let unused = |s: &Service| s.targets.is_empty() && s.agents == 0;
        if self.services.get(index).is_some_and(unused)
            && let Some(service) = self.services.remove(index)
        {
            self.by_name.remove(&service.name);
            lock(&self.board).remove(&service.name);
        }
    }

    fn forget_if_unused(&mut self, conn: ConnId) {
        if self.peers.get(&conn).is_some_and(|p| p.reaches.is_empty() && p.serves.is_empty()) {
            self.peers.remove(&conn);
        }
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Spreads the bits of `x` over the whole word (the finaliser of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
