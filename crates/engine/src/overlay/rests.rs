//! Addresses that were given up and are kept from others for a while.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::event::ConnId;

/// How long what belonged to one agent is kept from all others: an inner address that was given up,
/// or a learned flow that is idle. What keeps a session for an agent must have forgotten it before.
pub const REST: Duration = Duration::from_secs(3 * 3600);

/// A kernel that asks whether the other end of an idle TCP connection lives gives it up after
/// tcp_keepalive_time and tcp_keepalive_probes times tcp_keepalive_intvl, as Linux has them: 2 h
/// 11 min 15 s. RFC 5382 section 5 has NATs keep one for 2 h 4 min.
const KERNEL: Duration = Duration::from_secs(7_200 + 9 * 75);

const _: () = assert!(REST.as_secs() > KERNEL.as_secs());
const _: () = assert!(REST.as_secs() > ztna_netstack::LONGEST_IDLE.as_secs());

/// Addresses that rest, in the order in which they began to.
#[derive(Debug, Default)]
pub(super) struct Rests {
    resting: HashMap<IpAddr, Rest>,
    /// With those that ended their rest early, known by another number.
    order: VecDeque<(u64, IpAddr)>,
    /// The resting addresses that each account has given up, oldest first.
    accounts: HashMap<u64, VecDeque<IpAddr>>,
    begun: u64,
}

#[derive(Debug)]
struct Rest {
    number: u64,
    since: Instant,
    account: u64,
    /// The connection that had it, if it is still there.
    conn: Option<ConnId>,
}

impl Rests {
    pub(super) fn len(&self) -> usize {
        self.resting.len()
    }

    pub(super) fn begin(
        &mut self,
        address: IpAddr,
        account: u64,
        conn: Option<ConnId>,
        now: Instant,
    ) {
        self.begun += 1;
        let rest = Rest { number: self.begun, since: now, account, conn };
        self.resting.insert(address, rest);
        self.order.push_back((self.begun, address));
        self.accounts.entry(account).or_default().push_back(address);
        if self.order.len() > 2 * self.resting.len() + 1024 {
            let resting = &self.resting;
            self.order.retain(|(number, address)| {
                resting.get(address).is_some_and(|rest| rest.number == *number)
            });
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.resting.contains_key(&address)
    }

    /// Whether an address is kept from this connection: every one but that which had it.
    pub(super) fn keeps_from(&self, conn: ConnId, address: IpAddr) -> bool {
        self.resting.get(&address).is_some_and(|rest| rest.conn != Some(conn))
    }

    pub(super) fn end(&mut self, address: IpAddr) {
        let Some(Rest { account, .. }) = self.resting.remove(&address) else {
            return;
        };
        if let Some(addresses) = self.accounts.get_mut(&account) {
            if addresses.front() == Some(&address) {
                addresses.pop_front();
            } else {
                addresses.retain(|other| *other != address);
            }
            if addresses.is_empty() {
                self.accounts.remove(&account);
            }
        }
    }

    /// The address of an account that has rested longest, if it has `share` of them at least.
    pub(super) fn longest_of(&self, account: u64, share: usize) -> Option<IpAddr> {
        let addresses = self.accounts.get(&account).filter(|all| all.len() >= share)?;
        addresses.front().copied()
    }

    /// The address that has rested longest.
    pub(super) fn longest(&mut self) -> Option<IpAddr> {
        self.oldest().map(|(_, address)| address)
    }

    /// Ends the rest of those that have rested for [`REST`].
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((since, address)) = self.oldest()
            && now.saturating_duration_since(since) >= REST
        {
            self.end(address);
        }
    }

    fn oldest(&mut self) -> Option<(Instant, IpAddr)> {
        loop {
            let (number, address) = *self.order.front()?;
            match self.resting.get(&address) {
                Some(rest) if rest.number == number => return Some((rest.since, address)),
                _ => drop(self.order.pop_front()),
            }
        }
    }
}
