//! Admission of connection attempts: accept | retry | refuse | ignore.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Instant,
};

use noq_proto::ConnectionId;

use crate::{
    bucket::Bucket,
    config::ListenConfig,
    quic::{
        joins::{self, Joins},
        retry::SpentTokens,
        sources::{Sources, prefix},
    },
};

/// Sources whose rate is remembered at once.
const MAX_SOURCES: usize = 65_536;
/// A source may have one handshake under way for so many free places. The first source gets a
/// sixteenth of all places, later ones less as fewer are left, so that few sources never fill them.
const FREE_FOR_ONE: usize = 15;

/// The verdict on a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may start a handshake.
    Accept,
    /// It is a join, whose limits have decided.
    Join(joins::Verdict),
    /// Its source must prove its address first.
    Retry,
    /// It is refused: its source is over its rate.
    RefuseRate,
    /// It is refused: the server is full or draining.
    RefuseFull,
    /// It is refused: its Retry token has let in a handshake before.
    RefuseToken,
    /// It gets no answer, so that it tries again by itself: the control plane is behind.
    IgnoreCongested,
    /// The same, since its source has its share of the handshakes under way.
    IgnoreSource,
}

/// The facts a verdict rests on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) remote: SocketAddr,
    /// The connection id that its Retry token was made for, if it has shown a good one.
    pub(crate) token: Option<ConnectionId>,
    /// Whether it asks to join; `false` as long as [`Admission::goes_by_purpose`] is.
    pub(crate) join: bool,
    /// Connections that are admitted.
    pub(crate) connections: usize,
    /// The control plane is behind with its events.
    pub(crate) congested: bool,
}

/// The limits, and the use of them by each source.
#[derive(Debug)]
pub(crate) struct Admission {
    retry: bool,
    max_connections: usize,
    max_half_open: usize,
    half_open: Rc<RefCell<HalfOpen>>,
    per_source: Bucket,
    sources: Sources<Bucket>,
    spent: SpentTokens,
    pub(crate) joins: Joins,
    /// `false` while the server drains.
    pub(crate) accepting: bool,
}

/// The handshakes under way, in all and of each source that has any.
#[derive(Debug, Default)]
struct HalfOpen {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// The place of one handshake under way: taken for as long as this is held, and freed by a panic
/// too.
#[derive(Debug)]
pub(crate) struct Place {
    places: Rc<RefCell<HalfOpen>>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &mut *self.places.borrow_mut();
        places.total -= 1;
        if let Some(held) = places.by_source.get_mut(&self.source) {
            *held -= 1;
            if *held == 0 {
                places.by_source.remove(&self.source);
            }
        }
    }
}

impl Admission {
    pub(crate) fn new(config: &ListenConfig) -> Self {
        Self {
            retry: config.retry,
            max_connections: config.max_connections,
            max_half_open: config.max_half_open,
            half_open: Rc::default(),
            per_source: Bucket::new(
                config.handshakes_per_source,
                config.handshake_burst_per_source,
            ),
            sources: Sources::new(MAX_SOURCES),
            spent: SpentTokens::new(config.retry_token_lifetime),
            joins: Joins::new(config),
            accepting: true,
        }
    }

    /// Handshakes under way.
    pub(crate) fn half_open(&self) -> usize {
        self.half_open.borrow().total
    }

    /// Whether the verdict depends on what an attempt is for, which is dear to learn: others than joins
    /// are refused while the server is full, and joins have limits of their own.
    pub(crate) fn goes_by_purpose(&self, attempt: Attempt) -> bool {
        let open = self.accepting && !attempt.congested;
        match attempt.token {
            Some(token) => open && !self.spent.contains(token, attempt.remote),
            None => open && (!self.retry || self.is_full(attempt)),
        }
    }

    fn is_full(&self, attempt: Attempt) -> bool {
        attempt.connections + self.half_open() >= self.max_connections
    }

    /// Decides. Behind a Retry only a source with a proven address is charged, and not for a token
    /// that others may have seen: so no source can use up another's rate or places.
    pub(crate) fn decide(&mut self, attempt: Attempt, now: Instant) -> Verdict {
        let Attempt { remote, token, join, congested, .. } = attempt;
        let source = prefix(remote.ip());
        if !self.accepting || (!join && self.is_full(attempt)) {
            return Verdict::RefuseFull;
        }
        if congested {
            return Verdict::IgnoreCongested;
        }
        // Few packets in others' names would do to keep everybody from joining.
        if (self.retry || join) && token.is_none() {
            return Verdict::Retry;
        }
        if token.is_some_and(|token| self.spent.contains(token, remote)) {
            return Verdict::RefuseToken;
        }
        if join {
            return Verdict::Join(self.joins.decide(source, now));
        }
        // A source is charged for refused attempts too, or it could go on asking.
        if !self.within_rate(source, now) {
            return Verdict::RefuseRate;
        }
        let half_open = self.half_open.borrow();
        let free = self.max_half_open.saturating_sub(half_open.total);
        if free == 0 {
            return Verdict::RefuseFull;
        }
        let held = half_open.by_source.get(&source).copied().unwrap_or(0);
        if held > 0 && held >= free / FREE_FOR_ONE {
            return Verdict::IgnoreSource;
        }
        Verdict::Accept
    }

    /// Lets an attempt in that was decided to be accepted: its token is spent, and its place taken.
    pub(crate) fn enter(&mut self, attempt: Attempt, now: Instant) -> Place {
        self.spend(attempt, now);
        let source = prefix(attempt.remote.ip());
        let places = self.half_open.clone();
        let half_open = &mut *places.borrow_mut();
        half_open.total += 1;
        *half_open.by_source.entry(source).or_default() += 1;
        Place { places: self.half_open.clone(), source }
    }

    /// The same for a join.
    pub(crate) fn enter_join(&mut self, attempt: Attempt, now: Instant) -> joins::Place {
        self.spend(attempt, now);
        self.joins.enter(prefix(attempt.remote.ip()))
    }

    fn spend(&mut self, attempt: Attempt, now: Instant) {
        if let Some(token) = attempt.token {
            self.spent.spend(token, attempt.remote, now);
        }
    }

    fn within_rate(&mut self, source: IpAddr, now: Instant) -> bool {
        let bucket = self.sources.get(source, now, || self.per_source);
        bucket.is_some_and(|bucket| bucket.take(now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn admission() -> Admission {
        Admission {
            retry: false,
            max_connections: 100,
            max_half_open: 10,
            half_open: Rc::default(),
            per_source: Bucket::new(2, 3),
            sources: Sources::new(MAX_SOURCES),
            spent: SpentTokens::new(Duration::from_secs(15)),
            joins: Joins::of(1, 20, 20),
            accepting: true,
        }
    }

    fn attempt(remote: &str) -> Attempt {
        Attempt {
            remote: SocketAddr::new(remote.parse().unwrap(), 4433),
            token: None,
            join: false,
            connections: 0,
            congested: false,
        }
    }

    fn from(n: u32) -> Attempt {
        Attempt { remote: SocketAddr::new(IpAddr::V4(n.into()), 4433), ..attempt("192.0.2.1") }
    }

    fn token(n: u64) -> Option<ConnectionId> {
        Some(ConnectionId::new(&n.to_be_bytes()))
    }

    /// The handshakes granted to a source that asks for so many at once and finishes none.
    fn stall(admission: &mut Admission, attempt: Attempt, times: usize) -> Vec<Place> {
        let now = Instant::now();
        let mut places = Vec::new();
        for _ in 0..times {
            if admission.decide(attempt, now) == Verdict::Accept {
                places.push(admission.enter(attempt, now));
            }
        }
        places
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let plain = attempt("192.0.2.1");
        let validated = Attempt { token: token(1), ..plain };
        let spent = Attempt { token: token(2), ..plain };
        let full = Attempt { connections: 100, ..validated };
        let congested = Attempt { congested: true, ..plain };
        let join = Attempt { join: true, ..plain };
        let full_join = Attempt { connections: 100, ..join };
        const JOIN: Verdict = Verdict::Join(joins::Verdict::Accept);
        for (case, retry, accepting, attempt, expected) in [
            ("nothing is against it", false, true, plain, Verdict::Accept),
            ("draining", true, false, validated, Verdict::RefuseFull),
            ("draining and congested", false, false, congested, Verdict::RefuseFull),
            ("full", false, true, full, Verdict::RefuseFull),
            (
                "full beats a Retry",
                true,
                true,
                Attempt { token: None, ..full },
                Verdict::RefuseFull,
            ),
            ("congested", false, true, congested, Verdict::IgnoreCongested),
            ("congested beats a Retry", true, true, congested, Verdict::IgnoreCongested),
            ("an address to prove", true, true, plain, Verdict::Retry),
            ("an address proven", true, true, validated, Verdict::Accept),
            ("an address proven before", true, true, spent, Verdict::RefuseToken),
            ("a join proves its address anyway", false, true, join, Verdict::Retry),
            ("a join while full", false, true, Attempt { token: token(1), ..full_join }, JOIN),
            ("a join while full, to prove", true, true, full_join, Verdict::Retry),
            ("a join while draining", false, false, full_join, Verdict::RefuseFull),
        ] {
            let mut admission = Admission { retry, accepting, ..admission() };
            admission.spent.spend(token(2).unwrap(), plain.remote, Instant::now());
            assert_eq!(admission.decide(attempt, Instant::now()), expected, "{case}");
        }
    }

    #[test]
    fn handshakes_under_way_count_as_connections() {
        let mut admission = admission();
        let _places: Vec<_> = (0..4).map(|n| admission.enter(from(n), Instant::now())).collect();
        let full = |connections| Attempt { connections, ..from(9) };
        assert_eq!(admission.decide(full(95), Instant::now()), Verdict::Accept);
        assert_eq!(admission.decide(full(96), Instant::now()), Verdict::RefuseFull);
    }

    #[test]
    fn a_token_is_spent_by_the_handshake_it_lets_in_and_by_nothing_else() {
        let (mut admission, now) = (Admission { retry: true, ..admission() }, Instant::now());
        let first = Attempt { token: token(1), ..attempt("192.0.2.1") };
        let ignored = Attempt { congested: true, ..first };
        assert_eq!(admission.decide(ignored, now), Verdict::IgnoreCongested);
        assert_eq!(admission.decide(first, now), Verdict::Accept, "its next packet");
        drop(admission.enter(first, now));
        assert_eq!(admission.decide(first, now), Verdict::RefuseToken);
        for _ in 0..100 {
            admission.decide(first, now);
        }
        let next = Attempt { token: token(2), ..first };
        assert_eq!(admission.decide(next, now), Verdict::Accept, "replays are not charged to it");
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
    fn a_source_that_is_not_there_is_charged_nothing() {
        let (mut admission, now) = (Admission { retry: true, ..admission() }, Instant::now());
        for _ in 0..100 {
            assert_eq!(admission.decide(attempt("192.0.2.1"), now), Verdict::Retry);
        }
        assert_eq!(admission.sources.len(), 0);
    }

    #[test]
    fn a_source_is_charged_also_while_no_place_is_free() {
        let (mut admission, now) = (admission(), Instant::now());
        let places: Vec<_> = (0..10).map(|n| admission.enter(from(n), now)).collect();
        let greedy = attempt("192.0.2.1");
        let verdicts: Vec<_> = (0..4).map(|_| admission.decide(greedy, now)).collect();
        assert_eq!(
            verdicts,
            [[Verdict::RefuseFull; 3].as_slice(), &[Verdict::RefuseRate]].concat()
        );
        drop(places);
        assert_eq!(admission.decide(greedy, now), Verdict::RefuseRate);
        assert_eq!(admission.decide(attempt("192.0.2.2"), now), Verdict::Accept);
    }

    #[test]
    fn no_source_holds_more_than_a_sixteenth_of_the_places_and_few_never_all() {
        let unlimited = Bucket::new(u32::MAX, u32::MAX);
        for (places, share) in [(1024, 64), (160, 10), (16, 1), (2, 1), (1, 1)] {
            let admission =
                &mut Admission { max_half_open: places, per_source: unlimited, ..admission() };
            admission.max_connections = usize::MAX;
            let mut held = vec![stall(admission, from(0), 5000)];
            assert_eq!((held[0].len(), admission.half_open()), (share, share), "of {places}");
            if places < 64 {
                continue;
            }
            held.extend((1..32).map(|n| stall(admission, from(n), 5000)));
            assert!(admission.half_open() < places * 9 / 10, "32 sources of {places}");
            let good = attempt("192.0.2.1");
            assert_eq!(admission.decide(good, Instant::now()), Verdict::Accept, "one beside them");
            assert_eq!(admission.decide(from(0), Instant::now()), Verdict::IgnoreSource);
            held.clear();
            assert_eq!(admission.half_open(), 0);
            assert!(admission.half_open.borrow().by_source.is_empty());
        }
    }

    #[test]
    fn the_last_place_is_free_for_a_source_that_has_none() {
        let (mut admission, now) = (admission(), Instant::now());
        let mut places: Vec<_> = (0..9).map(|n| admission.enter(from(n), now)).collect();
        assert_eq!(admission.decide(from(0), now), Verdict::IgnoreSource);
        assert_eq!(admission.decide(from(9), now), Verdict::Accept);
        places.push(admission.enter(from(9), now));
        assert_eq!(admission.decide(from(10), now), Verdict::RefuseFull);
        places.pop();
        assert_eq!(admission.decide(from(10), now), Verdict::Accept);
    }
}
