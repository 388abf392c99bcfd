//! The token buckets of a limiter, one each for bytes and packets.

use std::time::Instant;

use crate::{boundary::limits::Rates, bucket::Tokens};

/// Seconds of its rate that a bucket holds.
const BURST_SECONDS: f64 = 0.25;
/// A bucket of bytes holds at least a packet of the usual largest size.
const MIN_BURST_BYTES: f64 = 1500.0;
/// A bucket of packets holds at least so many.
const MIN_BURST_PACKETS: f64 = 8.0;

/// Both rates of one direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBuckets {
    bytes: Tokens,
    packets: Tokens,
    updated: Instant,
}

impl TokenBuckets {
    fn new(rates: Rates, now: Instant) -> Option<Self> {
        (rates != Rates::default()).then(|| Self {
            bytes: tokens(rates.bytes_per_second, MIN_BURST_BYTES),
            packets: tokens(rates.packets_per_second, MIN_BURST_PACKETS),
            updated: now,
        })
    }

    /// The buckets of other rates, no fuller than these were: else a rate that changes to and fro
    /// would fill them each time.
    pub(crate) fn changed(before: Option<Self>, rates: Rates, now: Instant) -> Option<Self> {
        let mut after = Self::new(rates, now)?;
        if let Some(mut before) = before {
            before.refill(now);
            after.bytes.filled_as(&before.bytes);
            after.packets.filled_as(&before.packets);
        }
        Some(after)
    }

    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.updated).as_secs_f64();
        if seconds > 0.0 {
            self.updated = now;
            self.bytes.refill(seconds);
            self.packets.refill(seconds);
        }
    }

    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.bytes.is_full() && self.packets.is_full()
    }

    /// Whether a packet of `size` bytes may pass now. A packet larger than the bucket passes when
    /// the bucket is full, and leaves a debt.
    pub(crate) fn admits(&mut self, size: f64, now: Instant) -> bool {
        self.refill(now);
        (self.bytes.has(size) || self.bytes.is_full()) && self.packets.has(1.0)
    }

    pub(crate) fn take(&mut self, size: f64) {
        self.bytes.take(size);
        self.packets.take(1.0);
    }
}

/// A full bucket of a rate; 0 is no limit.
fn tokens(per_second: u64, least: f64) -> Tokens {
    if per_second == 0 {
        return Tokens::UNLIMITED;
    }
    let per_second = per_second as f64;
    Tokens::new(per_second, (per_second * BURST_SECONDS).max(least))
}
