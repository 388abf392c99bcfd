//! Leases: the choice of their addresses, their moves and their ends.

use std::{net::IpAddr, time::Instant};

use super::{HAND_OVER, Lease, LeaseError, MAX_DETACHED, MAX_QUARANTINED, Nat, Owner, Slot};
use crate::boundary::event::ConnId;

/// Turns made to find a shared address that is free.
const MAX_TURNS: usize = 256;

impl Nat {
    /// Gives a source address that has no slot yet its lease.
    pub(super) fn lease(
        &mut self,
        conn: ConnId,
        owner: Owner,
        quota: u64,
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
        let reserved = holder.and_then(|key| self.reserved_address(key, conn, v6));
        if reserved == Some(source) {
            // The agent uses its reserved address after all; a source seen as it until now gets an additional one
            // lease with its next packet.
            self.free_slots_where(conn, now, |slot| slot.leased == source);
        }
        self.make_room(conn, now)?;
        let reserved_is_used = reserved
            .is_some_and(|reserved| self.slots(conn).iter().any(|slot| slot.leased == reserved));
        let (leased, reserved) = match reserved {
            Some(reserved) if !reserved_is_used => (reserved, true),
            _ => (self.find_free(conn, owner, quota, source, now)?, false),
        };
        let lease = Lease { conn: Some(conn), inner: source, reserved };
        self.leases.insert(leased, lease);
        if let Some(known) = self.conns.get_mut(&conn) {
            known.slots.push(Slot { source, leased, used: now });
        }
        Ok(leased)
    }

    /// The connection of the same identity that has just taken over from this one.
    pub(super) fn successor(&self, conn: ConnId, owner: Owner, now: Instant) -> Option<ConnId> {
        self.taken_over(owner, now)?.last().copied().filter(|newest| *newest != conn)
    }

    /// The connection of the same identity from which this one has just taken over.
    pub fn predecessor(&self, conn: ConnId, now: Instant) -> Option<ConnId> {
        let conns = self.taken_over(self.conns.get(&conn)?.owner, now)?;
        let (newest, others) = conns.split_last()?;
        others.last().copied().filter(|_| *newest == conn)
    }

    /// The connections of an identity whose newest has just taken its leases over, oldest first.
    fn taken_over(&self, owner: Owner, now: Instant) -> Option<&[ConnId]> {
        let Owner::Identity(key) = owner else {
            return None;
        };
        let identity = self.identities.get(&key)?;
        let lately = now.saturating_duration_since(identity.taken_over?) < HAND_OVER;
        lately.then_some(&identity.conns)
    }

    /// A free address for an additional or a ephemeral lease.
    fn find_free(
        &mut self,
        conn: ConnId,
        owner: Owner,
        quota: u64,
        source: IpAddr,
        now: Instant,
    ) -> Result<IpAddr, LeaseError> {
        if owner == Owner::Anonymous && self.may_keep(conn, source, now) {
            self.vacated.end(source);
            return Ok(source);
        }
        let family = usize::from(source.is_ipv6());
        let (pool, quarantine) = (&self.pools[family], &mut self.shared[family]);
        // A quota that takes very many gets its own former ones, or none would be left for others.
        let share = (pool.shared() / 16).clamp(64, MAX_QUARANTINED as u128 / 16) as usize;
        let address = quarantine
            .longest_of(quota, share)
            .or_else(|| {
                (0..MAX_TURNS).find_map(|_| {
                    let index = self.turns[family];
                    self.turns[family] = index.wrapping_add(1);
                    pool.turn(self.seed, index).filter(|address| {
                        !self.leases.contains_key(address) && !quarantine.contains(*address)
                    })
                })
            })
            .or_else(|| quarantine.longest())
            .ok_or(LeaseError::PoolExhausted)?;
        quarantine.end(address);
        Ok(address)
    }

    /// Whether an anonymous agent may go on with the address it uses itself.
    fn may_keep(&self, conn: ConnId, source: IpAddr, now: Instant) -> bool {
        let pool = &self.pools[usize::from(source.is_ipv6())];
        self.book.is_open()
            && pool.may_lease(source)
            && !pool.is_shared(source)
            && !self.book.is_owned(source)
            && !self.leases.contains_key(&source)
            && !self.vacated.keeps_from(conn, source)
            && self.vacated.len() < MAX_DETACHED
            && !self.is_claimed(conn, source, now)
    }

    /// The reserved address of an identity in one family, leased now if it is not yet. An identity
    /// without one gets the first address that is not in use, reserved or quarantined.
    pub(super) fn reserved_address(
        &mut self,
        key: [u8; 32],
        conn: ConnId,
        v6: bool,
    ) -> Option<IpAddr> {
        let reserved = match self.book.reserved(&key)[usize::from(v6)] {
            Some(reserved) => reserved,
            None if self.book.has_room(&key) => {
                let reserved = self.pools[usize::from(v6)].probes(key).find(|address| {
                    !self.book.is_owned(*address)
                        && !self.leases.contains_key(address)
                        && !self.vacated.contains(*address)
                        && !self.is_used_directly(conn, *address)
                })?;
                self.book.enter(key, reserved);
                reserved
            }
            None => return None,
        };
        self.leases.entry(reserved).or_insert(Lease {
            conn: Some(conn),
            inner: reserved,
            reserved: true,
        });
        Some(reserved)
    }

    /// Gives the leases of an identity whose newest connection closed to the next newest.
    pub(super) fn hand_over(
        &mut self,
        key: [u8; 32],
        heir: ConnId,
        slots: Vec<Slot>,
        now: Instant,
    ) {
        let reserved = self.book.reserved(&key);
        let quota = self.conns.get(&heir).map_or(0, |conn| conn.quota);
        // Had to be translated while the reserved address was another connection's; passes unchanged now.
        self.free_slots_where(heir, now, |slot| reserved.contains(&Some(slot.source)));
        for slot in slots {
            match self.conns.get_mut(&heir) {
                Some(conn)
                    if conn.slots.len() < self.per_agent
                        && conn.slots.iter().all(|other| other.source != slot.source) =>
                {
                    conn.slots.push(slot);
                }
                _ => self.free(vec![slot], quota, None, now),
            }
        }
        self.point_leases_at(key, Some(heir));
    }

    /// Routes packets for an identity's leases to `conn`, which has its slots already.
    pub(super) fn point_leases_at(&mut self, key: [u8; 32], conn: Option<ConnId>) {
        let Some(identity) = self.identities.get(&key) else {
            return;
        };
        let slots = match conn {
            Some(conn) => self.conns.get(&conn).map_or(&[][..], |conn| &conn.slots),
            None => &identity.slots,
        };
        let reserved = self.book.reserved(&key);
        for address in reserved.iter().flatten().chain(slots.iter().map(|slot| &slot.leased)) {
            if let Some(lease) = self.leases.get_mut(address) {
                lease.conn = conn;
            }
        }
    }

    /// Forgets an identity: its additional addresses begin to rest, its reserved ones stay in the book.
    pub(super) fn forget_longest_away(&mut self, now: Instant) {
        let Some((key, identity)) = (self.detached.pop_first())
            .and_then(|(_, key)| Some((key, self.identities.remove(&key)?)))
        else {
            return;
        };
        self.free(identity.slots, identity.quota, None, now);
        for address in self.book.reserved(&key).iter().flatten() {
            self.leases.remove(address);
        }
    }

    /// Makes room for one more slot of a connection: frees the one silent for longest, if its
    /// silence lasted the grace time.
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
            let quota = known.quota;
            self.free(freed, quota, Some(conn), now);
        }
    }

    /// Ends the leases of slots that are gone: their addresses rest. A reserved lease stays, it only
    /// stands for itself again.
    pub(super) fn free(
        &mut self,
        slots: Vec<Slot>,
        quota: u64,
        conn: Option<ConnId>,
        now: Instant,
    ) {
        for Slot { leased, .. } in slots {
            match self.leases.get_mut(&leased) {
                Some(lease) if lease.reserved => lease.inner = leased,
                Some(_) => {
                    self.leases.remove(&leased);
                    self.rest(leased, quota, conn, now);
                }
                None => {}
            }
        }
    }

    /// Keeps an address that is not leased from all but `conn`.
    pub(super) fn rest(&mut self, address: IpAddr, quota: u64, conn: Option<ConnId>, now: Instant) {
        let family = usize::from(address.is_ipv6());
        let shared = self.pools[family].is_shared(address);
        let quarantine = if shared { &mut self.shared[family] } else { &mut self.vacated };
        quarantine.begin(address, quota, conn, now);
        if quarantine.len() > MAX_QUARANTINED
            && let Some(longest) = quarantine.longest()
        {
            quarantine.end(longest);
        }
    }

    fn slots(&self, conn: ConnId) -> &[Slot] {
        self.conns.get(&conn).map_or(&[], |conn| &conn.slots)
    }
}
