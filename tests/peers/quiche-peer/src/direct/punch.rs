//! The probes of an agent: which address is asked when, and which answer counts. No IO, no clock.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::wire::{Candidate, Probe};

/// Between the first probes to two addresses.
const STAGGER: Duration = Duration::from_millis(20);
/// Between the first two probes to one address; doubled each time.
const FIRST_GAP: Duration = Duration::from_millis(100);
/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// One round of probes.
pub struct Punch {
    targets: Vec<Target>,
    end: Instant,
}

struct Target {
    address: SocketAddr,
    priority: u64,
    transaction: [u8; 12],
    next: Instant,
    gap: Duration,
}

impl Punch {
    /// Probes all candidates from `start` on, the highest priority first; `random` gives their transactions.
    pub fn new(
        mut candidates: Vec<Candidate>,
        start: Instant,
        mut random: impl FnMut() -> [u8; 12],
    ) -> Self {
        candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.priority));
        let times = std::iter::successors(Some(start), |at| Some(*at + STAGGER));
        let targets = candidates.iter().zip(times).map(|(candidate, next)| Target {
            address: candidate.address,
            priority: candidate.priority.into(),
            transaction: random(),
            next,
            gap: FIRST_GAP,
        });
        Self { targets: targets.collect(), end: start + PATIENCE }
    }

    /// The probes to send now, and the place of each address in the order in which they are tried.
    pub fn due(&mut self, now: Instant) -> Vec<(usize, SocketAddr, Probe)> {
        let due = self.targets.iter_mut().enumerate().filter(|(_, target)| target.next <= now);
        due.map(|(at, target)| {
            target.next = now + target.gap;
            target.gap *= 2;
            let transaction = target.transaction;
            let probe =
                Probe::Request { transaction, priority: target.priority, use_candidate: false };
            (at, target.address, probe)
        })
        .collect()
    }

    /// Whether a response is to one of the probes.
    pub fn expects(&self, transaction: [u8; 12]) -> bool {
        self.targets.iter().any(|target| target.transaction == transaction)
    }

    /// Whether it is time to give up.
    pub fn over(&self, now: Instant) -> bool {
        now >= self.end
    }

    /// When there is something to do.
    pub fn next(&self) -> Instant {
        self.targets.iter().map(|target| target.next).fold(self.end, Instant::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Kind;

    #[test]
    fn the_best_first_and_rarer_each_time() {
        let candidate = |kind, port| Candidate::new(kind, ([192, 0, 2, 1], port).into(), None);
        let candidates = vec![candidate(Kind::ServerReflexive, 1), candidate(Kind::Host, 2)];
        let start = Instant::now();
        let mut number = 0;
        let mut punch = Punch::new(candidates, start, || {
            number += 1;
            [number; 12]
        });
        assert!(punch.expects([2; 12]) && !punch.expects([3; 12]));
        let mut sent = Vec::new();
        while !punch.over(punch.next()) {
            let now = punch.next();
            for (_, address, _) in punch.due(now) {
                sent.push((address.port(), (now - start).as_millis()));
            }
        }
        let times = |port| -> Vec<u128> {
            sent.iter().filter(|(to, _)| *to == port).map(|(_, at)| *at).collect()
        };
        assert_eq!(times(2), [0, 100, 300, 700, 1_500, 3_100]);
        assert_eq!(times(1), [20, 120, 320, 720, 1_520, 3_120]);
    }
}
