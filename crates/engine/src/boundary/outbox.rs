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
    /// Payload bytes of signaling in the queue.
    signal_bytes: usize,
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
        let signal = signal_bytes(&event);
        let room = inner.queue.len() < self.capacity
            && (signal == 0 || inner.signal_bytes + signal <= MAX_SIGNAL_BYTES);
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
        inner.signal_bytes -= events.iter().map(signal_bytes).sum::<usize>();
        if inner.queue.is_empty() && inner.rung {
            inner.rung = false;
            // Cannot fail while the flag says it has rung, and only this resets it.
            let _ = rustix::io::read(&self.doorbell, &mut [0; 8]);
        }
        self.counters.outbox_depth.set(inner.queue.len() as u64);
        events
    }

    fn put(&self, inner: &mut Inner, event: Event) {
        inner.signal_bytes += signal_bytes(&event);
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

fn signal_bytes(event: &Event) -> usize {
    match event {
        Event::Signal { payload, .. } => payload.len(),
        _ => 0,
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
