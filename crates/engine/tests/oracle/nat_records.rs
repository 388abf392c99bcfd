//! What the NAT's model remembers, and the operations on it.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ztna_engine::nat::Owner;

const HAND_OVER: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub enum Op {
    Attach(u64, Owner),
    Detach(u64),
    Outbound(u64, IpAddr),
    Pass(Duration),
    Expire,
}

/// A leased address.
#[derive(Debug)]
pub struct Entry {
    pub address: IpAddr,
    pub owner: Owner,
    pub conn: Option<u64>,
    /// The source address in use; none for a reserved address that nothing maps to.
    pub source: Option<IpAddr>,
    pub reserved: bool,
    pub used: Instant,
    pub order: u64,
}

/// An address that was given up.
#[derive(Debug)]
pub struct Quarantined {
    pub address: IpAddr,
    pub since: Instant,
    /// The connection that had it, while it is there.
    pub had: Option<u64>,
}

/// When the newest connection of each identity took its leases from another.
#[derive(Default)]
pub struct HandOvers(Vec<(Owner, Instant)>);

impl HandOvers {
    pub fn begin(&mut self, owner: Owner, now: Instant) {
        self.forget(&[owner]);
        self.0.push((owner, now));
    }

    pub fn forget(&mut self, owners: &[Owner]) {
        self.0.retain(|(owner, _)| !owners.contains(owner));
    }

    pub fn is_under_way(&self, owner: Owner, now: Instant) -> bool {
        self.0.iter().any(|(other, since)| *other == owner && now - *since < HAND_OVER)
    }
}
