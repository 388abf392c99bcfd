//! The overlay's rules as one flat list, searched from end to end.
//!
//! Where the overlay may choose any free address of a pool, the model takes over its choice after
//! checking that it was one.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ztna_engine::{
    event::ConnId,
    overlay::{LeaseError, Overlay, OverlayConfig, Owner, REST},
    packet::source_ok,
    pool::Pool,
};

#[derive(Clone, Debug)]
pub enum Op {
    Attach(u64, Owner),
    Detach(u64),
    Outbound(u64, IpAddr),
    Pass(Duration),
    Expire,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    owner: Owner,
    conn: Option<u64>,
    /// The source address in use; none for an own address that nothing maps to.
    source: Option<IpAddr>,
    own: bool,
    /// The lease is over and the address kept from others: since when, and who had it.
    resting: Option<(Instant, u64)>,
    used: Instant,
    order: u64,
}

impl Entry {
    fn rest(&mut self, now: Instant) {
        self.resting = self.conn.map(|conn| (now, conn));
        (self.conn, self.source) = (None, None);
    }

    fn rests(&self) -> bool {
        self.resting.is_some()
    }
}

pub struct Model {
    overlay: Overlay,
    pools: [Pool; 2],
    config: OverlayConfig,
    now: Instant,
    entries: Vec<Entry>,
    conns: Vec<(u64, Owner)>,
    away: Vec<(Owner, Instant)>,
    order: u64,
}

impl Model {
    pub fn new(config: OverlayConfig) -> Self {
        let pools = [
            Pool::new(config.pool_v4.0.into(), config.pool_v4.1, &config.reserved).unwrap(),
            Pool::new(config.pool_v6.0.into(), config.pool_v6.1, &config.reserved).unwrap(),
        ];
        Self {
            overlay: Overlay::new(config.clone()).unwrap(),
            pools,
            config,
            now: Instant::now(),
            entries: Vec::new(),
            conns: Vec::new(),
            away: Vec::new(),
            order: 0,
        }
    }

    /// Applies one operation to both and compares everything that can be seen.
    pub fn step(&mut self, op: &Op) {
        match op {
            Op::Pass(time) => self.now += *time,
            Op::Attach(conn, owner) => {
                self.overlay.attach(ConnId(*conn), *owner, self.now);
                self.attach(*conn, *owner);
            }
            Op::Detach(conn) => {
                self.overlay.detach(ConnId(*conn), self.now);
                self.detach(*conn);
            }
            Op::Expire => {
                self.overlay.expire(self.now);
                let gone: Vec<Owner> = self
                    .away
                    .extract_if(.., |(_, since)| self.now - *since >= self.config.grace)
                    .map(|(owner, _)| owner)
                    .collect();
                let rested = |since| self.now - since >= REST;
                self.entries.retain(|entry| match entry.resting {
                    Some((since, _)) => !rested(since),
                    None => !gone.contains(&entry.owner),
                });
            }
            Op::Outbound(conn, source) => {
                let got = self.overlay.outbound(ConnId(*conn), *source, self.now);
                self.outbound(*conn, *source, got);
            }
        }
        self.compare();
    }

    /// Detaches everything and lets all grace pass: nothing may be left.
    pub fn finish(mut self) {
        for (conn, _) in self.conns.clone() {
            self.step(&Op::Detach(conn));
        }
        self.step(&Op::Pass(self.config.grace.max(REST)));
        self.step(&Op::Expire);
        assert_eq!(self.overlay.leases(), 0);
    }

    fn compare(&self) {
        assert_eq!(self.overlay.leases(), self.entries.len());
        for (index, entry) in self.entries.iter().enumerate() {
            assert!(
                self.entries[index + 1..].iter().all(|other| other.address != entry.address),
                "{} leased twice",
                entry.address
            );
            let expected =
                entry.conn.map(|conn| (ConnId(conn), entry.source.unwrap_or(entry.address)));
            assert_eq!(
                self.overlay.inbound(entry.address),
                expected,
                "way back from {}",
                entry.address
            );
        }
        let used = |conn: u64| {
            self.entries.iter().filter(|e| e.conn == Some(conn) && e.source.is_some()).count()
        };
        assert!(self.conns.iter().all(|(conn, _)| used(*conn) <= self.config.per_agent));
    }

    fn newest(&self, owner: Owner) -> Option<u64> {
        self.conns.iter().rev().find(|(_, other)| *other == owner).map(|(conn, _)| *conn)
    }

    fn attach(&mut self, conn: u64, owner: Owner) {
        match self.conns.iter().find(|(other, _)| *other == conn) {
            Some((_, known)) if *known == owner => return,
            Some(_) => self.detach(conn),
            None => {}
        }
        let Owner::Identity(key) = owner else {
            self.conns.push((conn, owner));
            return;
        };
        let older = self.newest(owner);
        for entry in
            self.entries.iter_mut().filter(|e| e.owner == owner && e.conn == older && !e.rests())
        {
            entry.conn = Some(conn);
        }
        self.away.retain(|(other, _)| *other != owner);
        self.conns.push((conn, owner));
        for v6 in [false, true] {
            self.take_own(conn, key, v6);
        }
    }

    fn take_own(&mut self, conn: u64, key: [u8; 32], v6: bool) {
        let owner = Owner::Identity(key);
        if self.entries.iter().any(|e| e.own && e.owner == owner && e.address.is_ipv6() == v6) {
            return;
        }
        let taken = |address: &IpAddr| self.entries.iter().any(|e| e.own && e.address == *address);
        let address = self.pools[usize::from(v6)].probes(key).find(|address| !taken(address));
        if let Some(address) = address {
            self.entries.retain(|entry| entry.address != address);
            self.push(Entry {
                address,
                owner,
                conn: Some(conn),
                source: None,
                own: true,
                resting: None,
                used: self.now,
                order: 0,
            });
        }
    }

    fn push(&mut self, mut entry: Entry) {
        self.order += 1;
        entry.order = self.order;
        self.entries.push(entry);
    }

    /// Takes a source away: an own address stays leased, another one rests.
    fn clear(&mut self, unwanted: impl Fn(&Entry) -> bool) {
        for entry in self.entries.iter_mut().filter(|e| e.source.is_some() && unwanted(e)) {
            match entry.own {
                true => entry.source = None,
                false => entry.rest(self.now),
            }
        }
    }

    fn detach(&mut self, conn: u64) {
        let Some(index) = self.conns.iter().position(|(other, _)| *other == conn) else {
            return;
        };
        let owner = self.conns[index].1;
        let newest = self.newest(owner) == Some(conn);
        self.conns.remove(index);
        let heir = self.newest(owner);
        if owner == Owner::Anonymous || (heir.is_some() && !newest) {
            self.clear(|entry| entry.conn == Some(conn));
        } else if let Some(heir) = heir {
            let own: Vec<IpAddr> = self
                .entries
                .iter()
                .filter(|e| e.own && e.owner == owner)
                .map(|e| e.address)
                .collect();
            self.clear(|e| {
                e.conn == Some(heir) && e.source.is_some_and(|source| own.contains(&source))
            });
            let mut moving: Vec<Entry> =
                self.entries.extract_if(.., |e| e.conn == Some(conn)).collect();
            moving.sort_by_key(|entry| entry.order);
            for mut entry in moving {
                let used: Vec<_> = self
                    .entries
                    .iter()
                    .filter(|e| e.conn == Some(heir))
                    .filter_map(|e| e.source)
                    .collect();
                if entry.source.is_some_and(|source| {
                    used.len() >= self.config.per_agent || used.contains(&source)
                }) {
                    entry.source = None;
                    if !entry.own {
                        entry.rest(self.now);
                        self.push(entry);
                        continue;
                    }
                }
                entry.conn = Some(heir);
                self.push(entry);
            }
        } else {
            self.entries.iter_mut().filter(|e| e.conn == Some(conn)).for_each(|e| e.conn = None);
            self.away.push((owner, self.now));
        }
    }

    fn outbound(&mut self, conn: u64, source: IpAddr, got: Result<IpAddr, LeaseError>) {
        let Some((_, owner)) = self.conns.iter().find(|(other, _)| *other == conn).copied() else {
            return assert_eq!(got, Err(LeaseError::Unknown));
        };
        let now = self.now;
        if let Some(known) =
            self.entries.iter_mut().find(|e| e.conn == Some(conn) && e.source == Some(source))
        {
            known.used = now;
            return assert_eq!(got, Ok(known.address));
        }
        if let Err(bad) = source_ok(source) {
            return assert_eq!(got, Err(LeaseError::BadSource(bad)));
        }
        let v6 = source.is_ipv6();
        let mut own = None;
        if let Owner::Identity(key) = owner
            && self.newest(owner) == Some(conn)
        {
            self.take_own(conn, key, v6);
            own = self
                .entries
                .iter()
                .find(|e| e.own && e.owner == owner && e.address.is_ipv6() == v6);
        }
        let own = own.map(|entry| entry.address);
        if own == Some(source) {
            self.clear(|e| e.address == source);
        }
        let in_use = self.entries.iter().filter(|e| e.conn == Some(conn) && e.source.is_some());
        if in_use.clone().count() >= self.config.per_agent {
            let oldest = in_use.min_by_key(|e| (e.used, e.order)).unwrap();
            if now - oldest.used < self.config.grace {
                return assert_eq!(got, Err(LeaseError::TooMany));
            }
            let address = oldest.address;
            self.clear(|e| e.address == address);
        }
        self.order += 1;
        let order = self.order;
        if let Some(entry) =
            self.entries.iter_mut().find(|e| Some(e.address) == own && e.source.is_none())
        {
            (entry.source, entry.used, entry.order) = (Some(source), now, order);
            return assert_eq!(got, Ok(entry.address), "the own address, for the first source");
        }
        let pool = &self.pools[usize::from(v6)];
        let known = |address: IpAddr| self.entries.iter().find(|e| e.address == address);
        let free = |address: &IpAddr| {
            known(*address).is_none_or(|e| e.resting.is_some_and(|(_, had)| had == conn))
        };
        if owner == Owner::Anonymous && pool.may_lease(source) && free(&source) {
            assert_eq!(got, Ok(source), "anonymous and nobody holds it");
        }
        match got {
            Ok(address) => {
                assert_eq!(address.is_ipv6(), v6);
                if !free(&address) {
                    // Then every address of the pool is taken, and this one has rested longest.
                    assert!(!pool.probes([0; 32]).any(|other| free(&other)), "{address} is taken");
                    let since = |address| Some(known(address)?.resting?.0);
                    assert_eq!(since(address), pool.probes([0; 32]).filter_map(since).min());
                    assert!(since(address).is_some(), "{address} is not resting");
                }
                self.entries.retain(|entry| entry.address != address);
                assert!(
                    address == source || pool.probes([0; 32]).any(|known| known == address),
                    "not of the pool"
                );
                assert!(pool.may_lease(address), "{address} is reserved");
                self.push(Entry {
                    address,
                    owner,
                    conn: Some(conn),
                    source: Some(source),
                    own: false,
                    resting: None,
                    used: now,
                    order,
                });
            }
            Err(error) => {
                assert_eq!(error, LeaseError::PoolExhausted);
                let held = |a| self.entries.iter().any(|e| e.address == a && !e.rests());
                assert!(pool.probes([0; 32]).all(held), "an address could be had");
            }
        }
    }
}
