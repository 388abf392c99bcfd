//! The share of the engine thread for handshakes: packets of established connections come first.
//!
//! The work of accepting an attempt, and of every driver's turn during its handshake, is measured.
//! After a slice of such work the next attempts and packets of handshakes wait (see `lane.rs`)
//! until the thread has looked at its sockets and has nothing else to do, or for four times the
//! work: an idle thread spends all its time on handshakes, a busy one a fifth.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore},
    task::yield_now,
    time::timeout,
};

/// Work after which packets come first. A turn is not cut short, so the last one may exceed this.
const SLICE: Duration = Duration::from_millis(1);
/// The pause after it while the thread is never idle, as a multiple of the work.
const PAUSE: u32 = 4;

/// The rest of the present slice, and the tasks that wait for the next one.
///
/// Used by one thread; it is `Sync` since noq wants that of what its sockets and runtime refer to.
#[derive(Debug)]
pub(crate) struct HandshakeBudget {
    /// Nanoseconds of this slice that are used.
    used: AtomicU64,
    used_up: Notify,
    renewed: Notify,
    idle: Notify,
    pausing: AtomicBool,
    /// Attempts in the order in which they came.
    attempts: Semaphore,
}

impl Default for HandshakeBudget {
    fn default() -> Self {
        Self {
            used: AtomicU64::default(),
            used_up: Notify::new(),
            renewed: Notify::new(),
            idle: Notify::new(),
            pausing: AtomicBool::default(),
            attempts: Semaphore::new(1),
        }
    }
}

impl HandshakeBudget {
    /// Waits while the slice is used up.
    pub(crate) async fn ready(&self) {
        while self.used() >= SLICE {
            self.renewed.notified().await;
        }
    }

    /// The same, one attempt after the other.
    pub(crate) async fn ready_for_attempt(&self) {
        let _turn = self.attempts.acquire().await;
        self.ready().await;
    }

    /// Measures the work until the answer is dropped.
    pub(crate) fn measure(&self) -> Measured<'_> {
        Measured { budget: self, begun: Instant::now() }
    }

    /// Notes that the thread has nothing to do.
    pub(crate) fn on_idle(&self) {
        if self.pausing.load(Relaxed) {
            self.idle.notify_one();
        }
    }

    /// Gives out one slice after the other, for as long as the engine runs.
    pub(crate) async fn run(&self) {
        loop {
            while self.used() < SLICE {
                self.used_up.notified().await;
            }
            // It goes on after a look at the sockets: the thread is idle once the packets of the
            // slice are handled.
            yield_now().await;
            self.pausing.store(true, Relaxed);
            let _ = timeout(self.used() * PAUSE, self.idle.notified()).await;
            self.pausing.store(false, Relaxed);
            self.used.store(0, Relaxed);
            self.renewed.notify_waiters();
        }
    }

    fn used(&self) -> Duration {
        Duration::from_nanos(self.used.load(Relaxed))
    }
}

/// Work that is being measured.
#[derive(Debug)]
pub(crate) struct Measured<'a> {
    budget: &'a HandshakeBudget,
    begun: Instant,
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        let used = self.budget.used() + self.begun.elapsed();
        self.budget.used.store(used.as_nanos() as u64, Relaxed);
        if used >= SLICE {
            self.budget.used_up.notify_one();
        }
    }
}

/// A handshake under way, for as long as this is held.
#[derive(Debug, Default)]
pub(crate) struct Handshake(Rc<()>);

/// A driver's share in the handshake it was spawned for.
#[derive(Clone, Debug)]
pub(crate) struct UnderWay {
    budget: Arc<HandshakeBudget>,
    handshake: Weak<()>,
}

impl UnderWay {
    /// Measures a turn of the driver; `None` once the handshake is over.
    pub(crate) fn measure(&self) -> Option<Measured<'_>> {
        (self.handshake.strong_count() > 0).then(|| self.budget.measure())
    }
}

thread_local! {
    static ACCEPTING: RefCell<Option<UnderWay>> = const { RefCell::new(None) };
}

/// Calls `accept` and measures it; the driver that it spawns belongs to `handshake`.
pub(crate) fn accepting<T>(
    budget: &Arc<HandshakeBudget>,
    handshake: &Handshake,
    accept: impl FnOnce() -> T,
) -> T {
    let under_way = UnderWay { budget: budget.clone(), handshake: Rc::downgrade(&handshake.0) };
    ACCEPTING.set(Some(under_way));
    let _measured = budget.measure();
    let accepted = accept();
    ACCEPTING.take();
    accepted
}

/// The handshake that a driver which is spawned now belongs to; `None` for every other task.
pub(crate) fn take_accepting() -> Option<UnderWay> {
    ACCEPTING.take()
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::quic::driver::yield_once;

    /// The wait of a handshake for the next slice after work of this length, on a thread like the
    /// engine's.
    fn wait_after(used: Duration, busy: bool) -> Duration {
        let budget = Arc::<HandshakeBudget>::default();
        let idle = budget.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .on_thread_park(move || idle.on_idle())
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async move {
            let slices = budget.clone();
            spawn_local(async move { slices.run().await });
            if busy {
                spawn_local(async {
                    loop {
                        yield_once().await;
                    }
                });
            }
            let begun = Instant::now();
            drop(Measured { budget: &budget, begun: begun - used });
            budget.ready().await;
            begun.elapsed()
        })
    }

    #[test]
    fn a_thread_with_nothing_else_to_do_goes_on() {
        assert!(wait_after(Duration::from_secs(1000), false) < Duration::from_secs(100));
    }

    #[test]
    fn a_busy_thread_is_left_four_fifths_of_its_time() {
        assert!(wait_after(Duration::from_millis(50), true) >= Duration::from_millis(200));
    }

    #[test]
    fn nothing_waits_before_a_slice_is_used_up() {
        assert!(wait_after(Duration::ZERO, true) < SLICE * 1000);
    }

    #[test]
    fn attempts_go_on_in_the_order_in_which_they_came() {
        let budget = Rc::new(HandshakeBudget::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let order = Rc::new(RefCell::new(Vec::new()));
        LocalSet::new().block_on(&runtime, async {
            let slices = budget.clone();
            spawn_local(async move { slices.run().await });
            let attempt = async |n: u32| {
                budget.ready_for_attempt().await;
                drop(Measured { budget: &budget, begun: Instant::now() - SLICE });
                order.borrow_mut().push(n);
            };
            tokio::join!(attempt(0), attempt(1), attempt(2), attempt(3));
        });
        assert_eq!(*order.borrow(), [0, 1, 2, 3]);
    }
}
