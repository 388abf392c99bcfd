//! The limits of joins: rates, places and blocks of their own, so that neither they nor relaying can
//! use up what the other needs.
//!
//! The rates of a source come first: one that asks too often takes nothing from the rate of all. A
//! source whose joins fail again and again is blocked, and only its joins are.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    bucket::Bucket,
    config::ListenConfig,
    quic::sources::{Sources, State},
    slots::{SlotId, Slots},
};

/// Joins under way at once.
const MAX_JOINS: usize = 32;
/// A source may have one join under way for so many free places: the first source gets a third of
/// all places, later ones less as fewer are left, and one that has none gets the last.
const FREE_FOR_ONE: usize = 2;
/// Sources remembered at once.
const MAX_SOURCES: usize = 4096;
/// Failures within [`WINDOW`] that block a source for [`BLOCK`].
const MAX_FAILURES: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
const BLOCK: Duration = Duration::from_secs(60);

/// The verdict on an attempt to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may start a handshake.
    Accept,
    /// It is refused: its source, or all sources together, are over their rate.
    RefuseRate,
    /// It is refused: all places are taken.
    RefuseFull,
    /// It is refused: too many joins of its source have failed.
    RefuseBlocked,
    /// It gets no answer, so that it tries again by itself: its source has its share of the places.
    IgnoreSource,
}

/// The limits, and the use of them.
#[derive(Debug)]
pub(crate) struct Joins {
    per_source: Bucket,
    of_all: Bucket,
    sources: Sources<Source>,
    under_way: UnderWay,
}

type UnderWay = Rc<RefCell<Slots<Join>>>;

#[derive(Debug)]
struct Source {
    bucket: Bucket,
    /// The last failures, oldest first.
    failures: Vec<Instant>,
    blocked: Option<Instant>,
}

impl Source {
    fn is_blocked(&self, now: Instant) -> bool {
        self.blocked.is_some_and(|since| now.saturating_duration_since(since) < BLOCK)
    }

    fn fail(&mut self, now: Instant) {
        self.failures.retain(|then| now.saturating_duration_since(*then) < WINDOW);
        self.failures.push(now);
        if self.failures.len() >= MAX_FAILURES {
            self.failures.clear();
            self.blocked = Some(now);
        }
    }
}

impl State for Source {
    fn is_idle(&self, now: Instant) -> bool {
        let recent = |then: &Instant| now.saturating_duration_since(*then) < WINDOW;
        self.bucket.is_full(now) && !self.is_blocked(now) && !self.failures.iter().any(recent)
    }
}

/// A join under way.
#[derive(Debug)]
struct Join {
    source: IpAddr,
    /// The task that waits for the reply to its request.
    asked: Option<oneshot::Sender<Bytes>>,
}

/// The place of one join: taken for as long as this is held, and freed by a panic too.
#[derive(Debug)]
pub(crate) struct Place {
    under_way: UnderWay,
    id: SlotId,
    pub(crate) source: IpAddr,
    asked: Cell<bool>,
}

impl Place {
    /// The name of its request, never used again.
    pub(crate) fn request(&self) -> u64 {
        self.id.bits()
    }

    /// Whether it has brought its request.
    pub(crate) fn has_asked(&self) -> bool {
        self.asked.get()
    }

    /// Waits for a reply to the request from now on.
    pub(crate) fn ask(&self) -> oneshot::Receiver<Bytes> {
        self.asked.set(true);
        let (reply, replied) = oneshot::channel();
        if let Some(join) = self.under_way.borrow_mut().get_mut(self.id) {
            join.asked = Some(reply);
        }
        replied
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.under_way.borrow_mut().remove(self.id);
    }
}

impl Joins {
    pub(crate) fn new(config: &ListenConfig) -> Self {
        Self::of(config.joins_per_source, config.join_burst_per_source, config.joins_per_second)
    }

    pub(crate) fn of(per_source: u32, burst: u32, per_second: u32) -> Self {
        Self {
            per_source: Bucket::new(per_source, burst),
            of_all: Bucket::new(per_second, per_second),
            sources: Sources::new(MAX_SOURCES),
            under_way: Rc::default(),
        }
    }

    /// Joins under way.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.borrow().len()
    }

    /// Decides on an attempt of a source whose address is proven, where it has to be.
    pub(crate) fn decide(&mut self, source: IpAddr, now: Instant) -> Verdict {
        let Some(state) = Self::state(&mut self.sources, self.per_source, source, now) else {
            return Verdict::RefuseRate;
        };
        if state.is_blocked(now) {
            return Verdict::RefuseBlocked;
        }
        // A source is charged for refused attempts too, or it could go on asking.
        if !state.bucket.take(now) {
            return Verdict::RefuseRate;
        }
        let under_way = self.under_way.borrow();
        let free = MAX_JOINS.saturating_sub(under_way.len());
        if free == 0 {
            return Verdict::RefuseFull;
        }
        let held = under_way.iter().filter(|(_, join)| join.source == source).count();
        if held > 0 && held >= free / FREE_FOR_ONE {
            return Verdict::IgnoreSource;
        }
        if self.of_all.take(now) { Verdict::Accept } else { Verdict::RefuseRate }
    }

    /// Takes a place for an attempt that was decided to be accepted.
    pub(crate) fn enter(&mut self, source: IpAddr) -> Place {
        let id = self.under_way.borrow_mut().insert(Join { source, asked: None });
        Place { under_way: self.under_way.clone(), id, source, asked: Cell::new(false) }
    }

    /// Gives a request its reply; nothing happens if its join has ended. A `refused` one counts
    /// against its source.
    pub(crate) fn reply(&mut self, request: u64, data: Bytes, refused: bool, now: Instant) {
        let mut under_way = self.under_way.borrow_mut();
        let Some(join) = under_way.get_mut(SlotId::from_bits(request)) else {
            return;
        };
        let Some(asked) = join.asked.take() else {
            return;
        };
        // The task that waits may have given up just now.
        let _ = asked.send(data);
        let source = join.source;
        drop(under_way);
        if refused {
            self.fail(source, now);
        }
    }

    /// Notes that a join of a source has failed.
    pub(crate) fn fail(&mut self, source: IpAddr, now: Instant) {
        if let Some(state) = Self::state(&mut self.sources, self.per_source, source, now) {
            state.fail(now);
        }
    }

    fn state(
        sources: &mut Sources<Source>,
        per_source: Bucket,
        source: IpAddr,
        now: Instant,
    ) -> Option<&mut Source> {
        let new = || Source { bucket: per_source, failures: Vec::new(), blocked: None };
        sources.get(source, now, new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joins() -> Joins {
        Joins::of(u32::MAX, u32::MAX, u32::MAX)
    }

    fn source(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    fn enter(joins: &mut Joins, n: u32, now: Instant) -> Result<Place, Verdict> {
        match joins.decide(source(n), now) {
            Verdict::Accept => Ok(joins.enter(source(n))),
            verdict => Err(verdict),
        }
    }

    fn refuse(joins: &mut Joins, n: u32, now: Instant) {
        let place = enter(joins, n, now).unwrap();
        let _reply = place.ask();
        joins.reply(place.request(), Bytes::new(), true, now);
    }

    #[test]
    fn one_source_holds_a_third_of_the_places_and_others_get_the_rest() {
        let (mut joins, now) = (joins(), Instant::now());
        let mut places = Vec::new();
        let verdict = loop {
            match enter(&mut joins, 1, now) {
                Ok(place) => places.push(place),
                Err(verdict) => break verdict,
            }
        };
        assert_eq!((places.len(), verdict), (11, Verdict::IgnoreSource));
        places.extend((2..).map_while(|n| enter(&mut joins, n, now).ok()));
        assert_eq!((places.len(), joins.under_way()), (MAX_JOINS, MAX_JOINS));
        assert_eq!(joins.decide(source(99), now), Verdict::RefuseFull);
        places.pop();
        assert_eq!(joins.decide(source(1), now), Verdict::IgnoreSource);
        assert_eq!(joins.decide(source(99), now), Verdict::Accept);
        places.clear();
        assert_eq!(joins.under_way(), 0);
    }

    #[test]
    fn a_source_beyond_its_rate_takes_nothing_from_the_others() {
        let (mut joins, now) = (Joins::of(1, 20, 30), Instant::now());
        let mut accepted =
            |n, at| (0..50).filter(|_| enter(&mut joins, n, now + at).is_ok()).count();
        assert_eq!(accepted(1, Duration::ZERO), 20);
        assert_eq!(accepted(2, Duration::ZERO), 10, "what is left of the rate of all");
        assert_eq!(accepted(1, Duration::from_secs(1)), 1);
        assert_eq!(accepted(3, Duration::from_secs(2)), 20);
    }

    #[test]
    fn five_refused_requests_in_a_minute_block_their_source_for_a_minute() {
        let (mut joins, start) = (joins(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 10, 20, 30, 61, 71] {
            refuse(&mut joins, 1, at(seconds));
        }
        assert_eq!(joins.decide(source(1), at(79)), Verdict::Accept, "four within a minute");
        refuse(&mut joins, 1, at(79));
        assert_eq!(joins.decide(source(1), at(79)), Verdict::RefuseBlocked);
        assert_eq!(joins.decide(source(2), at(79)), Verdict::Accept);
        assert_eq!(joins.decide(source(1), at(138)), Verdict::RefuseBlocked);
        assert_eq!(joins.decide(source(1), at(139)), Verdict::Accept);
        refuse(&mut joins, 1, at(139));
        assert_eq!(joins.decide(source(1), at(139)), Verdict::Accept, "it counts from none again");
    }

    #[test]
    fn a_reply_counts_once_and_not_for_the_next_join() {
        let (mut joins, now) = (joins(), Instant::now());
        let place = enter(&mut joins, 1, now).unwrap();
        joins.reply(place.request(), "early".into(), true, now);
        let mut replied = place.ask();
        for n in 0..9 {
            joins.reply(place.request(), format!("{n}").into(), true, now);
        }
        assert_eq!(replied.try_recv().unwrap(), "0");
        let old = place.request();
        drop(place);
        let place = enter(&mut joins, 1, now).unwrap();
        let mut replied = place.ask();
        joins.reply(old, "late".into(), true, now);
        assert!(replied.try_recv().is_err() && place.request() != old);
        assert_eq!(joins.decide(source(1), now), Verdict::Accept);
    }

    #[test]
    fn a_blocked_source_is_not_forgotten_for_others() {
        let (mut joins, start) = (Joins::of(1, 20, u32::MAX), Instant::now());
        for _ in 0..MAX_FAILURES {
            refuse(&mut joins, 0, start);
        }
        let most = MAX_SOURCES as u32;
        for n in 1..most {
            assert_eq!(joins.decide(source(n), start), Verdict::Accept);
        }
        assert_eq!(joins.decide(source(most), start), Verdict::RefuseRate, "no room");
        let later = start + Duration::from_secs(30);
        assert_eq!(joins.decide(source(most), later), Verdict::Accept);
        assert_eq!(joins.decide(source(0), later), Verdict::RefuseBlocked);
        assert_eq!(joins.sources.len(), 2);
    }

    proptest! {
        /// Whatever comes and goes, no more than all places are taken, and who has none gets one that is
        /// free.
        #[test]
        fn places_are_never_overdrawn_and_never_kept_from_a_newcomer(
            steps in prop::collection::vec((0u32..20, any::<bool>()), 0..200),
        ) {
            let (mut joins, now) = (joins(), Instant::now());
            let mut places: Vec<(u32, Place)> = Vec::new();
            for (n, comes) in steps {
                if !comes {
                    if let Some(at) = places.iter().position(|(of, _)| *of == n) {
                        places.swap_remove(at);
                    }
                    continue;
                }
                let (taken, own) =
                    (places.len(), places.iter().filter(|(of, _)| *of == n).count());
                match enter(&mut joins, n, now) {
                    Ok(place) => places.push((n, place)),
                    Err(Verdict::RefuseFull) => prop_assert_eq!(taken, MAX_JOINS),
                    Err(verdict) => {
                        prop_assert_eq!(verdict, Verdict::IgnoreSource);
                        prop_assert!(own > 0 && taken < MAX_JOINS);
                    }
                }
                prop_assert!(own <= MAX_JOINS / 3 + 1 && joins.under_way() == places.len());
            }
            places.clear();
            prop_assert_eq!(joins.under_way(), 0);
        }
    }
}
