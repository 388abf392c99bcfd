//! Events up to the control plane: a queue and an eventfd as its doorbell.

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::event::{EventfdFlags, eventfd};

use crate::{
    boundary::{counters::Counters, event::Event},
    error::EngineError,
};

/// The most payload bytes of signaling that wait: a frame is larger than any other event by far.
const MAX_SIGNAL_BYTES: usize = 4 * 1024 * 1024;
/// The most bytes of requests to join that wait: more than the joins of one moment have.
const MAX_JOIN_BYTES: usize = 1024 * 1024;

/// The queue of events and its doorbell.
///
/// The queue and the flag that says whether the doorbell has rung are under one mutex: with the
/// flag apart, a push between the reader's last look and its reset of the flag is never announced.
#[derive(Debug)]
pub struct Outbox {
    inner: Mutex<Inner>,
    doorbell: OwnedFd,
    capacity: usize,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Event>,
    rung: bool,
    /// Bytes of signaling and of requests to join in the queue.
    bytes: Bytes,
}

/// Bytes of the events that may be large, by kind: one kind must not keep the other out.
#[derive(Clone, Copy, Debug, Default)]
struct Bytes {
    signal: usize,
    join: usize,
}

impl Bytes {
    fn of(event: &Event) -> Self {
        let (mut signal, mut join) = (0, 0);
        match event {
            Event::Signal { payload, .. } => signal = payload.len(),
            Event::JoinRequest { certificate, data, .. } => {
                join = data.len() + certificate.as_ref().map_or(0, Vec::len);
            }
            _ => {}
        }
        Self { signal, join }
    }

    /// Whether an event of so many bytes has room beside these.
    fn admits(self, more: Self) -> bool {
        (more.signal == 0 || self.signal + more.signal <= MAX_SIGNAL_BYTES)
            && (more.join == 0 || self.join + more.join <= MAX_JOIN_BYTES)
    }

    fn add(&mut self, more: Self) {
        self.signal += more.signal;
        self.join += more.join;
    }

    fn remove(&mut self, less: Self) {
        self.signal -= less.signal;
        self.join -= less.join;
    }
}

impl Outbox {
    /// An empty outbox. `capacity` bounds what [`Outbox::offer`] lets in.
    ///
    /// # Errors
    /// When the system has no eventfd to give.
    pub fn new(capacity: usize, counters: Arc<Counters>) -> Result<Self, EngineError> {
        let doorbell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|e| EngineError::of("eventfd", e))?;
        Ok(Self { inner: Mutex::default(), doorbell, capacity, counters })
    }

    /// The eventfd; readable while events wait.
    pub fn fd(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    /// Adds an event that must not be lost: beginnings and ends, whose number the connection limit
    /// bounds.
    pub fn push(&self, event: Event) {
        self.put(&mut self.lock(), event);
    }

    /// Adds an event that a peer can cause at will; `false`, and nothing added, when full.
    pub fn offer(&self, event: Event) -> bool {
        let mut inner = self.lock();
        let room = inner.queue.len() < self.capacity && inner.bytes.admits(Bytes::of(&event));
        if room {
            self.put(&mut inner, event);
        }
        room
    }

    /// Whether so many events wait that new connections should wait, too.
    pub fn congested(&self) -> bool {
        self.lock().queue.len() >= self.capacity / 2
    }

    /// Takes up to `max` events, oldest first. The doorbell falls silent when none is left.
    pub fn drain(&self, max: usize) -> Vec<Event> {
        let mut inner = self.lock();
        let n = max.min(inner.queue.len());
        let events: Vec<Event> = inner.queue.drain(..n).collect();
        events.iter().for_each(|event| inner.bytes.remove(Bytes::of(event)));
        if inner.queue.is_empty() && inner.rung {
            inner.rung = false;
            // Cannot fail while the flag says it has rung, and only this resets it.
            let _ = rustix::io::read(&self.doorbell, &mut [0; 8]);
        }
        self.counters.outbox_depth.set(inner.queue.len() as u64);
        events
    }

    fn put(&self, inner: &mut Inner, event: Event) {
        inner.bytes.add(Bytes::of(&event));
        inner.queue.push_back(event);
        let depth = inner.queue.len() as u64;
        self.counters.outbox_depth.set(depth);
        if depth > self.counters.outbox_high_water.get() {
            self.counters.outbox_high_water.set(depth);
        }
        if !inner.rung {
            inner.rung = true;
            let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::boundary::event::ConnId;

    fn event() -> Event {
        Event::Failed { reason: String::new() }
    }

    fn readable(outbox: &Outbox, wait: Duration) -> bool {
        let mut fds = [PollFd::new(&outbox.doorbell, PollFlags::IN)];
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: 0 };
        poll(&mut fds, Some(&wait)).unwrap() == 1
    }

    #[test]
    fn the_doorbell_is_readable_exactly_while_events_wait() {
        let outbox = Outbox::new(4, Arc::default()).unwrap();
        assert!(!readable(&outbox, Duration::ZERO));
        outbox.push(event());
        outbox.push(event());
        assert!(readable(&outbox, Duration::ZERO));
        assert_eq!(outbox.drain(1).len(), 1);
        assert!(readable(&outbox, Duration::ZERO));
        assert_eq!(outbox.drain(9).len(), 1);
        assert!(!readable(&outbox, Duration::ZERO));
    }

    #[test]
    fn offers_are_bounded_and_pushes_are_not() {
        let outbox = Outbox::new(2, Arc::default()).unwrap();
        assert!(outbox.offer(event()));
        assert!(outbox.congested());
        assert!(outbox.offer(event()));
        assert!(!outbox.offer(event()));
        outbox.push(event());
        assert_eq!(outbox.drain(9).len(), 3);
    }

    #[test]
    fn signaling_is_bounded_in_bytes_beside_everything_else() {
        let outbox = Outbox::new(1_000, Arc::default()).unwrap();
        let signal = || Event::Signal { conn: ConnId(1), payload: vec![0; 64 * 1024].into() };
        assert!((0..64).all(|_| outbox.offer(signal())));
        assert!(!outbox.offer(signal()));
        assert!(outbox.offer(event()));
        assert_eq!(outbox.drain(1).len(), 1);
        assert!(outbox.offer(signal()) && !outbox.offer(signal()));
    }

    #[test]
    fn requests_to_join_are_bounded_in_bytes_beside_signaling() {
        let outbox = Outbox::new(1_000, Arc::default()).unwrap();
        let request = || Event::JoinRequest {
            request: 1,
            remote: ([192, 0, 2, 1], 1).into(),
            certificate: Some(vec![0; 4 * 1024]),
            data: vec![0; 12 * 1024],
        };
        assert!((0..64).all(|_| outbox.offer(request())));
        assert!(!outbox.offer(request()));
        assert!(outbox.offer(Event::Signal { conn: ConnId(1), payload: vec![0; 999].into() }));
        assert_eq!(outbox.drain(1).len(), 1);
        assert!(outbox.offer(request()) && !outbox.offer(request()));
    }

    /// No wake-up is lost: the reader sleeps on the doorbell alone and still sees every event.
    #[test]
    fn every_event_is_announced_under_contention() {
        const EACH: usize = 20_000;
        let outbox = Arc::new(Outbox::new(usize::MAX, Arc::default()).unwrap());
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let outbox = outbox.clone();
                thread::spawn(move || (0..EACH).for_each(|_| outbox.push(event())))
            })
            .collect();
        let mut seen = 0;
        while seen < 2 * EACH {
            assert!(readable(&outbox, Duration::from_secs(30)), "a wake-up was lost");
            seen += outbox.drain(7).len();
        }
        writers.into_iter().for_each(|w| w.join().unwrap());
        assert_eq!(seen, 2 * EACH);
    }
}
