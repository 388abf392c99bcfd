//! A token bucket: so many at once, so many a second after that.

use std::time::Instant;

/// Tokens are kept in microseconds of refill time, so that taking one needs no division.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Microseconds that one token takes to come back.
    cost: u64,
    capacity: u64,
    level: u64,
    updated: Option<Instant>,
}

impl Bucket {
    /// A full bucket of `burst` tokens that gains `per_second` a second (at most a million). One of
    /// no tokens never gives any.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let cost = 1_000_000 / u64::from(per_second.clamp(1, 1_000_000));
        let capacity = cost * u64::from(burst);
        Self { cost, capacity, level: capacity, updated: None }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let since = self.updated.map_or(0, |then| now.saturating_duration_since(then).as_micros());
        self.level = self.capacity.min(self.level + u64::try_from(since).unwrap_or(u64::MAX / 2));
        self.updated = Some(now);
        let enough = self.level >= self.cost;
        if enough {
            self.level -= self.cost;
        }
        enough
    }

    /// Whether it has been idle long enough to be full again: forgetting it changes nothing.
    pub fn is_full(&self, now: Instant) -> bool {
        self.updated.is_none_or(|then| {
            let since = now.saturating_duration_since(then).as_micros();
            u128::from(self.capacity - self.level) <= since
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_of_no_tokens_never_gives_any() {
        let (start, mut bucket) = (Instant::now(), Bucket::new(0, 0));
        assert!(!bucket.take(start) && !bucket.take(start + Duration::from_secs(3600)));
    }

    #[test]
    fn gives_the_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 5);
        let taken = (0..50).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 5);
        let later = |ms| start + Duration::from_millis(ms);
        let taken = (0..1000).filter(|ms| bucket.take(later(*ms))).count();
        assert!((9..=10).contains(&taken), "{taken} in a second");
        assert!(!bucket.is_full(later(1000)));
        assert!(bucket.is_full(later(1600)));
    }
}
