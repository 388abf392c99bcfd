//! Addresses that were given up and are kept from others for a while.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::boundary::event::ConnId;

/// The time for which an agent's inner address after its lease, or an idle learned flow, is kept
/// from all others. Any session with the former agent must be forgotten before.
pub const QUARANTINE: Duration = Duration::from_secs(3 * 3600);

/// A kernel that asks whether the other end of an idle TCP connection lives gives it up after
/// tcp_keepalive_time and tcp_keepalive_probes times tcp_keepalive_intvl, as Linux has them: 2 h
/// 11 min 15 s. RFC 5382 section 5 has NATs keep one for 2 h 4 min.
const KERNEL: Duration = Duration::from_secs(7_200 + 9 * 75);

const _: () = assert!(QUARANTINE.as_secs() > KERNEL.as_secs());
const _: () = assert!(QUARANTINE.as_secs() > ztna_netstack::LONGEST_IDLE.as_secs());

/// Addresses in quarantine, in the order in which they entered it.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    quarantined: HashMap<IpAddr, Quarantined>,
    /// With those that left it early, known by another number.
    order: VecDeque<(u64, IpAddr)>,
    /// The quarantined addresses that each quota has given up, oldest first.
    quotas: HashMap<u64, VecDeque<IpAddr>>,
    begun: u64,
}

#[derive(Debug)]
struct Quarantined {
    number: u64,
    since: Instant,
    quota: u64,
    /// The connection that had it, if it is still there.
    conn: Option<ConnId>,
}

impl Quarantine {
    pub(super) fn len(&self) -> usize {
        self.quarantined.len()
    }

    pub(super) fn begin(
        &mut self,
        address: IpAddr,
        quota: u64,
        conn: Option<ConnId>,
        now: Instant,
    ) {
        self.begun += 1;
        let quarantined = Quarantined { number: self.begun, since: now, quota, conn };
        self.quarantined.insert(address, quarantined);
        self.order.push_back((self.begun, address));
        self.quotas.entry(quota).or_default().push_back(address);
        if self.order.len() > 2 * self.quarantined.len() + 1024 {
            let quarantined = &self.quarantined;
            self.order.retain(|(number, address)| {
                quarantined.get(address).is_some_and(|quarantined| quarantined.number == *number)
            });
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.quarantined.contains_key(&address)
    }

    /// When the quarantine of an address began.
    pub(super) fn since(&self, address: IpAddr) -> Option<Instant> {
        self.quarantined.get(&address).map(|quarantined| quarantined.since)
    }

    /// Whether an address is kept from this connection, as from all but its former one.
    pub(super) fn keeps_from(&self, conn: ConnId, address: IpAddr) -> bool {
        self.quarantined.get(&address).is_some_and(|quarantined| quarantined.conn != Some(conn))
    }

    pub(super) fn end(&mut self, address: IpAddr) {
        let Some(Quarantined { quota, .. }) = self.quarantined.remove(&address) else {
            return;
        };
        if let Some(addresses) = self.quotas.get_mut(&quota) {
            if addresses.front() == Some(&address) {
                addresses.pop_front();
            } else {
                addresses.retain(|other| *other != address);
            }
            if addresses.is_empty() {
                self.quotas.remove(&quota);
            }
        }
    }

    /// The address of a quota that has rested longest, if it has `share` of them at least.
    pub(super) fn longest_of(&self, quota: u64, share: usize) -> Option<IpAddr> {
        let addresses = self.quotas.get(&quota).filter(|all| all.len() >= share)?;
        addresses.front().copied()
    }

    /// The address that has rested longest.
    pub(super) fn longest(&mut self) -> Option<IpAddr> {
        self.oldest().map(|(_, address)| address)
    }

    /// Ends the quarantine of addresses after [`QUARANTINE`].
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((since, address)) = self.oldest()
            && now.saturating_duration_since(since) >= QUARANTINE
        {
            self.end(address);
        }
    }

    fn oldest(&mut self) -> Option<(Instant, IpAddr)> {
        loop {
            let (number, address) = *self.order.front()?;
            match self.quarantined.get(&address) {
                Some(quarantined) if quarantined.number == number => {
                    return Some((quarantined.since, address));
                }
                _ => drop(self.order.pop_front()),
            }
        }
    }
}
