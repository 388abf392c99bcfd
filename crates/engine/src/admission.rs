//! Whether a connection attempt may go on: accept | retry | refuse | ignore.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{bucket::Bucket, config::ListenConfig};

/// Sources whose rate is remembered at once.
const MAX_SOURCES: usize = 65_536;
/// How often the idle ones are looked for while there are so many.
const SWEEP: Duration = Duration::from_secs(1);

/// What becomes of a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may start a handshake.
    Accept,
    /// Its source must prove its address first.
    Retry,
    /// It is told to go away: its source is over its rate.
    RefuseRate,
    /// It is told to go away: the server is full or draining.
    RefuseFull,
    /// It gets no answer, so that it tries again by itself.
    Ignore,
}

/// The facts a verdict rests on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) remote: SocketAddr,
    /// The source has shown a good Retry token.
    pub(crate) validated: bool,
    pub(crate) connections: usize,
    pub(crate) half_open: usize,
    /// The control plane is behind with its events.
    pub(crate) congested: bool,
}

/// The limits, and how fast each source has been knocking.
#[derive(Debug)]
pub(crate) struct Admission {
    retry: bool,
    max_connections: usize,
    max_half_open: usize,
    per_source: Bucket,
    sources: HashMap<IpAddr, Bucket>,
    swept: Option<Instant>,
    /// `false` while the server drains.
    pub(crate) accepting: bool,
}

impl Admission {
    pub(crate) fn new(config: &ListenConfig) -> Self {
        Self {
            retry: config.retry,
            max_connections: config.max_connections,
            max_half_open: config.max_half_open,
            per_source: Bucket::new(
                config.handshakes_per_source,
                config.handshake_burst_per_source,
            ),
            sources: HashMap::new(),
            swept: None,
            accepting: true,
        }
    }

    /// Decides. Only an attempt that would be accepted counts against its source, and behind a
    /// Retry only a source that is really there: nobody can use up another's rate.
    pub(crate) fn decide(&mut self, attempt: Attempt, now: Instant) -> Verdict {
        if !self.accepting || attempt.connections >= self.max_connections {
            return Verdict::RefuseFull;
        }
        if attempt.congested {
            return Verdict::Ignore;
        }
        if self.retry && !attempt.validated {
            return Verdict::Retry;
        }
        if attempt.half_open >= self.max_half_open {
            return Verdict::RefuseFull;
        }
        if !self.within_rate(prefix(attempt.remote.ip()), now) {
            return Verdict::RefuseRate;
        }
        Verdict::Accept
    }

    fn within_rate(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            // It walks all of them, which must not be had for every packet of a flood.
            if self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP) {
                self.swept = Some(now);
                self.sources.retain(|_, bucket| !bucket.is_full(now));
            }
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        self.sources.entry(source).or_insert(self.per_source).take(now)
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /56 as handed to one site.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 72 << 72).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission {
            retry: false,
            max_connections: 100,
            max_half_open: 10,
            per_source: Bucket::new(2, 3),
            sources: HashMap::new(),
            swept: None,
            accepting: true,
        }
    }

    fn attempt(remote: &str) -> Attempt {
        Attempt {
            remote: SocketAddr::new(remote.parse().unwrap(), 4433),
            validated: false,
            connections: 0,
            half_open: 0,
            congested: false,
        }
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let plain = attempt("192.0.2.1");
        let validated = Attempt { validated: true, ..plain };
        let full = Attempt { connections: 100, ..validated };
        let half_open = Attempt { connections: 99, half_open: 10, ..validated };
        let congested = Attempt { congested: true, ..plain };
        for (case, retry, accepting, attempt, expected) in [
            ("nothing is against it", false, true, plain, Verdict::Accept),
            ("one place is left", false, true, Attempt { half_open: 9, ..plain }, Verdict::Accept),
            ("draining", true, false, validated, Verdict::RefuseFull),
            ("draining and congested", false, false, congested, Verdict::RefuseFull),
            ("full", false, true, full, Verdict::RefuseFull),
            (
                "full beats a Retry",
                true,
                true,
                Attempt { validated: false, ..full },
                Verdict::RefuseFull,
            ),
            ("congested", false, true, congested, Verdict::Ignore),
            ("congested beats a Retry", true, true, congested, Verdict::Ignore),
            ("an address to prove", true, true, plain, Verdict::Retry),
            ("an address proven", true, true, validated, Verdict::Accept),
            ("half-open ones at their limit", true, true, half_open, Verdict::RefuseFull),
            // A Retry keeps no state, so it goes on under a flood of half-open ones.
            (
                "and an address to prove",
                true,
                true,
                Attempt { validated: false, ..half_open },
                Verdict::Retry,
            ),
        ] {
            let mut admission = Admission { retry, accepting, ..admission() };
            assert_eq!(admission.decide(attempt, Instant::now()), expected, "{case}");
        }
    }

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate() {
        let (mut admission, start) = (admission(), Instant::now());
        let mut accepted = |remote: &str, ms: u64| {
            let now = start + Duration::from_millis(ms);
            (0..20).filter(|_| admission.decide(attempt(remote), now) == Verdict::Accept).count()
        };
        assert_eq!(accepted("192.0.2.1", 0), 3);
        assert_eq!(accepted("192.0.2.2", 0), 3, "another source has its own");
        assert_eq!(accepted("::ffff:192.0.2.2", 0), 0, "the same source, IPv4-mapped");
        assert_eq!(accepted("192.0.2.1", 500), 1);
        assert_eq!(accepted("192.0.2.1", 60_000), 3);
        assert_eq!(accepted("2001:db8:0:ab00::1", 0), 3);
        assert_eq!(accepted("2001:db8:0:abff:ffff::1", 0), 0, "the same /56");
        assert_eq!(accepted("2001:db8:0:ac00::1", 0), 3, "the next /56");
    }

    #[test]
    fn only_what_would_be_accepted_counts_against_a_source() {
        let (mut admission, now) = (Admission { retry: true, ..admission() }, Instant::now());
        let spoofed = attempt("192.0.2.1");
        let real = Attempt { validated: true, ..spoofed };
        for _ in 0..100 {
            assert_eq!(admission.decide(spoofed, now), Verdict::Retry);
            assert_eq!(
                admission.decide(Attempt { half_open: 10, ..real }, now),
                Verdict::RefuseFull
            );
        }
        assert!(admission.sources.is_empty());
        let verdicts: Vec<Verdict> = (0..4).map(|_| admission.decide(real, now)).collect();
        assert_eq!(verdicts, [[Verdict::Accept; 3].as_slice(), &[Verdict::RefuseRate]].concat());
    }

    #[test]
    fn the_sources_remembered_are_bounded_and_idle_ones_make_room() {
        let (mut admission, start) = (admission(), Instant::now());
        let from = |n: u32| Attempt {
            remote: SocketAddr::new(IpAddr::V4(n.into()), 4433),
            ..attempt("192.0.2.1")
        };
        for n in 0..MAX_SOURCES as u32 {
            assert_eq!(admission.decide(from(n), start), Verdict::Accept);
        }
        let next = from(MAX_SOURCES as u32);
        assert_eq!(admission.decide(next, start), Verdict::RefuseRate, "nobody is forgotten early");
        assert_eq!(admission.decide(from(0), start), Verdict::Accept, "known ones go on");
        assert_eq!(admission.sources.len(), MAX_SOURCES);
        let later = start + Duration::from_secs(2);
        assert_eq!(admission.decide(next, later), Verdict::Accept);
        assert_eq!(admission.sources.len(), 1, "their rates are full again: nothing is lost");
    }
}
