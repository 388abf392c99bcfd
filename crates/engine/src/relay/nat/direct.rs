//! The receiver of a packet without a lease for its destination.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    Conn, Nat, Owner, QUARANTINE,
    introductions::{Claim, Conflict, Connector, Introduced, MAX_INTRODUCED},
};
use crate::{
    boundary::event::ConnId, packet::source_ok, relay::service_address::is_service_address,
};

/// How long a place is held for an agent that may be introduced: longer than an offer takes to be
/// answered.
const HOLD: Duration = Duration::from_secs(20);

impl Conn {
    /// Whether nothing is known of the addresses that it uses.
    fn is_silent(&self) -> bool {
        self.slots.is_empty()
    }

    fn is_translated(&self) -> bool {
        self.slots.iter().any(|slot| slot.source != slot.leased)
    }
}

impl Nat {
    /// Notes that a connection serves a service; repeated calls are fine.
    pub fn serve(&mut self, connector: ConnId, now: Instant) {
        self.introductions.connectors.entry(connector).or_insert(Connector {
            since: now,
            left: None,
            departed: None,
            contested: None,
            introduced: Vec::new(),
        });
    }

    /// Forgets a connector that is gone.
    pub fn remove_connector(&mut self, connector: ConnId) {
        let known = self.introductions.connectors.get(&connector);
        let agents = known.map_or(vec![], |c| c.introduced.iter().map(|i| i.agent).collect());
        for agent in agents {
            self.introductions.take(connector, agent);
        }
        self.introductions.connectors.remove(&connector);
    }

    /// A connector is no longer connector of an agent to which it may still send, at an address of the
    /// agent's own choice.
    pub fn leave(&mut self, connector: ConnId, now: Instant) {
        if let Some(connector) = self.introductions.connectors.get_mut(&connector) {
            connector.left = Some(now);
        }
    }

    /// Whether connectors see an agent that proved nothing by an address of its own choice.
    pub fn keeps_own(&self, agent: ConnId) -> bool {
        let own = |conn: &Conn| conn.slots.iter().any(|slot| slot.source == slot.leased);
        self.conns.get(&agent).is_some_and(|conn| conn.owner == Owner::Anonymous && own(conn))
    }

    /// The conflict that forbids an introduction of the two; `None` holds a place for the agent for
    /// 20 s. `shares` tells whether an agent has a service in common with the connector.
    pub fn conflict(
        &mut self,
        agent: ConnId,
        connector: ConnId,
        shares: impl Fn(ConnId) -> bool,
        now: Instant,
    ) -> Option<Conflict> {
        self.end_holds(now);
        let (Some(conn), Some(known)) =
            (self.conns.get(&agent), self.introductions.connectors.get(&connector))
        else {
            return Some(Conflict::Ambiguous);
        };
        let silent = conn.is_silent();
        // While the book is not open, it would be translated.
        if conn.is_translated() || silent && !self.book.is_open() {
            return Some(Conflict::Translated);
        }
        let others = || known.introduced.iter().filter(|other| other.agent != agent);
        let ambiguous = silent
            && (others().any(|other| self.is_unclear(other))
                || is_recent(known.left, now)
                || is_recent(known.contested, now)
                || self.conns.keys().any(|a| *a != agent && self.keeps_own(*a) && shares(*a)));
        if ambiguous || others().count() >= MAX_INTRODUCED {
            return Some(Conflict::Ambiguous);
        }
        let introduced = self.introductions.of(connector, agent).is_some_and(|i| i.held.is_none());
        if !introduced && let Some(entry) = self.introductions.enter(connector, agent) {
            let until = now + HOLD;
            entry.held = Some(until);
            self.introductions.holds.push_back((until, connector, agent));
        }
        None
    }

    /// The agent may from now on send to the connector directly.
    pub fn introduce(&mut self, agent: ConnId, connector: ConnId) {
        if self.conns.contains_key(&agent)
            && let Some(entry) = self.introductions.enter(connector, agent)
        {
            entry.held = None;
        }
    }

    /// Ends an introduction.
    pub fn separate(&mut self, agent: ConnId, connector: ConnId, now: Instant) {
        self.end_introduction(agent, connector, false, now);
    }

    /// The receiver of a connector's packet without a lease for its destination.
    pub fn claimant(
        &mut self,
        connector: ConnId,
        address: IpAddr,
        shares: impl Fn(ConnId) -> bool,
        now: Instant,
    ) -> Option<Claim> {
        let known = self.introductions.connectors.get(&connector)?;
        let mut claimants = known.introduced.iter().filter(|i| self.claims(i, address));
        let Some(claimant) = claimants.next() else {
            // Whoever has left may still send directly, and be answered.
            if is_recent(known.departed, now)
                && let Some(known) = self.introductions.connectors.get_mut(&connector)
            {
                (known.left, known.departed) = (Some(now), Some(now));
            }
            return None;
        };
        if claimants.next().is_some() {
            self.introductions.connectors.get_mut(&connector)?.contested = Some(now);
            return Some(Claim::Ambiguous);
        }
        if claimant.held.is_some() {
            return None;
        }
        if is_recent(known.contested, now) {
            return Some(Claim::Ambiguous);
        }
        let bound = claimant.bound.contains(&address)
            || claimant.bound.len() < self.per_agent && self.may_bind(known, address, shares, now);
        bound.then_some(Claim::Of(claimant.agent))
    }

    /// Binds an address to the agent that [`claimant`](Self::claimant) gave.
    pub fn bind(&mut self, connector: ConnId, agent: ConnId, address: IpAddr) {
        if let Some(introduced) = self.introductions.of_mut(connector, agent)
            && !introduced.bound.contains(&address)
        {
            introduced.bound.push(address);
        }
    }

    /// Ends the leases of an agent at addresses that another one uses, which was introduced to this
    /// connector; the two have come to share a service.
    pub fn make_way(&mut self, agent: ConnId, connector: ConnId, now: Instant) {
        if !self.keeps_own(agent) {
            return;
        }
        let Some(known) = self.introductions.connectors.get(&connector) else {
            return;
        };
        let others = || known.introduced.iter().filter(|other| other.agent != agent);
        let slots = self.conns.get(&agent).map_or(&[][..], |conn| &conn.slots);
        let own = slots.iter().filter(|s| s.source == s.leased).map(|s| s.leased);
        let departed = is_recent(known.departed, now);
        let claimed: Vec<IpAddr> =
            own.filter(|own| departed || others().any(|other| self.claims(other, *own))).collect();
        if let Some(conn) = self.conns.get_mut(&agent) {
            let freed = conn.slots.extract_if(.., |s| claimed.contains(&s.leased)).collect();
            let quota = conn.quota;
            self.free(freed, quota, None, now);
        }
    }

    /// As [`make_way`](Self::make_way), of every agent that shares a service with the connector.
    pub fn make_way_at(
        &mut self,
        connector: ConnId,
        shares: impl Fn(ConnId) -> bool,
        now: Instant,
    ) {
        let known = self.introductions.connectors.get(&connector);
        if known.is_none_or(|c| c.introduced.is_empty() && !is_recent(c.departed, now)) {
            return;
        }
        let agents: Vec<ConnId> = self.conns.keys().copied().filter(|a| shares(*a)).collect();
        for agent in agents {
            self.make_way(agent, connector, now);
        }
    }

    /// Whether an agent other than this one is known to use an address directly.
    pub(super) fn is_used_directly(&self, conn: ConnId, address: IpAddr) -> bool {
        self.others(conn).any(|other| self.uses(other, address))
    }

    /// Whether an agent other than this one may use an address directly, or did and may be answered yet.
    pub(super) fn is_claimed(&self, conn: ConnId, address: IpAddr, now: Instant) -> bool {
        is_recent(self.introductions.unseen, now)
            || self.others(conn).any(|other| self.claims(other, address))
    }

    /// An agent is gone: every introduction of it ends.
    pub(super) fn end_introductions(&mut self, agent: ConnId, now: Instant) {
        while let Some(connector) =
            self.introductions.agents.get(&agent).and_then(|c| c.last().copied())
        {
            self.end_introduction(agent, connector, true, now);
        }
    }

    /// Gives up the places held for agents that were not introduced.
    pub(super) fn end_holds(&mut self, now: Instant) {
        while let Some((until, connector, agent)) = self.introductions.holds.front().copied()
            && until <= now
        {
            self.introductions.holds.pop_front();
            if self.introductions.of(connector, agent).is_some_and(|i| i.held == Some(until)) {
                self.introductions.take(connector, agent);
            }
        }
    }

    fn end_introduction(&mut self, agent: ConnId, connector: ConnId, closed: bool, now: Instant) {
        let Some(Introduced { held: None, bound, .. }) = self.introductions.take(connector, agent)
        else {
            return;
        };
        let conn = self.conns.get(&agent);
        let quota = conn.map_or(agent.0, |conn| conn.quota);
        // Its packets may still be answered, at any address that it used.
        let unseen = conn.is_some_and(Conn::is_silent) && bound.is_empty();
        let others = self.introductions.connectors.get(&connector).map(|c| &c.introduced);
        let contested = unseen && others.is_some_and(|o| o.iter().any(|o| self.is_unclear(o)));
        if let Some(known) = self.introductions.connectors.get_mut(&connector) {
            if unseen || !bound.is_empty() {
                (known.left, known.departed) = (Some(now), Some(now));
            }
            if contested {
                known.contested = Some(now);
            }
        }
        if unseen {
            self.introductions.unseen = Some(now);
        }
        for address in bound {
            if !self.leases.contains_key(&address) {
                self.vacated.end(address);
                self.rest(address, quota, (!closed).then_some(agent), now);
            }
        }
    }

    /// Whether a connector cannot have sent to an address before its agent's direct packets came.
    fn may_bind(
        &self,
        connector: &Connector,
        address: IpAddr,
        shares: impl Fn(ConnId) -> bool,
        now: Instant,
    ) -> bool {
        let pool = &self.pools[usize::from(address.is_ipv6())];
        // No agent uses a shared address itself, and a reserved one stays with its owner, even
        // while that is away.
        let others = pool.is_shared(address)
            || self.book.is_owned(address)
            || !self.book.is_open() && pool.may_lease(address)
            || is_service_address(address)
            || source_ok(address).is_err();
        !others
            && match self.leases.get(&address) {
                Some(lease) => {
                    lease.conn.is_some_and(|holder| !shares(holder))
                        && !is_recent(connector.left, now)
                }
                None => self.vacated.since(address).is_none_or(|since| since < connector.since),
            }
    }

    /// Whether what comes for an address that is not leased to an agent may be meant for it.
    fn is_unclear(&self, introduced: &Introduced) -> bool {
        let conn = self.conns.get(&introduced.agent);
        !introduced.bound.is_empty() || conn.is_some_and(|c| c.is_silent() || c.is_translated())
    }

    /// Whether what comes for an address may be meant for an introduced agent.
    fn claims(&self, introduced: &Introduced, address: IpAddr) -> bool {
        self.conns.get(&introduced.agent).is_some_and(Conn::is_silent)
            || self.uses(introduced, address)
    }

    fn uses(&self, introduced: &Introduced, address: IpAddr) -> bool {
        introduced.bound.contains(&address)
            || self.conns.get(&introduced.agent).is_some_and(|conn| {
                conn.slots.iter().any(|slot| slot.source == address && slot.leased != address)
            })
    }

    fn others(&self, conn: ConnId) -> impl Iterator<Item = &Introduced> {
        let agents = self.introductions.agents.iter().filter(move |(agent, _)| **agent != conn);
        agents.flat_map(|(agent, connectors)| {
            connectors.iter().filter_map(|connector| self.introductions.of(*connector, *agent))
        })
    }
}

/// Whether something that may still be answered was less than a quarantine ago.
fn is_recent(mark: Option<Instant>, now: Instant) -> bool {
    mark.is_some_and(|mark| now.saturating_duration_since(mark) < QUARANTINE)
}
