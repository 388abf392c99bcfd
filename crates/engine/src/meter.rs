//! What a connection may use, and what it used: meters, each shared by all connections of one
//! identity.
//!
//! A meter polices both ways, what its connections send into the relay and what is delivered to
//! them: a packet beyond a rate is dropped, never delayed. All of it runs on the engine thread; the
//! control plane reads the volumes through a board of counters.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::counters::Counter;

/// Seconds of its rate that a bucket holds.
const BURST_SECONDS: f64 = 0.25;
/// A bucket of bytes holds at least a packet of the usual largest size.
const MIN_BURST_BYTES: f64 = 1500.0;
/// A bucket of packets holds at least so many.
const MIN_BURST_PACKETS: f64 = 8.0;

/// Rates of a meter, each way; 0 is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes of relayed packets a second.
    pub bytes_per_second: u64,
    /// Relayed packets a second.
    pub packets_per_second: u64,
}

/// What kind of identity a connection has proved, as the control plane says with its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(usize)]
pub enum IdentityClass {
    /// The control plane has granted it nothing yet.
    #[default]
    Unregistered,
    /// It proved a certificate.
    Certificate,
    /// It has none.
    Anonymous,
}

impl IdentityClass {
    /// All classes, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Unregistered, Self::Certificate, Self::Anonymous];

    /// A stable word for metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::Certificate => "certificate",
            Self::Anonymous => "anonymous",
        }
    }
}

/// A token bucket of a rate and what it holds now.
#[derive(Clone, Copy, Debug)]
struct Tokens {
    per_second: f64,
    capacity: f64,
    level: f64,
}

impl Tokens {
    fn new(per_second: u64, least: f64) -> Self {
        if per_second == 0 {
            return Self { per_second: 0.0, capacity: f64::INFINITY, level: f64::INFINITY };
        }
        let per_second = per_second as f64;
        let capacity = (per_second * BURST_SECONDS).max(least);
        Self { per_second, capacity, level: capacity }
    }

    fn refill(&mut self, seconds: f64) {
        self.level = self.capacity.min(self.level + seconds * self.per_second);
    }
}

/// Both rates of one direction.
#[derive(Clone, Copy, Debug)]
struct Police {
    bytes: Tokens,
    packets: Tokens,
    updated: Instant,
}

impl Police {
    fn new(rates: Rates, now: Instant) -> Option<Self> {
        (rates != Rates::default()).then(|| Self {
            bytes: Tokens::new(rates.bytes_per_second, MIN_BURST_BYTES),
            packets: Tokens::new(rates.packets_per_second, MIN_BURST_PACKETS),
            updated: now,
        })
    }

    /// Whether a packet of `size` bytes may pass now. A packet larger than the bucket passes when
    /// the bucket is full, and leaves a debt.
    fn admits(&mut self, size: f64, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.updated).as_secs_f64();
        if seconds > 0.0 {
            self.updated = now;
            self.bytes.refill(seconds);
            self.packets.refill(seconds);
        }
        self.bytes.level >= size.min(self.bytes.capacity) && self.packets.level >= 1.0
    }

    fn take(&mut self, size: f64) {
        self.bytes.level -= size;
        self.packets.level -= 1.0;
    }
}

/// What the connections of a meter moved.
#[derive(Debug, Default)]
struct Volume {
    from: Counter,
    to: Counter,
    /// Set when the meter is gone: nothing more comes.
    ended: AtomicBool,
}

#[derive(Debug)]
struct Meter {
    id: u64,
    rates: Rates,
    from: Option<Police>,
    to: Option<Police>,
    volume: Arc<Volume>,
    connections: usize,
}

/// Names a live meter on the engine thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeterIndex(usize);

/// All meters of an engine thread.
#[derive(Debug)]
pub struct Meters {
    slots: Vec<Option<Meter>>,
    by_id: HashMap<u64, usize>,
    free: Vec<usize>,
    board: Arc<VolumeBoard>,
}

impl Meters {
    /// No meters; volumes will be read from `board`.
    pub fn new(board: Arc<VolumeBoard>) -> Self {
        Self { slots: Vec::new(), by_id: HashMap::new(), free: Vec::new(), board }
    }

    /// Adds a connection to the meter `id`, made if need be, and sets its rates. Full buckets are
    /// given to new rates only, so repeating a setting grants nothing.
    pub fn attach(&mut self, id: u64, rates: Rates, now: Instant) -> MeterIndex {
        let slot = match self.by_id.get(&id) {
            Some(slot) => *slot,
            None => self.insert(id, now),
        };
        if let Some(meter) = &mut self.slots[slot] {
            meter.connections += 1;
            if meter.rates != rates {
                meter.rates = rates;
                meter.from = Police::new(rates, now);
                meter.to = Police::new(rates, now);
            }
        }
        MeterIndex(slot)
    }

    fn insert(&mut self, id: u64, now: Instant) -> usize {
        let rates = Rates::default();
        let meter = Meter {
            id,
            rates,
            from: Police::new(rates, now),
            to: Police::new(rates, now),
            volume: self.board.add(id),
            connections: 0,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(meter);
        self.by_id.insert(id, slot);
        slot
    }

    /// Takes a connection from its meter; the last one ends the meter.
    pub fn detach(&mut self, index: MeterIndex) {
        let Some(Some(meter)) = self.slots.get_mut(index.0) else {
            return;
        };
        meter.connections -= 1;
        if meter.connections == 0 {
            meter.volume.ended.store(true, Ordering::Release);
            self.by_id.remove(&meter.id);
            self.slots[index.0] = None;
            self.free.push(index.0);
        }
    }

    /// Whether a packet may go from one connection to another; charges both if so.
    #[inline]
    pub fn admit(
        &mut self,
        from: Option<MeterIndex>,
        to: Option<MeterIndex>,
        size: usize,
        now: Instant,
    ) -> bool {
        if from.is_none() && to.is_none() {
            return true;
        }
        let size = size as f64;
        let admitted = self.police(from, |m| &mut m.from).is_none_or(|p| p.admits(size, now))
            && self.police(to, |m| &mut m.to).is_none_or(|p| p.admits(size, now));
        if admitted {
            if let Some(police) = self.police(from, |m| &mut m.from) {
                police.take(size);
            }
            if let Some(police) = self.police(to, |m| &mut m.to) {
                police.take(size);
            }
        }
        admitted
    }

    fn police(
        &mut self,
        index: Option<MeterIndex>,
        way: impl Fn(&mut Meter) -> &mut Option<Police>,
    ) -> Option<&mut Police> {
        way(self.slots[index?.0].as_mut()?).as_mut()
    }

    /// Counts what was delivered.
    pub fn moved(&self, from: Option<MeterIndex>, to: Option<MeterIndex>, bytes: u64) {
        if let Some(meter) = from.and_then(|i| self.slots[i.0].as_ref()) {
            meter.volume.from.add(bytes);
        }
        if let Some(meter) = to.and_then(|i| self.slots[i.0].as_ref()) {
            meter.volume.to.add(bytes);
        }
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
    fn add(&self, id: u64) -> Arc<Volume> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SIZE: usize = 1000;

    fn rates(bytes: u64, packets: u64) -> Rates {
        Rates { bytes_per_second: bytes, packets_per_second: packets }
    }

    fn meters() -> (Meters, Arc<VolumeBoard>) {
        let board = Arc::new(VolumeBoard::default());
        (Meters::new(board.clone()), board)
    }

    /// Packets admitted when one is offered each `gap` for `seconds`.
    fn offered(meters: &mut Meters, who: MeterIndex, gap: Duration, seconds: u32) -> u32 {
        let start = Instant::now();
        let count = (Duration::from_secs(seconds.into()).as_nanos() / gap.as_nanos()) as u32;
        let mut passed = 0;
        for n in 0..count {
            passed += u32::from(meters.admit(Some(who), None, SIZE, start + gap * n));
        }
        passed
    }

    #[test]
    fn ten_times_the_rate_gets_the_rate() {
        for rates in [rates(1_000_000, 0), rates(0, 1000), rates(1_000_000, 1000)] {
            let (mut meters, _) = meters();
            let who = meters.attach(1, rates, Instant::now());
            let passed = offered(&mut meters, who, Duration::from_micros(100), 20);
            assert!((20_000..=20_000 + 251).contains(&passed), "{rates:?}: {passed}");
        }
    }

    #[test]
    fn below_the_rate_everything_passes() {
        let (mut meters, _) = meters();
        let who = meters.attach(1, rates(1_000_000, 1000), Instant::now());
        assert_eq!(offered(&mut meters, who, Duration::from_micros(1001), 10), 9990);
    }

    #[test]
    fn a_rate_below_one_packet_a_second_still_passes_packets() {
        let (mut meters, _) = meters();
        let who = meters.attach(1, rates(100, 0), Instant::now());
        let passed = offered(&mut meters, who, Duration::from_millis(500), 100);
        assert!((9..=11).contains(&passed), "{passed} packets of 1000 bytes in 100 s");
    }

    #[test]
    fn connections_of_one_meter_share_and_repeating_grants_nothing() {
        let (mut meters, _) = meters();
        let now = Instant::now();
        let (a, b) = (meters.attach(7, rates(0, 8), now), meters.attach(7, rates(0, 8), now));
        assert_eq!(a, b);
        let drain = |m: &mut Meters| (0..20).filter(|_| m.admit(Some(a), None, SIZE, now)).count();
        assert_eq!(drain(&mut meters), 8);
        meters.attach(7, rates(0, 8), now);
        assert_eq!(drain(&mut meters), 0);
        meters.attach(7, rates(0, 16), now);
        assert_eq!(drain(&mut meters), 8, "another rate begins with a full bucket");
    }

    #[test]
    fn each_way_has_its_own_bucket_and_a_refused_packet_charges_nobody() {
        let (mut meters, _) = meters();
        let now = Instant::now();
        let small = meters.attach(1, rates(0, 8), now);
        let large = meters.attach(2, rates(0, 100), now);
        let passed = (0..50).filter(|_| meters.admit(Some(large), Some(small), SIZE, now)).count();
        assert_eq!(passed, 8);
        let passed = (0..50).filter(|_| meters.admit(Some(large), None, SIZE, now)).count();
        assert_eq!(passed, 25 - 8);
        assert!(meters.admit(Some(small), None, SIZE, now), "what it sends is another bucket");
    }

    #[test]
    fn extreme_rates_and_a_clock_that_stands_still_are_harmless() {
        let (mut meters, _) = meters();
        let now = Instant::now();
        let who = meters.attach(1, rates(u64::MAX, u64::MAX), now);
        assert!((0..1000).all(|_| meters.admit(Some(who), Some(who), 65_535, now)));
        assert!(meters.admit(Some(who), None, 0, now - Duration::from_secs(1)));
    }

    #[test]
    fn volumes_are_told_once_and_outlive_the_meter() {
        let (mut meters, board) = meters();
        let now = Instant::now();
        let (a, b) = (meters.attach(1, rates(0, 0), now), meters.attach(2, rates(0, 0), now));
        meters.moved(Some(a), Some(b), 10);
        assert_eq!(board.take(), [(1, 10, 0), (2, 0, 10)]);
        assert_eq!(board.take(), []);
        meters.moved(Some(a), None, 5);
        meters.detach(a);
        assert_eq!(board.take(), [(1, 5, 0)]);
        assert_eq!(meters.attach(3, rates(0, 0), now), a, "its place is used again");
        meters.moved(Some(a), None, 1);
        assert_eq!(board.take(), [(3, 1, 0)]);
    }
}
