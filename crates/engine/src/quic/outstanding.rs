//! Bounds of the packets that a peer leaves unacknowledged.
//!
//! noq keeps its sent packets in an array from the oldest outstanding one to the newest, and
//! searches that array for each packet that needs no acknowledgement. A peer that takes packets,
//! acknowledges none and asks for acknowledgements itself makes the array longer for ever.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use noq::Connection;
use noq_proto::{
    PathId, RttEstimator,
    congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig},
};

/// Packets sent since the oldest outstanding one beyond which a peer may not stay silent.
const MAX_PACKETS: u64 = 5_000;
/// The time for which it may stay silent then.
const MAX_SILENCE: Duration = Duration::from_secs(3);

/// Makes the usual congestion control, which sees every packet and every acknowledgement anyway.
#[derive(Debug, Default)]
pub(crate) struct Factory(Arc<CubicConfig>);

#[derive(Clone, Debug)]
struct Watched {
    cubic: Cubic,
    outstanding: Outstanding,
}

/// The packets of one path that a peer has not acknowledged.
#[derive(Clone, Copy, Debug, Default)]
struct Outstanding {
    /// The oldest packet that asks for an acknowledgement, and the moment it was sent. Earlier ones
    /// are acknowledged or lost.
    oldest: Option<(u64, Instant)>,
    /// The newest one that asks for it.
    last: Option<(u64, Instant)>,
    /// The newest packet of all.
    newest: u64,
}

impl Outstanding {
    #[inline]
    fn sent_eliciting(&mut self, pn: u64, now: Instant) {
        self.last = Some((pn, now));
        self.oldest = self.oldest.or(self.last);
    }

    /// Packets were acknowledged, up to `largest` so far. All packets before it are acknowledged or
    /// lost; none is outstanding without bytes `in_flight`.
    #[inline]
    fn acknowledged(&mut self, largest: Option<u64>, in_flight: u64) {
        let Some((oldest, _)) = self.oldest else {
            return;
        };
        if in_flight == 0 {
            self.oldest = None;
        } else if largest.is_some_and(|largest| largest >= oldest) {
            self.oldest = self.last.filter(|(last, _)| Some(*last) > largest);
        }
    }

    fn too_much(&self, now: Instant) -> bool {
        self.oldest.is_some_and(|(oldest, since)| {
            self.newest.saturating_sub(oldest) > MAX_PACKETS
                && now.saturating_duration_since(since) >= MAX_SILENCE
        })
    }
}

/// Whether a peer was sent more than it may leave unacknowledged.
pub(crate) fn too_much(connection: &Connection, now: Instant) -> bool {
    connection
        .congestion_state(PathId::ZERO)
        .and_then(|state| state.into_any().downcast::<Watched>().ok())
        .is_some_and(|watched| watched.outstanding.too_much(now))
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Cubic::new(self.0.clone(), now, current_mtu);
        Box::new(Watched { cubic, outstanding: Outstanding::default() })
    }
}

impl Controller for Watched {
    fn on_sent(&mut self, now: Instant, bytes: u64, largest_pn: u64) {
        self.outstanding.newest = largest_pn;
        self.cubic.on_sent(now, bytes, largest_pn);
    }

    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        self.outstanding.sent_eliciting(pn, now);
        self.cubic.on_packet_sent(now, bytes, pn);
    }

    fn on_cwnd_limited(&mut self) {
        self.cubic.on_cwnd_limited();
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        pn: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.cubic.on_ack(now, sent, bytes, pn, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.outstanding.acknowledged(largest_packet_num_acked, in_flight);
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        is_ecn: bool,
        lost_bytes: u64,
        largest_lost_pn: u64,
    ) {
        self.cubic.on_congestion_event(
            now,
            sent,
            is_persistent_congestion,
            is_ecn,
            lost_bytes,
            largest_lost_pn,
        );
    }

    fn on_packet_lost(&mut self, lost_bytes: u16, pn: u64, now: Instant) {
        self.cubic.on_packet_lost(lost_bytes, pn, now);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.cubic.on_spurious_congestion_event();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn on_ack_frequency_update(&mut self, threshold: u64, max_ack_delay: Duration) {
        self.cubic.on_ack_frequency_update(threshold, max_ack_delay);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets sent at moments in seconds; the first number names one that asks for an
    /// acknowledgement.
    struct Path(Outstanding, Instant);

    impl Path {
        fn new() -> Self {
            Self(Outstanding::default(), Instant::now())
        }

        fn ask(&mut self, pn: u64, second: u64) {
            self.0.sent_eliciting(pn, self.1 + Duration::from_secs(second));
            self.0.newest = pn;
        }

        fn too_much(&self, second: u64) -> bool {
            self.0.too_much(self.1 + Duration::from_secs(second))
        }
    }

    #[test]
    fn both_are_needed_packets_and_time() {
        let mut path = Path::new();
        path.ask(10, 0);
        path.0.newest = 10 + MAX_PACKETS;
        assert!(!path.too_much(100));
        path.0.newest += 1;
        assert!(!path.too_much(2));
        assert!(path.too_much(3));
    }

    #[test]
    fn nothing_that_asks_for_an_acknowledgement_is_nothing_outstanding() {
        let mut path = Path::new();
        path.0.newest = 1_000_000;
        assert!(!path.too_much(100));
        path.ask(1_000_001, 0);
        path.0.acknowledged(Some(1_000_001), 0);
        path.0.newest = 2_000_000;
        assert!(!path.too_much(100));
        // Of the handshake, whose packets have numbers of their own.
        path.ask(2_000_007, 0);
        path.0.acknowledged(Some(3), 0);
        path.0.newest = 3_000_000;
        assert!(!path.too_much(100));
    }

    #[test]
    fn a_peer_that_acknowledges_one_old_packet_after_the_other_is_no_better() {
        let mut path = Path::new();
        (0..20).for_each(|pn| path.ask(pn, 0));
        path.0.newest = 6_000;
        path.0.acknowledged(Some(0), 1);
        assert!(path.too_much(3));
        path.0.acknowledged(Some(18), 1);
        assert!(path.too_much(3));
        // Its last one takes all before it along.
        path.ask(5_999, 2);
        path.0.newest = 6_000;
        path.0.acknowledged(Some(19), 1);
        assert!(!path.too_much(4));
    }

    #[test]
    fn acknowledgements_of_old_packets_again_change_nothing() {
        let mut path = Path::new();
        path.ask(5, 0);
        path.0.newest = 6_000;
        path.0.acknowledged(Some(4), 1);
        assert!(path.too_much(3));
    }
}
