//! The NAT's rules as flat lists, searched from end to end, with figures and pools of its own.
//!
//! Where the NAT may choose any free address that is shared, the model takes over its choice
//! after checking that it was one.

#[path = "nat_ranges.rs"]
mod ranges;
#[path = "nat_records.rs"]
mod records;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ranges::Range;
pub use records::Op;
use records::{Entry, HandOvers, Quarantined};
use ztna_engine::{
    event::ConnId,
    nat::{LeaseError, Nat, NatConfig, Owner},
    packet::source_ok,
};

/// As ARCHITECTURE.md has it.
pub const QUARANTINE: Duration = Duration::from_secs(10_800);

pub struct Model {
    nat: Nat,
    ranges: [Range; 2],
    config: NatConfig,
    now: Instant,
    entries: Vec<Entry>,
    quarantined: Vec<Quarantined>,
    /// Own addresses, for good.
    book: Vec<([u8; 32], IpAddr)>,
    conns: Vec<(u64, Owner)>,
    away: Vec<(Owner, Instant)>,
    hand_overs: HandOvers,
    order: u64,
}

impl Model {
    pub fn new(config: NatConfig) -> Self {
        Self {
            nat: Nat::new(config.clone()).unwrap(),
            ranges: [
                Range::new(config.pool_v4.0.into(), config.pool_v4.1, &config.reserved),
                Range::new(config.pool_v6.0.into(), config.pool_v6.1, &config.reserved),
            ],
            now: Instant::now(),
            entries: Vec::new(),
            quarantined: Vec::new(),
            book: config.known.to_vec(),
            conns: Vec::new(),
            away: Vec::new(),
            hand_overs: HandOvers::default(),
            order: 0,
            config,
        }
    }

    /// Applies one operation to both and compares everything that can be seen.
    pub fn step(&mut self, op: &Op) {
        match op {
            Op::Pass(time) => self.now += *time,
            Op::Attach(conn, owner) => {
                // Quotas matter only where one gives up very many addresses.
                self.nat.attach(ConnId(*conn), *owner, *conn % 2, self.now);
                self.attach(*conn, *owner);
            }
            Op::Detach(conn) => {
                self.nat.detach(ConnId(*conn), self.now);
                self.detach(*conn);
            }
            Op::Expire => {
                self.nat.expire(self.now);
                self.expire();
            }
            Op::Outbound(conn, source) => {
                let got = self.nat.outbound(ConnId(*conn), *source, self.now);
                self.outbound(*conn, *source, got);
            }
        }
        self.compare();
    }

    /// Detaches everything and lets all grace and rest pass: only the book may be left.
    pub fn finish(mut self) {
        for (conn, _) in self.conns.clone() {
            self.step(&Op::Detach(conn));
        }
        for time in [self.config.grace, QUARANTINE] {
            self.step(&Op::Pass(time));
            self.step(&Op::Expire);
        }
        assert_eq!(self.nat.leases(), 0);
    }

    fn compare(&self) {
        assert_eq!(self.nat.leases(), self.entries.len() + self.quarantined.len());
        for (index, entry) in self.entries.iter().enumerate() {
            let address = entry.address;
            let others = self.entries[index + 1..].iter().map(|other| other.address);
            let quarantined = self.quarantined.iter().map(|quarantined| quarantined.address);
            assert!(others.chain(quarantined).all(|other| other != address), "{address} twice");
            let expected = entry.conn.map(|conn| (ConnId(conn), entry.source.unwrap_or(address)));
            assert_eq!(self.nat.inbound(address), expected, "way back from {address}");
            let owner =
                self.book.iter().find(|(_, reserved)| *reserved == address).map(|(key, _)| *key);
            assert_eq!(owner.map(Owner::Identity), entry.reserved.then_some(entry.owner));
        }
        for quarantined in &self.quarantined {
            let address = quarantined.address;
            assert_eq!(self.nat.inbound(address), None, "{address} rests");
        }
        for (key, address) in &self.book {
            assert_eq!(self.nat.reserved(key)[usize::from(address.is_ipv6())], Some(*address));
        }
        let used = |conn: u64| {
            self.entries.iter().filter(|e| e.conn == Some(conn) && e.source.is_some()).count()
        };
        assert!(self.conns.iter().all(|(conn, _)| used(*conn) <= self.config.per_agent));
    }

    fn newest(&self, owner: Owner) -> Option<u64> {
        self.conns.iter().rev().find(|(_, other)| *other == owner).map(|(conn, _)| *conn)
    }

    fn leased(&self, address: IpAddr) -> bool {
        self.entries.iter().any(|entry| entry.address == address)
    }

    fn quarantined(&self, address: IpAddr) -> Option<&Quarantined> {
        self.quarantined.iter().find(|quarantined| quarantined.address == address)
    }

    fn begin_quarantine(&mut self, address: IpAddr, had: Option<u64>) {
        self.quarantined.push(Quarantined { address, since: self.now, had });
    }

    fn expire(&mut self) {
        let now = self.now;
        self.quarantined.retain(|quarantined| now - quarantined.since < QUARANTINE);
        let grace = self.config.grace;
        let gone: Vec<Owner> = (self.away)
            .extract_if(.., |(_, since)| now - *since >= grace)
            .map(|(owner, _)| owner)
            .collect();
        self.hand_overs.forget(&gone);
        let ended: Vec<Entry> =
            self.entries.extract_if(.., |entry| gone.contains(&entry.owner)).collect();
        for entry in ended.iter().filter(|entry| !entry.reserved) {
            self.begin_quarantine(entry.address, None);
        }
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
        if older.is_some() {
            self.hand_overs.begin(owner, self.now);
        }
        for entry in self.entries.iter_mut().filter(|e| e.owner == owner && e.conn == older) {
            entry.conn = Some(conn);
        }
        self.away.retain(|(other, _)| *other != owner);
        self.conns.push((conn, owner));
        for v6 in [false, true] {
            self.take_reserved(conn, key, v6);
        }
    }

    /// The reserved address of an identity: that of the book, else the first in its order that nobody has.
    fn take_reserved(&mut self, conn: u64, key: [u8; 32], v6: bool) -> Option<IpAddr> {
        let known =
            |(owner, address): &&([u8; 32], IpAddr)| *owner == key && address.is_ipv6() == v6;
        let known = self.book.iter().find(known).map(|(_, address)| *address);
        let taken = |address: &IpAddr| {
            self.book.iter().any(|(_, reserved)| reserved == address)
                || self.leased(*address)
                || self.quarantined(*address).is_some()
        };
        let closed = self.config.known_in_part;
        let mut fresh = self.ranges[usize::from(v6)].reserved(key).filter(|_| !closed);
        let address = known.or_else(|| fresh.find(|address| !taken(address)))?;
        drop(fresh);
        if known.is_none() {
            self.book.push((key, address));
        }
        if !self.leased(address) {
            let owner = Owner::Identity(key);
            self.push(Entry {
                address,
                owner,
                conn: Some(conn),
                source: None,
                reserved: true,
                used: self.now,
                order: 0,
            });
        }
        Some(address)
    }

    fn push(&mut self, mut entry: Entry) {
        self.order += 1;
        entry.order = self.order;
        self.entries.push(entry);
    }

    /// Takes a source away: a reserved address stays leased, another one rests.
    fn clear(&mut self, had: Option<u64>, unwanted: impl Fn(&Entry) -> bool) {
        for entry in self.entries.iter_mut().filter(|e| e.reserved && unwanted(e)) {
            entry.source = None;
        }
        let mut ended: Vec<Entry> = self
            .entries
            .extract_if(.., |e| !e.reserved && e.source.is_some() && unwanted(e))
            .collect();
        ended.sort_by_key(|entry| entry.order);
        for entry in ended {
            self.begin_quarantine(entry.address, had);
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
            self.clear(None, |entry| entry.conn == Some(conn));
        } else if let Some(heir) = heir {
            let reserved: Vec<IpAddr> = self
                .entries
                .iter()
                .filter(|e| e.reserved && e.owner == owner)
                .map(|e| e.address)
                .collect();
            self.clear(Some(heir), |e| {
                e.conn == Some(heir) && e.source.is_some_and(|source| reserved.contains(&source))
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
                    if !entry.reserved {
                        self.begin_quarantine(entry.address, None);
                        continue;
                    }
                    entry.source = None;
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
        if let Some(newest) = self.newest(owner).filter(|newest| *newest != conn)
            && self.hand_overs.is_under_way(owner, now)
        {
            return self.outbound(newest, source, got);
        }
        let reserved = match owner {
            Owner::Identity(key) if self.newest(owner) == Some(conn) => {
                self.take_reserved(conn, key, source.is_ipv6())
            }
            _ => None,
        };
        if reserved == Some(source) {
            self.clear(Some(conn), |e| e.address == source);
        }
        let in_use = self.entries.iter().filter(|e| e.conn == Some(conn) && e.source.is_some());
        if in_use.clone().count() >= self.config.per_agent {
            let oldest = in_use.min_by_key(|e| (e.used, e.order)).unwrap();
            if now - oldest.used < self.config.grace {
                return assert_eq!(got, Err(LeaseError::TooMany));
            }
            let address = oldest.address;
            self.clear(Some(conn), |e| e.address == address);
        }
        self.order += 1;
        let order = self.order;
        if let Some(entry) =
            self.entries.iter_mut().find(|e| Some(e.address) == reserved && e.source.is_none())
        {
            (entry.source, entry.used, entry.order) = (Some(source), now, order);
            return assert_eq!(
                got,
                Ok(entry.address),
                "the reserved address, for the first source"
            );
        }
        let Some(address) = self.check_found(conn, owner, source, got) else {
            return;
        };
        self.quarantined.retain(|quarantined| quarantined.address != address);
        let source = Some(source);
        let conn = Some(conn);
        self.push(Entry { address, owner, conn, source, reserved: false, used: now, order });
    }

    /// Whether an additional or ephemeral lease is one that may be given.
    fn check_found(
        &self,
        conn: u64,
        owner: Owner,
        source: IpAddr,
        got: Result<IpAddr, LeaseError>,
    ) -> Option<IpAddr> {
        let range = &self.ranges[usize::from(source.is_ipv6())];
        let theirs = self.book.iter().any(|(_, reserved)| *reserved == source);
        let keeps = owner == Owner::Anonymous
            && !self.config.known_in_part
            && range.holds(source)
            && !theirs
            && !self.leased(source)
            && self.quarantined(source).is_none_or(|quarantined| quarantined.had == Some(conn));
        if keeps {
            assert_eq!(got, Ok(source), "anonymous and nobody has it");
            return Some(source);
        }
        let free = |address: IpAddr| !self.leased(address) && self.quarantined(address).is_none();
        match got {
            Ok(address) => {
                assert!(range.shared().any(|shared| shared == address), "{address} is not shared");
                assert!(!self.leased(address), "{address} is another's");
                if let Some(quarantined) = self.quarantined(address) {
                    // Then every address is taken, and this one has rested longest.
                    assert!(!range.shared().any(free), "{address} rests");
                    let since =
                        range.shared().filter_map(|other| Some(self.quarantined(other)?.since));
                    assert_eq!(Some(quarantined.since), since.min());
                }
                Some(address)
            }
            Err(error) => {
                assert_eq!(error, LeaseError::PoolExhausted);
                assert!(range.shared().all(|shared| self.leased(shared)), "one could be had");
                None
            }
        }
    }
}
