//! Notices of a tunnel about its services, at a rate that no peer can raise.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::config::TunnelId;
use crate::boundary::{
    event::{Event, Notice},
    outbox::Outbox,
};

/// A lasting failure is reported again after so long.
const AGAIN: Duration = Duration::from_secs(30);
/// The least time between two reports about one thing.
const PAUSE: Duration = Duration::from_secs(1);

/// The way of a tunnel's notices to the control plane.
#[derive(Clone, Debug)]
pub(super) struct Notices {
    outbox: Arc<Outbox>,
    tunnel: TunnelId,
}

impl Notices {
    pub(super) fn new(outbox: Arc<Outbox>, tunnel: TunnelId) -> Self {
        Self { outbox, tunnel }
    }

    /// Reports it; false without room.
    pub(super) fn tell(&self, notice: Notice) -> bool {
        self.outbox.offer(Event::TunnelNotice { tunnel: self.tunnel, notice: Box::new(notice) })
    }
}

/// The last report about each thing, and its time.
#[derive(Debug)]
pub(super) struct Told<K>(RefCell<HashMap<K, (Option<String>, Instant)>>);

impl<K> Default for Told<K> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Eq + Hash> Told<K> {
    /// Reports the state of a thing by `tell`, unless that was reported lately.
    pub(super) fn tell(
        &self,
        key: K,
        error: Option<String>,
        now: Instant,
        tell: impl FnOnce(Option<String>) -> bool,
    ) {
        let mut told = self.0.borrow_mut();
        if let Some((before, at)) = told.get(&key) {
            let wait = match (before == &error, &error) {
                (true, None) => return,
                (true, Some(_)) => AGAIN,
                (false, _) => PAUSE,
            };
            if now.saturating_duration_since(*at) < wait {
                return;
            }
        }
        if tell(error.clone()) {
            told.insert(key, (error, now));
        }
    }

    /// Forgets the things unless `stays` is true of them.
    pub(super) fn retain(&self, stays: impl Fn(&K) -> bool) {
        self.0.borrow_mut().retain(|key, _| stays(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_at_once_and_then_seldom() {
        let (told, start) = (Told::default(), Instant::now());
        let at = |seconds: u64, error: Option<&str>| {
            let mut said = false;
            let now = start + Duration::from_secs(seconds);
            told.tell("pg", error.map(str::to_owned), now, |_| {
                said = true;
                true
            });
            said
        };
        assert!(at(0, Some("refused")));
        assert!(!at(0, None), "changes have a rate");
        assert!(!at(29, Some("refused")));
        assert!(at(30, Some("refused")));
        assert!(at(31, Some("silent")));
        assert!(at(32, None));
        assert!(!at(99, None), "that all is well is told once");
    }

    #[test]
    fn a_notice_without_room_is_told_later() {
        let (told, now) = (Told::default(), Instant::now());
        told.tell("pg", None, now, |_| false);
        let mut said = false;
        told.tell("pg", None, now, |_| {
            said = true;
            true
        });
        assert!(said);
    }
}
