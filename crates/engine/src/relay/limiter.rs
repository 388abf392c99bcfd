//! Limiters: rates and usage, each shared by all connections of one identity.
//!
//! A limiter bounds both ways by its rates, from its connections and to them: a packet beyond a
//! rate is dropped, never delayed. It outlives its last connection until its buckets are full
//! again, so that coming back gains nothing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use crate::{
    boundary::limits::Rates,
    relay::{
        token_buckets::TokenBuckets,
        usage::{Usage, UsageBoard},
    },
    slots::{SlotId, Slots},
};

#[derive(Debug)]
struct RateLimiter {
    id: u64,
    rates: Rates,
    from: Option<TokenBuckets>,
    to: Option<TokenBuckets>,
    usage: Arc<Usage>,
    connections: usize,
}

impl RateLimiter {
    /// Whether it is as good as a new one.
    fn is_spent(&mut self, now: Instant) -> bool {
        self.connections == 0
            && self.from.as_mut().is_none_or(|buckets| buckets.is_full(now))
            && self.to.as_mut().is_none_or(|buckets| buckets.is_full(now))
    }
}

/// The name of a live limiter on the engine thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LimiterIndex(SlotId);

/// All limiters of an engine thread.
#[derive(Debug)]
pub struct RateLimiters {
    slots: Slots<RateLimiter>,
    by_id: HashMap<u64, LimiterIndex>,
    /// Limiters without a connection whose buckets are not full yet.
    idle: BTreeSet<LimiterIndex>,
    board: Arc<UsageBoard>,
}

impl RateLimiters {
    /// No limiters; usage will be read from `board`.
    pub fn new(board: Arc<UsageBoard>) -> Self {
        Self { slots: Slots::default(), by_id: HashMap::new(), idle: BTreeSet::new(), board }
    }

    /// Adds a connection to the limiter `id`, made if need be, and sets its rates. Only a new limiter
    /// begins with full buckets.
    pub fn attach(&mut self, id: u64, rates: Rates, now: Instant) -> LimiterIndex {
        let index = match self.by_id.get(&id) {
            Some(index) => *index,
            None => self.insert(id),
        };
        if let Some(limiter) = self.slots.get_mut(index.0) {
            limiter.connections += 1;
            if limiter.rates != rates {
                limiter.rates = rates;
                limiter.from = TokenBuckets::changed(limiter.from, rates, now);
                limiter.to = TokenBuckets::changed(limiter.to, rates, now);
            }
        }
        self.idle.remove(&index);
        index
    }

    fn insert(&mut self, id: u64) -> LimiterIndex {
        let index = LimiterIndex(self.slots.insert(RateLimiter {
            id,
            rates: Rates::default(),
            from: None,
            to: None,
            usage: self.board.add(id),
            connections: 0,
        }));
        self.by_id.insert(id, index);
        index
    }

    /// Takes a connection from its limiter, which ends with the last one or, if its buckets are not
    /// full, at a later [`sweep`](Self::sweep).
    pub fn detach(&mut self, index: LimiterIndex, now: Instant) {
        let Some(limiter) = self.slots.get_mut(index.0) else {
            return;
        };
        limiter.connections -= 1;
        if limiter.is_spent(now) {
            self.end(index);
        } else if limiter.connections == 0 {
            self.idle.insert(index);
        }
    }

    /// Ends the limiters without a connection whose buckets are full again.
    pub fn sweep(&mut self, now: Instant) {
        for index in std::mem::take(&mut self.idle) {
            if self.slots.get_mut(index.0).is_some_and(|limiter| !limiter.is_spent(now)) {
                self.idle.insert(index);
            } else {
                self.end(index);
            }
        }
    }

    fn end(&mut self, index: LimiterIndex) {
        if let Some(limiter) = self.slots.remove(index.0) {
            limiter.usage.end();
            self.by_id.remove(&limiter.id);
        }
    }

    /// Whether a packet may go from one connection to another; charges both if so.
    #[inline]
    pub fn admit(
        &mut self,
        from: Option<LimiterIndex>,
        to: Option<LimiterIndex>,
        size: usize,
        now: Instant,
    ) -> bool {
        if from.is_none() && to.is_none() {
            return true;
        }
        let size = size as f64;
        let admitted = self.buckets(from, |m| &mut m.from).is_none_or(|p| p.admits(size, now))
            && self.buckets(to, |m| &mut m.to).is_none_or(|p| p.admits(size, now));
        if admitted {
            if let Some(buckets) = self.buckets(from, |m| &mut m.from) {
                buckets.take(size);
            }
            if let Some(buckets) = self.buckets(to, |m| &mut m.to) {
                buckets.take(size);
            }
        }
        admitted
    }

    fn buckets(
        &mut self,
        index: Option<LimiterIndex>,
        way: impl Fn(&mut RateLimiter) -> &mut Option<TokenBuckets>,
    ) -> Option<&mut TokenBuckets> {
        way(self.slots.get_mut(index?.0)?).as_mut()
    }

    /// Counts delivered packets.
    pub fn moved(&self, from: Option<LimiterIndex>, to: Option<LimiterIndex>, bytes: u64) {
        if let Some(limiter) = from.and_then(|i| self.slots.get(i.0)) {
            limiter.usage.from.add(bytes);
        }
        if let Some(limiter) = to.and_then(|i| self.slots.get(i.0)) {
            limiter.usage.to.add(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SIZE: usize = 1000;

    fn rates(bytes: u64, packets: u64) -> Rates {
        Rates { bytes_per_second: bytes, packets_per_second: packets }
    }

    fn limiters() -> (RateLimiters, Arc<UsageBoard>) {
        let board = Arc::new(UsageBoard::default());
        (RateLimiters::new(board.clone()), board)
    }

    /// Packets admitted when one is offered each `gap` for `seconds`.
    fn offered(limiters: &mut RateLimiters, who: LimiterIndex, gap: Duration, seconds: u32) -> u32 {
        let start = Instant::now();
        let count = (Duration::from_secs(seconds.into()).as_nanos() / gap.as_nanos()) as u32;
        let mut passed = 0;
        for n in 0..count {
            passed += u32::from(limiters.admit(Some(who), None, SIZE, start + gap * n));
        }
        passed
    }

    #[test]
    fn ten_times_the_rate_gets_the_rate() {
        for rates in [rates(1_000_000, 0), rates(0, 1000), rates(1_000_000, 1000)] {
            let (mut limiters, _) = limiters();
            let who = limiters.attach(1, rates, Instant::now());
            let passed = offered(&mut limiters, who, Duration::from_micros(100), 20);
            assert!((20_000..=20_000 + 251).contains(&passed), "{rates:?}: {passed}");
        }
    }

    #[test]
    fn below_the_rate_everything_passes() {
        let (mut limiters, _) = limiters();
        let who = limiters.attach(1, rates(1_000_000, 1000), Instant::now());
        assert_eq!(offered(&mut limiters, who, Duration::from_micros(1001), 10), 9990);
    }

    #[test]
    fn a_rate_below_one_packet_a_second_still_passes_packets() {
        let (mut limiters, _) = limiters();
        let who = limiters.attach(1, rates(100, 0), Instant::now());
        let passed = offered(&mut limiters, who, Duration::from_millis(500), 100);
        assert!((9..=11).contains(&passed), "{passed} packets of 1000 bytes in 100 s");
    }

    #[test]
    fn connections_of_one_limiter_share_and_repeating_grants_nothing() {
        let (mut limiters, _) = limiters();
        let now = Instant::now();
        let (a, b) = (limiters.attach(7, rates(0, 8), now), limiters.attach(7, rates(0, 8), now));
        assert_eq!(a, b);
        let drain =
            |m: &mut RateLimiters| (0..20).filter(|_| m.admit(Some(a), None, SIZE, now)).count();
        assert_eq!(drain(&mut limiters), 8);
        limiters.attach(7, rates(0, 8), now);
        assert_eq!(drain(&mut limiters), 0);
        limiters.attach(7, rates(0, 16), now);
        assert_eq!(drain(&mut limiters), 0, "nor does another rate");
        limiters.attach(7, rates(0, 0), now);
        assert_eq!(drain(&mut limiters), 20);
    }

    #[test]
    fn other_rates_keep_how_full_the_buckets_are() {
        let (mut limiters, _) = limiters();
        let now = Instant::now();
        let who = limiters.attach(1, rates(0, 64), now);
        let drain =
            |m: &mut RateLimiters| (0..99).filter(|_| m.admit(Some(who), None, SIZE, now)).count();
        assert!((0..8).all(|_| limiters.admit(Some(who), None, SIZE, now)));
        limiters.attach(1, rates(0, 128), now);
        assert_eq!(drain(&mut limiters), 16, "half of 32");
        // The debt of a packet larger than the bucket does not pass to the new rate.
        limiters.attach(1, rates(100, 0), now);
        assert!(limiters.admit(Some(who), None, 65_535, now));
        limiters.attach(1, rates(100_000, 0), now);
        assert!(limiters.admit(Some(who), None, SIZE, now + Duration::from_millis(11)));
    }

    #[test]
    fn coming_back_gains_nothing_and_a_full_limiter_is_forgotten() {
        let (mut limiters, board) = limiters();
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut passed = 0;
        for turn in 0..20 {
            let who = limiters.attach(1, rates(0, 8), at(turn));
            passed += (0..20).filter(|_| limiters.admit(Some(who), None, SIZE, at(turn))).count();
            limiters.detach(who, at(turn));
            limiters.sweep(at(turn));
        }
        assert_eq!(passed, 8);
        let other = limiters.attach(2, rates(0, 0), at(20));
        limiters.sweep(at(900));
        assert_eq!(limiters.slots.len(), 2);
        limiters.sweep(at(1_100));
        assert_eq!(limiters.slots.len(), 1);
        assert!(limiters.idle.is_empty());
        limiters.detach(other, at(1_200));
        assert_eq!(limiters.slots.len(), 0, "one that is full ends at once");
        assert_eq!(board.take(), []);
        assert!(limiters.by_id.is_empty());
    }

    #[test]
    fn each_way_has_its_own_bucket_and_a_refused_packet_charges_nobody() {
        let (mut limiters, _) = limiters();
        let now = Instant::now();
        let small = limiters.attach(1, rates(0, 8), now);
        let large = limiters.attach(2, rates(0, 100), now);
        let passed =
            (0..50).filter(|_| limiters.admit(Some(large), Some(small), SIZE, now)).count();
        assert_eq!(passed, 8);
        let passed = (0..50).filter(|_| limiters.admit(Some(large), None, SIZE, now)).count();
        assert_eq!(passed, 25 - 8);
        assert!(limiters.admit(Some(small), None, SIZE, now), "what it sends is another bucket");
    }

    #[test]
    fn extreme_rates_and_a_clock_that_stands_still_are_harmless() {
        let (mut limiters, _) = limiters();
        let now = Instant::now();
        let who = limiters.attach(1, rates(u64::MAX, u64::MAX), now);
        assert!((0..1000).all(|_| limiters.admit(Some(who), Some(who), 65_535, now)));
        assert!(limiters.admit(Some(who), None, 0, now - Duration::from_secs(1)));
    }

    #[test]
    fn usage_is_reported_once_and_outlive_the_limiter() {
        let (mut limiters, board) = limiters();
        let now = Instant::now();
        let (a, b) = (limiters.attach(1, rates(0, 0), now), limiters.attach(2, rates(0, 0), now));
        limiters.moved(Some(a), Some(b), 10);
        assert_eq!(board.take(), [(1, 10, 0), (2, 0, 10)]);
        assert_eq!(board.take(), []);
        limiters.moved(Some(a), None, 5);
        limiters.detach(a, now);
        assert_eq!(board.take(), [(1, 5, 0)]);
        let c = limiters.attach(3, rates(0, 0), now);
        limiters.moved(Some(c), Some(a), 1);
        assert_eq!(board.take(), [(3, 1, 0)]);
    }
}
