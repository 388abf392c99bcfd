//! Which address a lease is for, when leases change hands, and how they end.

use std::{hash::BuildHasher, net::IpAddr, time::Instant};

use super::{Lease, LeaseError, MAX_RETAINED, Overlay, Owner, Slot};
use crate::{event::ConnId, pool::Pool};

impl Overlay {
    /// Gives a source address that has no slot yet its lease.
    pub(super) fn lease(
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
            self.free_slots_where(conn, now, |slot| slot.leased == source);
        }
        self.make_room(conn, now)?;
        let own_is_used =
            own.is_some_and(|own| self.slots(conn).iter().any(|slot| slot.leased == own));
        let (leased, own) = match own {
            Some(own) if !own_is_used => (own, true),
            _ => (self.find_free(conn, owner, holder, source)?, false),
        };
        let lease = Lease { conn: Some(conn), inner: source, owner, own, resting: None };
        self.leases.insert(leased, lease);
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
        let free = |address: &IpAddr| {
            let own_rest = |lease: &Lease| lease.resting.is_some() && lease.conn == Some(conn);
            self.leases.get(address).is_none_or(own_rest)
        };
        if owner == Owner::Anonymous && pool.may_lease(source) && free(&source) {
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
        let rested = |address| Some((self.leases.get(&address)?.resting?, address));
        pool.probes(hash)
            .find(free)
            .or_else(|| Some(pool.probes(hash).filter_map(rested).min()?.1))
            .ok_or(LeaseError::PoolExhausted)
    }

    /// The own address of an identity in one family, leased now if it is not yet, whoever but
    /// another identity's own lease must make way for it.
    pub(super) fn own_address(&mut self, key: [u8; 32], conn: ConnId, v6: bool) -> Option<IpAddr> {
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
        let owner = Owner::Identity(key);
        let lease = Lease { conn: Some(conn), inner: own, owner, own: true, resting: None };
        self.leases.insert(own, lease);
        self.identities.get_mut(&key)?.own[usize::from(v6)] = Some(own);
        Some(own)
    }

    /// Gives the leases of an identity whose newest connection closed to the next newest.
    pub(super) fn hand_over(
        &mut self,
        key: [u8; 32],
        heir: ConnId,
        slots: Vec<Slot>,
        now: Instant,
    ) {
        let own = self.identities.get(&key).map_or([None; 2], |identity| identity.own);
        // Had to be translated while the own address was another connection's; passes unchanged now.
        self.free_slots_where(heir, now, |slot| own.contains(&Some(slot.source)));
        for slot in slots {
            match self.conns.get_mut(&heir) {
                Some(conn)
                    if conn.slots.len() < self.per_agent
                        && conn.slots.iter().all(|other| other.source != slot.source) =>
                {
                    conn.slots.push(slot);
                }
                _ => self.free(vec![slot], now),
            }
        }
        self.point_leases_at(key, Some(heir));
    }

    /// Sends what comes for an identity's leases to `conn`, where its slots are already.
    pub(super) fn point_leases_at(&mut self, key: [u8; 32], conn: Option<ConnId>) {
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

    pub(super) fn forget_longest_away(&mut self) {
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
        self.free_slots_where(conn, now, |slot| slot.source == source);
        Ok(())
    }

    fn free_slots_where(&mut self, conn: ConnId, now: Instant, unwanted: impl Fn(&Slot) -> bool) {
        if let Some(known) = self.conns.get_mut(&conn) {
            let freed = known.slots.extract_if(.., |slot| unwanted(slot)).collect();
            self.free(freed, now);
        }
    }

    /// Ends the leases of slots that are gone: their addresses rest. An own lease stays, it only
    /// stands for itself again.
    pub(super) fn free(&mut self, slots: Vec<Slot>, now: Instant) {
        for Slot { leased, .. } in slots {
            match self.leases.get_mut(&leased) {
                Some(lease) if lease.own => lease.inner = leased,
                Some(lease) => {
                    lease.resting = Some(now);
                    self.resting.push_back((now, leased));
                }
                None => {}
            }
        }
        while self.resting.len() > MAX_RETAINED {
            self.release_longest_resting();
        }
    }

    pub(super) fn release_longest_resting(&mut self) {
        if let Some((since, address)) = self.resting.pop_front()
            && self.leases.get(&address).is_some_and(|lease| lease.resting == Some(since))
        {
            self.leases.remove(&address);
        }
    }

    fn slots(&self, conn: ConnId) -> &[Slot] {
        self.conns.get(&conn).map_or(&[], |conn| &conn.slots)
    }

    fn pool(&self, v6: bool) -> &Pool {
        if v6 { &self.pool_v6 } else { &self.pool_v4 }
    }
}
