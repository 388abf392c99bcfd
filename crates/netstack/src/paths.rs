//! Paths with a smaller MTU than the connection's, as reported by "packet too big" (RFC 1191, RFC
//! 8201).

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// The smallest MTU that is heeded; connections always carry more.
pub(crate) const MIN_MTU: usize = 576;
/// A path may have become wider after so long (RFC 1191 section 6.3).
const LIFE: Duration = Duration::from_secs(600);
/// Paths known at once; reports about further ones are ignored.
const MAX_PATHS: usize = 1024;

/// The narrow paths of one stack, by their far end.
#[derive(Debug, Default)]
pub(crate) struct Paths(HashMap<IpAddr, (usize, Instant)>);

impl Paths {
    /// The largest packet for `to`, in bytes; `mtu` unless the path is known to be narrower.
    pub(crate) fn mtu(&self, to: IpAddr, mtu: usize) -> usize {
        match self.0.is_empty() {
            true => mtu,
            false => self.0.get(&to).map_or(mtu, |(known, _)| mtu.min(*known)),
        }
    }

    /// Notes that no packet larger than `mtu` reaches `to`; never below what IPv4 guarantees.
    pub(crate) fn lower(&mut self, to: IpAddr, mtu: usize, now: Instant) {
        let mtu = mtu.max(MIN_MTU);
        let room = self.0.len() < MAX_PATHS;
        match self.0.get_mut(&to) {
            Some((known, _)) if *known <= mtu => {}
            Some(known) => *known = (mtu, now),
            None if room => drop(self.0.insert(to, (mtu, now))),
            None => {}
        }
    }

    /// Forgets old reports.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, (_, learned)| now.saturating_duration_since(*learned) < LIFE);
    }
}
