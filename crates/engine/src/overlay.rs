//! Who owns which inner address.
//!
//! Agents choose their inner source addresses alone, and many choose the same one, so a packet that
//! comes back cannot be delivered by its destination unless every address belongs to one connection.
//! Three kinds of lease make that so, the stronger evicting the weaker:
//!
//! - **Own**: a proven identity owns one address in each pool, the first free one in the order its
//!   public key's hash gives ([`Pool::probes`]). It is held from [`attach`](Overlay::attach) on, so
//!   it can be reached before it has sent anything, and for the grace time after its last connection
//!   closed. Nobody evicts it; a collision of two identities goes to the one that came first.
//! - **Extra**: further source addresses of an identity are translated to pool addresses. They
//!   follow the identity over a reconnect within the grace time.
//! - **Loose**: what an anonymous agent holds, its own source address where it is free, else one of
//!   the pool. It ends with the connection.
//!
//! An identity with several live connections: the newest takes all its leases over at once, since
//! it is nearly always the same agent that came back while its old connection has not timed out
//! yet. If the old one still sends, it gets leases of its own that end with it. When the newest
//! closes, the newest of the others takes over.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use crate::{
    event::ConnId,
    packet::{BadSource, source_ok},
    pool::Pool,
};

/// Identities remembered after their last connection closed; beyond it the longest gone is forgotten.
pub const MAX_RETAINED: usize = 65_536;

/// What the overlay leases, and to whom for how long.
#[derive(Clone, Debug)]
pub struct OverlayConfig {
    /// IPv4 pool, /8 to /30.
    pub pool_v4: (Ipv4Addr, u8),
    /// IPv6 pool, /32 to /120.
    pub pool_v6: (Ipv6Addr, u8),
    /// Source addresses one connection may use at once, both families together; at least 1.
    pub per_agent: usize,
    /// How long the leases of an identity outlive its last connection, and how long a source must be
    /// silent before another one may take its place on a connection that uses `per_agent` already.
    pub grace: Duration,
    /// Addresses that are never leased: the sources of ICMP answers.
    pub reserved: Vec<IpAddr>,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An agent that proved the public key with this SHA-256.
    Identity([u8; 32]),
    /// An agent that proved nothing.
    Anonymous,
}

/// Why a packet's source address gets no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseError {
    /// The connection is not attached.
    Unknown,
    /// Nobody may send from such an address.
    BadSource(BadSource),
    /// The connection uses as many addresses as it may.
    TooMany,
    /// No address of the pool is free.
    PoolExhausted,
}

/// The leases of all agents.
#[derive(Debug)]
pub struct Overlay {
    pool_v4: Pool,
    pool_v6: Pool,
    per_agent: usize,
    grace: Duration,
    // Agents choose addresses, so this map is keyed against collisions; connection ids are ours.
    leases: HashMap<IpAddr, Lease>,
    conns: FxHashMap<ConnId, Conn>,
    identities: HashMap<[u8; 32], Identity>,
    // In the order of detachment, which with one grace time for all is the order of expiry.
    retained: BTreeMap<u64, [u8; 32]>,
    detachments: u64,
    random: RandomState,
}

#[derive(Debug)]
struct Lease {
    /// Where packets for it go; `None` while its identity is away.
    conn: Option<ConnId>,
    /// The address the agent itself uses.
    inner: IpAddr,
    owner: Owner,
    own: bool,
}

/// One source address in use, and the address it is seen as.
#[derive(Debug)]
struct Slot {
    source: IpAddr,
    leased: IpAddr,
    used: Instant,
}

#[derive(Debug)]
struct Conn {
    owner: Owner,
    slots: Vec<Slot>,
}

#[derive(Debug, Default)]
struct Identity {
    /// The own IPv4 and IPv6 address; `None` where the pool had none.
    own: [Option<IpAddr>; 2],
    /// Its connections, oldest first; the last holds the leases.
    conns: Vec<ConnId>,
    /// The slots of the last connection while there is none.
    slots: Vec<Slot>,
    /// The number and the time of the detachment while there is no connection.
    away: Option<(u64, Instant)>,
}

impl Overlay {
    /// An overlay without leases; the error says which setting to change.
    pub fn new(config: OverlayConfig) -> Result<Self, String> {
        if config.per_agent == 0 {
            return Err("inner addresses per agent: must be at least 1".to_owned());
        }
        Ok(Self {
            pool_v4: Pool::new(config.pool_v4.0.into(), config.pool_v4.1, &config.reserved)?,
            pool_v6: Pool::new(config.pool_v6.0.into(), config.pool_v6.1, &config.reserved)?,
            per_agent: config.per_agent,
            grace: config.grace,
            leases: HashMap::new(),
            conns: FxHashMap::default(),
            identities: HashMap::new(),
            retained: BTreeMap::new(),
            detachments: 0,
            random: RandomState::new(),
        })
    }

    /// A connection of an agent appears. Doing it again changes nothing; with another owner it is a
    /// detachment first.
    pub fn attach(&mut self, conn: ConnId, owner: Owner, now: Instant) {
        match self.conns.get(&conn) {
            Some(known) if known.owner == owner => return,
            Some(_) => self.detach(conn, now),
            None => {}
        }
        let mut slots = Vec::new();
        if let Owner::Identity(key) = owner {
            let identity = self.identities.entry(key).or_default();
            slots = match identity.conns.last().and_then(|older| self.conns.get_mut(older)) {
                Some(older) => std::mem::take(&mut older.slots),
                None => std::mem::take(&mut identity.slots),
            };
            if let Some((number, _)) = identity.away.take() {
                self.retained.remove(&number);
            }
            identity.conns.push(conn);
        }
        self.conns.insert(conn, Conn { owner, slots });
        if let Owner::Identity(key) = owner {
            self.point_leases_at(key, Some(conn));
            self.own_address(key, conn, false);
            self.own_address(key, conn, true);
        }
    }

    /// A connection is gone. An anonymous one frees its leases at once, an identity keeps those of
    /// its last connection for the grace time.
    pub fn detach(&mut self, conn: ConnId, now: Instant) {
        let Some(Conn { owner, slots }) = self.conns.remove(&conn) else {
            return;
        };
        let Owner::Identity(key) = owner else {
            return self.free(slots);
        };
        let Some(identity) = self.identities.get_mut(&key) else {
            return self.free(slots);
        };
        let held = identity.conns.last() == Some(&conn);
        identity.conns.retain(|other| *other != conn);
        match identity.conns.last().copied() {
            Some(_) if !held => self.free(slots),
            Some(heir) => self.hand_over(key, heir, slots),
            None => {
                self.detachments += 1;
                identity.away = Some((self.detachments, now));
                identity.slots = slots;
                self.retained.insert(self.detachments, key);
                self.point_leases_at(key, None);
                if self.retained.len() > MAX_RETAINED {
                    self.forget_longest_away();
                }
            }
        }
    }

    /// The address to put in as the source of a packet; equal to `source` where it stays.
    ///
    /// One look into a small array in the usual case. The source is judged by
    /// [`source_ok`] before it gets a lease, so the caller need not.
    pub fn outbound(
        &mut self,
        conn: ConnId,
        source: IpAddr,
        now: Instant,
    ) -> Result<IpAddr, LeaseError> {
        let known = self.conns.get_mut(&conn).ok_or(LeaseError::Unknown)?;
        if let Some(slot) = known.slots.iter_mut().find(|slot| slot.source == source) {
            slot.used = now;
            return Ok(slot.leased);
        }
        source_ok(source).map_err(LeaseError::BadSource)?;
        let owner = known.owner;
        self.lease(conn, owner, source, now)
    }

    /// The connection that owns `destination`, and the address that its agent uses itself.
    pub fn inbound(&self, destination: IpAddr) -> Option<(ConnId, IpAddr)> {
        let lease = self.leases.get(&destination)?;
        Some((lease.conn?, lease.inner))
    }

    /// Forgets the identities that have been away for the grace time. Costs nothing while there are
    /// none.
    pub fn expire(&mut self, now: Instant) {
        while let Some((_, key)) = self.retained.first_key_value() {
            let away = self.identities.get(key).and_then(|identity| identity.away);
            if away.is_some_and(|(_, since)| now.saturating_duration_since(since) < self.grace) {
                return;
            }
            self.forget_longest_away();
        }
    }

    /// How many addresses are leased.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Gives a source address that has no slot yet its lease.
    fn lease(
        &mut self,
        conn: ConnId,
        owner: Owner,
        source: IpAddr,
        now: Instant,
    ) -> Result<IpAddr, LeaseError> {
        let v6 = source.is_ipv6();
        let holder = match owner {
            Owner::Identity(key) => self
                .identities
                .get(&key)
                .is_some_and(|identity| identity.conns.last() == Some(&conn))
                .then_some(key),
            Owner::Anonymous => None,
        };
        let own = holder.and_then(|key| self.own_address(key, conn, v6));
        if own == Some(source) {
            // The agent uses its own address after all; a source seen as it until now gets an extra
            // lease with its next packet.
            self.free_slots_where(conn, |slot| slot.leased == source);
        }
        self.make_room(conn, now)?;
        let own_is_used =
            own.is_some_and(|own| self.slots(conn).iter().any(|slot| slot.leased == own));
        let leased = match own {
            Some(own) if !own_is_used => own,
            _ => self.find_free(conn, owner, holder, source)?,
        };
        match self.leases.get_mut(&leased) {
            Some(lease) => lease.inner = source,
            None => {
                self.leases
                    .insert(leased, Lease { conn: Some(conn), inner: source, owner, own: false });
            }
        }
        if let Some(known) = self.conns.get_mut(&conn) {
            known.slots.push(Slot { source, leased, used: now });
        }
        Ok(leased)
    }

    /// A free address for an extra or a loose lease.
    ///
    /// The order is keyed, so that nobody can take all the addresses somebody else would be given.
    fn find_free(
        &self,
        conn: ConnId,
        owner: Owner,
        holder: Option<[u8; 32]>,
        source: IpAddr,
    ) -> Result<IpAddr, LeaseError> {
        let pool = self.pool(source.is_ipv6());
        if owner == Owner::Anonymous && pool.may_lease(source) && !self.leases.contains_key(&source)
        {
            return Ok(source);
        }
        let mut hash = [0; 32];
        for (index, part) in hash.chunks_exact_mut(8).enumerate() {
            // An identity's extra addresses are the same on each of its connections.
            let word = match holder {
                Some(key) => self.random.hash_one((index, key, source)),
                None => self.random.hash_one((index, conn, source)),
            };
            part.copy_from_slice(&word.to_be_bytes());
        }
        pool.probes(hash)
            .find(|address| !self.leases.contains_key(address))
            .ok_or(LeaseError::PoolExhausted)
    }

    /// The own address of an identity in one family, leased now if it is not yet, whoever but
    /// another identity's own lease must make way for it.
    fn own_address(&mut self, key: [u8; 32], conn: ConnId, v6: bool) -> Option<IpAddr> {
        if let Some(own) = self.identities.get(&key)?.own[usize::from(v6)] {
            return Some(own);
        }
        let own = self
            .pool(v6)
            .probes(key)
            .find(|address| self.leases.get(address).is_none_or(|lease| !lease.own))?;
        if let Some(weaker) = self.leases.remove(&own) {
            let slots = match (weaker.conn, weaker.owner) {
                (Some(conn), _) => self.conns.get_mut(&conn).map(|conn| &mut conn.slots),
                (None, Owner::Identity(key)) => {
                    self.identities.get_mut(&key).map(|identity| &mut identity.slots)
                }
                (None, Owner::Anonymous) => None,
            };
            if let Some(slots) = slots {
                slots.retain(|slot| slot.leased != own);
            }
        }
        self.leases.insert(
            own,
            Lease { conn: Some(conn), inner: own, owner: Owner::Identity(key), own: true },
        );
        self.identities.get_mut(&key)?.own[usize::from(v6)] = Some(own);
        Some(own)
    }

    /// Gives the leases of an identity whose newest connection closed to the next newest.
    fn hand_over(&mut self, key: [u8; 32], heir: ConnId, slots: Vec<Slot>) {
        let own = self.identities.get(&key).map_or([None; 2], |identity| identity.own);
        // Had to be translated while the own address was another connection's; passes unchanged now.
        self.free_slots_where(heir, |slot| own.contains(&Some(slot.source)));
        for slot in slots {
            match self.conns.get_mut(&heir) {
                Some(conn)
                    if conn.slots.len() < self.per_agent
                        && conn.slots.iter().all(|other| other.source != slot.source) =>
                {
                    conn.slots.push(slot);
                }
                _ => self.free(vec![slot]),
            }
        }
        self.point_leases_at(key, Some(heir));
    }

    /// Sends what comes for an identity's leases to `conn`, where its slots are already.
    fn point_leases_at(&mut self, key: [u8; 32], conn: Option<ConnId>) {
        let Some(identity) = self.identities.get(&key) else {
            return;
        };
        let slots = match conn {
            Some(conn) => self.conns.get(&conn).map_or(&[][..], |conn| &conn.slots),
            None => &identity.slots,
        };
        for address in identity.own.iter().flatten().chain(slots.iter().map(|slot| &slot.leased)) {
            if let Some(lease) = self.leases.get_mut(address) {
                lease.conn = conn;
            }
        }
    }

    fn forget_longest_away(&mut self) {
        let Some(identity) =
            self.retained.pop_first().and_then(|(_, key)| self.identities.remove(&key))
        else {
            return;
        };
        for address in
            identity.own.iter().flatten().chain(identity.slots.iter().map(|slot| &slot.leased))
        {
            self.leases.remove(address);
        }
    }

    /// Makes sure that a connection may have one more slot: the one silent for longest is freed if
    /// that was the grace time at least.
    fn make_room(&mut self, conn: ConnId, now: Instant) -> Result<(), LeaseError> {
        let slots = self.slots(conn);
        if slots.len() < self.per_agent {
            return Ok(());
        }
        let oldest = slots.iter().min_by_key(|slot| slot.used).ok_or(LeaseError::TooMany)?;
        if now.saturating_duration_since(oldest.used) < self.grace {
            return Err(LeaseError::TooMany);
        }
        let source = oldest.source;
        self.free_slots_where(conn, |slot| slot.source == source);
        Ok(())
    }

    fn free_slots_where(&mut self, conn: ConnId, unwanted: impl Fn(&Slot) -> bool) {
        if let Some(known) = self.conns.get_mut(&conn) {
            let freed = known.slots.extract_if(.., |slot| unwanted(slot)).collect();
            self.free(freed);
        }
    }

    /// Ends the leases of slots that are gone. An own lease stays: it only stands for itself again.
    fn free(&mut self, slots: Vec<Slot>) {
        for slot in slots {
            match self.leases.get_mut(&slot.leased) {
                Some(lease) if lease.own => lease.inner = slot.leased,
                _ => {
                    self.leases.remove(&slot.leased);
                }
            }
        }
    }

    fn slots(&self, conn: ConnId) -> &[Slot] {
        self.conns.get(&conn).map_or(&[], |conn| &conn.slots)
    }

    fn pool(&self, v6: bool) -> &Pool {
        if v6 { &self.pool_v6 } else { &self.pool_v4 }
    }
}
