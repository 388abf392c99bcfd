//! Sources of packets, and the state that is kept of each.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::bucket::Bucket;

/// The interval at which idle sources are removed while the table is full.
const SWEEP: Duration = Duration::from_secs(1);

/// One source: an IPv4 address, or an IPv6 /56 as assigned to one site.
pub(crate) fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 72 << 72).into()),
        v4 => v4,
    }
}

/// The state of a source.
pub(crate) trait State {
    /// Whether it is as good as that of a source never seen, so that it can be forgotten.
    fn is_idle(&self, now: Instant) -> bool;
}

impl State for Bucket {
    fn is_idle(&self, now: Instant) -> bool {
        self.is_full(now)
    }
}

/// The states of so many sources at most. None is forgotten before it is idle.
#[derive(Debug)]
pub(crate) struct Sources<S> {
    known: HashMap<IpAddr, S>,
    most: usize,
    swept: Option<Instant>,
}

impl<S: State> Sources<S> {
    pub(crate) fn new(most: usize) -> Self {
        Self { known: HashMap::new(), most, swept: None }
    }

    /// The state of a source, made by `new` where there is none; `None` if there is no room for it.
    pub(crate) fn get(
        &mut self,
        source: IpAddr,
        now: Instant,
        new: impl FnOnce() -> S,
    ) -> Option<&mut S> {
        if self.known.len() >= self.most && !self.known.contains_key(&source) {
            // It walks all sources, which must not happen for every packet of a flood.
            if self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP) {
                self.swept = Some(now);
                self.known.retain(|_, state| !state.is_idle(now));
            }
            if self.known.len() >= self.most {
                return None;
            }
        }
        Some(self.known.entry(source).or_insert_with(new))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_remembered_are_bounded_and_idle_ones_make_room() {
        let (mut sources, start) = (Sources::new(1000), Instant::now());
        let mut take = |n: u32, at| {
            let source = IpAddr::V4(n.into());
            let taken = sources.get(source, at, || Bucket::new(2, 3)).map(|b| b.take(at));
            (taken, sources.len())
        };
        for n in 0..1000 {
            assert_eq!(take(n, start).0, Some(true));
        }
        assert_eq!(take(1000, start), (None, 1000), "nobody is forgotten early");
        assert_eq!(take(0, start), (Some(true), 1000), "known ones go on");
        let later = start + Duration::from_secs(2);
        assert_eq!(
            take(1000, later),
            (Some(true), 1),
            "their rates are full again: nothing is lost"
        );
    }
}
