//! A token bucket: a burst at once, and a rate after that.

use std::time::Instant;

/// The tokens of a bucket whose caller keeps the time: several buckets may share one clock.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    per_second: f64,
    capacity: f64,
    level: f64,
}

impl Tokens {
    /// Without a limit.
    pub const UNLIMITED: Self =
        Self { per_second: 0.0, capacity: f64::INFINITY, level: f64::INFINITY };

    /// A full bucket of `burst` tokens that gains `per_second` a second; both above 0.
    pub fn new(per_second: f64, burst: f64) -> Self {
        Self { per_second, capacity: burst, level: burst }
    }

    /// Adds the tokens of `seconds`.
    #[inline]
    pub fn refill(&mut self, seconds: f64) {
        self.level = self.capacity.min(self.level + seconds * self.per_second);
    }

    /// Whether it holds so many tokens.
    #[inline]
    pub fn has(&self, tokens: f64) -> bool {
        self.level >= tokens
    }

    /// Whether it is full.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.level >= self.capacity
    }

    /// Takes tokens; more than it holds leave a debt.
    #[inline]
    pub fn take(&mut self, tokens: f64) {
        self.level -= tokens;
    }

    /// Makes it as full as another one, which may have another size. Debts are not taken over, and
    /// a bucket without a limit gives and takes nothing.
    pub fn filled_as(&mut self, other: &Self) {
        if self.per_second > 0.0 && other.per_second > 0.0 {
            self.level = self.capacity * (other.level / other.capacity).max(0.0);
        }
    }
}

/// A bucket that gives one token at a time.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: Tokens,
    updated: Option<Instant>,
}

impl Bucket {
    /// A full bucket of `burst` tokens that gains `per_second` a second, at least one. One of no
    /// tokens never gives any.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self { tokens: Tokens::new(per_second.max(1).into(), burst.into()), updated: None }
    }

    /// Takes a token, if it holds one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.tokens.refill(self.idle(now));
        self.updated = Some(now);
        let enough = self.tokens.has(1.0);
        if enough {
            self.tokens.take(1.0);
        }
        enough
    }

    /// Whether it has been idle until it is full again, so that it can be forgotten.
    pub fn is_full(&self, now: Instant) -> bool {
        let mut tokens = self.tokens;
        tokens.refill(self.idle(now));
        tokens.is_full()
    }

    /// Seconds since the last request for a token.
    fn idle(&self, now: Instant) -> f64 {
        self.updated.map_or(0.0, |then| now.saturating_duration_since(then).as_secs_f64())
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

    #[test]
    fn asking_often_costs_nothing() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, 5);
        let every = |n: u32| start + Duration::from_nanos(1500) * n;
        let taken = (0..=666_667).filter(|n| bucket.take(every(*n))).count();
        assert!((1004..=1005).contains(&taken), "{taken} in a second");
    }
}
