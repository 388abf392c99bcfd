//! The generator's own use of its core, so that a reader sees whether it was the limit and whether
//! the host was quiet.

use std::{fs, time::Instant};

/// CPU, waiting and wall time since it was made.
pub struct Usage {
    times: (u64, u64),
    wall: Instant,
}

/// Nanoseconds this thread, the only busy one of the process, has run and has waited for its core (Linux `schedstat`);
/// zeros where that is missing.
fn times() -> (u64, u64) {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let mut fields = text.split_whitespace().map(|field| field.parse().unwrap_or(0));
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

impl Usage {
    /// Start counting.
    pub fn begin() -> Self {
        Self { times: times(), wall: Instant::now() }
    }

    /// Shares of one core since `begin`, each 0.0 to 1.0: used, and waited for while another program had it.
    pub fn shares(&self) -> (f64, f64) {
        let (now, wall) = (times(), self.wall.elapsed().as_nanos() as f64);
        ((now.0 - self.times.0) as f64 / wall, (now.1 - self.times.1) as f64 / wall)
    }
}
