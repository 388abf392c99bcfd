//! The usage of each limiter: counted on the engine thread, read by the control plane through a
//! board.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::boundary::counters::Counter;

/// The usage of a limiter's connections.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) from: Counter,
    pub(crate) to: Counter,
    /// Set when the limiter is gone and its counters are final.
    ended: AtomicBool,
}

impl Usage {
    /// Declares the counters final.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// The usage of every limiter, shared with the control plane. Locked when a limiter appears and when it
/// is read, never for a packet.
#[derive(Debug, Default)]
pub struct UsageBoard(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    id: u64,
    usage: Arc<Usage>,
    read: (u64, u64),
}

impl UsageBoard {
    pub(crate) fn add(&self, id: u64) -> Arc<Usage> {
        let usage = Arc::new(Usage::default());
        let entry = Entry { id, usage: usage.clone(), read: (0, 0) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        usage
    }

    /// For each limiter that moved since the last call: its id, bytes from and bytes to its
    /// connections. A finished limiter appears one last time; the same id can appear twice in one
    /// result.
    pub fn take(&self) -> Vec<(u64, u64, u64)> {
        let mut moved = Vec::new();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|entry| {
            // Before the counters: their values after it are final.
            let ended = entry.usage.ended.load(Ordering::Acquire);
            let now = (entry.usage.from.get(), entry.usage.to.get());
            let before = std::mem::replace(&mut entry.read, now);
            if now != before {
                moved.push((entry.id, now.0.wrapping_sub(before.0), now.1.wrapping_sub(before.1)));
            }
            !ended
        });
        moved
    }
}
