//! What a connection may use, and what it used: meters, each shared by all connections of one
//! identity.
//!
//! A meter polices both ways, what its connections send into the relay and what is delivered to
//! them: a packet beyond a rate is dropped, never delayed. It outlives its last connection until its
//! buckets are full again, so that coming back gains nothing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use crate::{
    police::Police,
    volume::{Volume, VolumeBoard},
};

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

#[derive(Debug)]
struct Meter {
    id: u64,
    rates: Rates,
    from: Option<Police>,
    to: Option<Police>,
    volume: Arc<Volume>,
    connections: usize,
}

impl Meter {
    /// Whether it holds nothing that a new one would not.
    fn is_spent(&mut self, now: Instant) -> bool {
        self.connections == 0
            && self.from.as_mut().is_none_or(|police| police.is_full(now))
            && self.to.as_mut().is_none_or(|police| police.is_full(now))
    }
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
    /// Those without a connection, whose buckets are not full yet.
    idle: BTreeSet<usize>,
    board: Arc<VolumeBoard>,
}

impl Meters {
    /// No meters; volumes will be read from `board`.
    pub fn new(board: Arc<VolumeBoard>) -> Self {
        Self {
            slots: Vec::new(),
            by_id: HashMap::new(),
            free: Vec::new(),
            idle: BTreeSet::new(),
            board,
        }
    }

    /// Adds a connection to the meter `id`, made if need be, and sets its rates. Only a new meter
    /// begins with full buckets.
    pub fn attach(&mut self, id: u64, rates: Rates, now: Instant) -> MeterIndex {
        let slot = match self.by_id.get(&id) {
            Some(slot) => *slot,
            None => self.insert(id),
        };
        if let Some(meter) = &mut self.slots[slot] {
            meter.connections += 1;
            if meter.rates != rates {
                meter.rates = rates;
                meter.from = Police::changed(meter.from, rates, now);
                meter.to = Police::changed(meter.to, rates, now);
            }
        }
        self.idle.remove(&slot);
        MeterIndex(slot)
    }

    fn insert(&mut self, id: u64) -> usize {
        let meter = Meter {
            id,
            rates: Rates::default(),
            from: None,
            to: None,
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

    /// Takes a connection from its meter, which ends with the last one or, if its buckets are not
    /// full, at a later [`sweep`](Self::sweep).
    pub fn detach(&mut self, index: MeterIndex, now: Instant) {
        let Some(Some(meter)) = self.slots.get_mut(index.0) else {
            return;
        };
        meter.connections -= 1;
        if meter.is_spent(now) {
            self.end(index.0);
        } else if meter.connections == 0 {
            self.idle.insert(index.0);
        }
    }

    /// Ends the meters without a connection whose buckets are full again.
    pub fn sweep(&mut self, now: Instant) {
        for slot in std::mem::take(&mut self.idle) {
            if self.slots[slot].as_mut().is_some_and(|meter| !meter.is_spent(now)) {
                self.idle.insert(slot);
            } else {
                self.end(slot);
            }
        }
    }

    fn end(&mut self, slot: usize) {
        if let Some(meter) = self.slots[slot].take() {
            meter.volume.end();
            self.by_id.remove(&meter.id);
            self.free.push(slot);
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
        assert_eq!(drain(&mut meters), 0, "nor does another rate");
        meters.attach(7, rates(0, 0), now);
        assert_eq!(drain(&mut meters), 20);
    }

    #[test]
    fn other_rates_keep_how_full_the_buckets_are() {
        let (mut meters, _) = meters();
        let now = Instant::now();
        let who = meters.attach(1, rates(0, 64), now);
        let drain =
            |m: &mut Meters| (0..99).filter(|_| m.admit(Some(who), None, SIZE, now)).count();
        assert!((0..8).all(|_| meters.admit(Some(who), None, SIZE, now)));
        meters.attach(1, rates(0, 128), now);
        assert_eq!(drain(&mut meters), 16, "half of 32");
        // What it lacks of a packet larger than the bucket is no debt of the new rate.
        meters.attach(1, rates(100, 0), now);
        assert!(meters.admit(Some(who), None, 65_535, now));
        meters.attach(1, rates(100_000, 0), now);
        assert!(meters.admit(Some(who), None, SIZE, now + Duration::from_millis(11)));
    }

    #[test]
    fn coming_back_gains_nothing_and_a_full_meter_is_forgotten() {
        let (mut meters, board) = meters();
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut passed = 0;
        for turn in 0..20 {
            let who = meters.attach(1, rates(0, 8), at(turn));
            passed += (0..20).filter(|_| meters.admit(Some(who), None, SIZE, at(turn))).count();
            meters.detach(who, at(turn));
            meters.sweep(at(turn));
        }
        assert_eq!(passed, 8);
        assert_eq!(meters.attach(2, rates(0, 0), at(20)), MeterIndex(1), "its place is taken");
        meters.sweep(at(900));
        assert_eq!(meters.slots.iter().flatten().count(), 2);
        meters.sweep(at(1_100));
        assert_eq!(meters.slots.iter().flatten().count(), 1);
        assert!(meters.idle.is_empty());
        meters.detach(MeterIndex(1), at(1_200));
        assert_eq!(meters.slots.iter().flatten().count(), 0, "one that is full ends at once");
        assert_eq!(board.take(), []);
        assert!(meters.by_id.is_empty());
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
        meters.detach(a, now);
        assert_eq!(board.take(), [(1, 5, 0)]);
        assert_eq!(meters.attach(3, rates(0, 0), now), a, "its place is used again");
        meters.moved(Some(a), None, 1);
        assert_eq!(board.take(), [(3, 1, 0)]);
    }
}
