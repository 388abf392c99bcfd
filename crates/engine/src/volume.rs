//! What the connections of each meter moved: counted on the engine thread, read by the control plane
//! through a board.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::counters::Counter;

/// What the connections of a meter moved.
#[derive(Debug, Default)]
pub(crate) struct Volume {
    pub(crate) from: Counter,
    pub(crate) to: Counter,
    /// Set when the meter is gone: nothing more comes.
    ended: AtomicBool,
}

impl Volume {
    /// Says that what the counters hold now is final.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// Volumes of every meter, shared with the control plane. Locked when a meter appears and when it
/// is read, never for a packet.
#[derive(Debug, Default)]
pub struct VolumeBoard(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    id: u64,
    volume: Arc<Volume>,
    read: (u64, u64),
}

impl VolumeBoard {
    pub(crate) fn add(&self, id: u64) -> Arc<Volume> {
        let volume = Arc::new(Volume::default());
        let entry = Entry { id, volume: volume.clone(), read: (0, 0) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        volume
    }

    /// For each meter that moved since the last call: its id, bytes from and bytes to its
    /// connections. A meter that ended may be followed by another of its id in the same answer.
    pub fn take(&self) -> Vec<(u64, u64, u64)> {
        let mut moved = Vec::new();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|entry| {
            // Before the counters: what they say after it is final.
            let ended = entry.volume.ended.load(Ordering::Acquire);
            let now = (entry.volume.from.get(), entry.volume.to.get());
            let before = std::mem::replace(&mut entry.read, now);
            if now != before {
                moved.push((entry.id, now.0.wrapping_sub(before.0), now.1.wrapping_sub(before.1)));
            }
            !ended
        });
        moved
    }
}
