//! Ownership of inner addresses.
//!
//! Agents choose their inner source addresses alone, and many choose the same one, so a packet that
//! comes back cannot be delivered by its destination unless every address belongs to one connection.
//! Three kinds of lease make that so:
//!
//! - **Reserved**: a proven identity owns one address in each pool: the first that was free, when it
//!   first came, in the order its public key's hash gives ([`Pool::probes`]). It is entered in a book
//!   then ([`Nat::reserved`]), and stays its own for good, whether the identity is there or not.
//!   While it is, the address is leased from [`attach`](Nat::attach) on, so that it can be
//!   reached before it has sent anything.
//! - **Additional**: further source addresses of an identity are translated to addresses of the pool's
//!   shared part. They follow the identity over a reconnect within the grace time.
//! - **Ephemeral**: what an anonymous agent holds: its own source address where that is free and lies in
//!   the part of the pool that is not shared, else one of the shared. It ends with the connection.
//!
//! An additional or ephemeral lease that ends leaves its address quarantined for [`QUARANTINE`]: what a connector still
//! sends there must not reach the next one who uses the same address. Shared addresses are given out
//! by turns, each once before any comes again. One who has given up very many gets the one of them
//! that has rested longest, and so does everybody where no other is left.
//!
//! An identity with several live connections: the newest takes all its leases over at once, since
//! it is nearly always the same agent that came back while its old connection has not timed out
//! yet. What the old one sends within [`HAND_OVER`] was under way: it comes from the same addresses.
//! If it still sends later, it gets leases of its own that end with it. When the newest closes, the
//! newest of the others takes over.

mod book;
mod direct;
pub mod flow;
pub(crate) mod flows;
mod introductions;
mod leases;
pub mod pool;
mod quarantine;

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use self::{book::Book, introductions::Introductions, quarantine::Quarantine};
pub use self::{
    book::MAX_OWNERS,
    introductions::{Claim, Conflict, MAX_INTRODUCED},
    quarantine::QUARANTINE,
};
use crate::{
    boundary::event::ConnId,
    packet::{BadSource, source_ok},
    relay::nat::pool::Pool,
};

/// Identities remembered after their last connection closed; beyond that the one longest gone is
/// forgotten. Also the addresses of their own that anonymous agents have left; beyond that none of
/// them keeps its own.
pub const MAX_DETACHED: usize = 65_536;
/// How long the packets of an identity's older connection come from the addresses that a newer one has
/// taken over: the time in which an agent with a new certificate moves from one to the other.
pub const HAND_OVER: Duration = Duration::from_secs(10);
/// Shared addresses quarantined at the most, in one family.
const MAX_QUARANTINED: usize = 262_144;

/// The pools of the NAT, and the terms of its leases.
#[derive(Clone, Debug)]
pub struct NatConfig {
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
    /// Own addresses that identities were given before, by SHA-256 of their public key. Addresses
    /// beyond the pools are ignored.
    pub known: Arc<[([u8; 32], IpAddr)]>,
    /// Whether `known` may lack some. Then no agent gets an address that could be reserved for
    /// another.
    pub known_in_part: bool,
}

/// The owner of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An agent that proved the public key with this SHA-256.
    Identity([u8; 32]),
    /// An agent that proved nothing.
    Anonymous,
}

/// The reason for which a packet's source address gets no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseError {
    /// The connection is not attached.
    Unknown,
    /// No packet may come from such an address.
    BadSource(BadSource),
    /// The connection uses as many addresses as it may.
    TooMany,
    /// No address of the pool is free.
    PoolExhausted,
}

/// The leases of all agents.
#[derive(Debug)]
pub struct Nat {
    /// Of IPv4 and IPv6.
    pools: [Pool; 2],
    per_agent: usize,
    grace: Duration,
    book: Book,
    // Agents choose addresses, so this map is keyed against collisions; connection ids are ours.
    leases: HashMap<IpAddr, Lease>,
    conns: FxHashMap<ConnId, Conn>,
    identities: HashMap<[u8; 32], Identity>,
    // In the order of detachment, which with one grace time for all is the order of expiry.
    detached: BTreeMap<u64, [u8; 32]>,
    detachments: u64,
    /// Addresses that anonymous agents used themselves.
    vacated: Quarantine,
    /// Shared addresses of IPv4 and IPv6, how many turns have been made in each, and in which order.
    shared: [Quarantine; 2],
    turns: [u128; 2],
    seed: u128,
    introductions: Introductions,
}

#[derive(Debug)]
struct Lease {
    /// The connection of its packets; `None` while its identity is away.
    conn: Option<ConnId>,
    /// The address the agent itself uses.
    inner: IpAddr,
    reserved: bool,
}

/// One source address in use, and its lease.
#[derive(Debug)]
struct Slot {
    source: IpAddr,
    leased: IpAddr,
    used: Instant,
}

#[derive(Debug)]
struct Conn {
    owner: Owner,
    quota: u64,
    slots: Vec<Slot>,
}

#[derive(Debug, Default)]
struct Identity {
    quota: u64,
    /// Its connections, oldest first; the last holds the leases.
    conns: Vec<ConnId>,
    /// The slots of the last connection while there is none.
    slots: Vec<Slot>,
    /// The number and the time of the detachment while there is no connection.
    away: Option<(u64, Instant)>,
    /// When the last connection took the leases from another.
    taken_over: Option<Instant>,
}

impl Nat {
    /// A NAT without leases; the error says which setting to change.
    pub fn new(config: NatConfig) -> Result<Self, String> {
        if config.per_agent == 0 {
            return Err("inner addresses per agent: must be at least 1".to_owned());
        }
        let pools = [
            Pool::new(config.pool_v4.0.into(), config.pool_v4.1, &config.reserved)?,
            Pool::new(config.pool_v6.0.into(), config.pool_v6.1, &config.reserved)?,
        ];
        let random = RandomState::new();
        let seed = u128::from(random.hash_one(0)) << 64 | u128::from(random.hash_one(1));
        let known = config.known.iter().copied().filter(|(_, address)| {
            let pool = &pools[usize::from(address.is_ipv6())];
            pool.may_lease(*address) && !pool.is_shared(*address)
        });
        Ok(Self {
            book: Book::new(known, !config.known_in_part),
            pools,
            per_agent: config.per_agent,
            grace: config.grace,
            leases: HashMap::new(),
            conns: FxHashMap::default(),
            identities: HashMap::new(),
            detached: BTreeMap::new(),
            detachments: 0,
            vacated: Quarantine::default(),
            shared: Default::default(),
            turns: [0; 2],
            seed,
            introductions: Introductions::default(),
        })
    }

    /// The reserved IPv4 and IPv6 address of an identity; `None` where it has none.
    pub fn reserved(&self, identity: &[u8; 32]) -> [Option<IpAddr>; 2] {
        self.book.reserved(identity)
    }

    /// A connection of an agent appears; returns whether it had not been there. A repeated call
    /// changes nothing; one with another owner detaches it first. Connections of one `quota` share
    /// the bound of quarantined addresses.
    pub fn attach(&mut self, conn: ConnId, owner: Owner, quota: u64, now: Instant) -> bool {
        match self.conns.get(&conn) {
            Some(known) if known.owner == owner => return false,
            Some(_) => self.detach(conn, now),
            None => {}
        }
        let mut slots = Vec::new();
        if let Owner::Identity(key) = owner {
            let identity = self.identities.entry(key).or_default();
            identity.quota = quota;
            slots = match identity.conns.last().and_then(|older| self.conns.get_mut(older)) {
                Some(older) => {
                    identity.taken_over = Some(now);
                    std::mem::take(&mut older.slots)
                }
                None => std::mem::take(&mut identity.slots),
            };
            if let Some((number, _)) = identity.away.take() {
                self.detached.remove(&number);
            }
            identity.conns.push(conn);
        }
        self.conns.insert(conn, Conn { owner, quota, slots });
        if let Owner::Identity(key) = owner {
            self.point_leases_at(key, Some(conn));
            self.reserved_address(key, conn, false);
            self.reserved_address(key, conn, true);
        }
        true
    }

    /// A connection is gone. The leases of an anonymous one end, an identity keeps those of its last
    /// connection for the grace time.
    pub fn detach(&mut self, conn: ConnId, now: Instant) {
        self.end_introductions(conn, now);
        let Some(Conn { owner, quota, slots }) = self.conns.remove(&conn) else {
            return;
        };
        let Owner::Identity(key) = owner else {
            return self.free(slots, quota, None, now);
        };
        let Some(identity) = self.identities.get_mut(&key) else {
            return self.free(slots, quota, None, now);
        };
        let held = identity.conns.last() == Some(&conn);
        identity.conns.retain(|other| *other != conn);
        match identity.conns.last().copied() {
            Some(_) if !held => self.free(slots, quota, None, now),
            Some(heir) => self.hand_over(key, heir, slots, now),
            None => {
                self.detachments += 1;
                identity.away = Some((self.detachments, now));
                identity.slots = slots;
                self.detached.insert(self.detachments, key);
                self.point_leases_at(key, None);
                if self.detached.len() > MAX_DETACHED {
                    self.forget_longest_away(now);
                }
            }
        }
    }

    /// The new source address of a packet; equal to `source` if it stays.
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
        let (owner, quota) = (known.owner, known.quota);
        match self.successor(conn, owner, now) {
            Some(successor) => self.outbound(successor, source, now),
            None => self.lease(conn, owner, quota, source, now),
        }
    }

    /// The connection that owns `destination`, and the address that its agent uses itself.
    pub fn inbound(&self, destination: IpAddr) -> Option<(ConnId, IpAddr)> {
        let lease = self.leases.get(&destination)?;
        Some((lease.conn?, lease.inner))
    }

    /// Forgets identities that have been away for the grace time, and addresses whose quarantine is
    /// over. Costs nothing while there are none.
    pub fn expire(&mut self, now: Instant) {
        self.end_holds(now);
        self.vacated.expire(now);
        self.shared.iter_mut().for_each(|quarantine| quarantine.expire(now));
        while let Some((_, key)) = self.detached.first_key_value() {
            let away = self.identities.get(key).and_then(|identity| identity.away);
            if away.is_some_and(|(_, since)| now.saturating_duration_since(since) < self.grace) {
                return;
            }
            self.forget_longest_away(now);
        }
    }

    /// The number of addresses leased or in quarantine.
    pub fn leases(&self) -> usize {
        self.leases.len()
            + self.vacated.len()
            + self.shared.iter().map(Quarantine::len).sum::<usize>()
    }
}
