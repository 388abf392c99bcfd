//! The packets that must never reach a server's QUIC.

use std::{sync::Arc, time::Instant};

use noq_udp::RecvMeta;

use crate::{bucket::Bucket, counters::Counters, endpoint::CID_LEN, socket::VERSION};

/// A packet smaller than this starts nothing and is no ground for Version Negotiation
/// (RFC 9000 sections 5.2.2 and 14.1).
const MIN_INITIAL: usize = 1200;
/// The smallest packet of a connection: first byte, our connection id, and what header protection
/// samples (RFC 9001 section 5.4.2). Answering less with a stateless reset would be of no use to its
/// sender and use up the resets that others need.
const MIN_SHORT: usize = 1 + CID_LEN + 4 + 16;
/// Version Negotiation packets sent in a second.
const NEGOTIATIONS_PER_SECOND: u32 = 100;

/// What a server's packets must pass before QUIC sees them.
#[derive(Debug)]
pub(crate) struct Gate {
    negotiations: Bucket,
    counters: Arc<Counters>,
}

impl Gate {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        let negotiations = Bucket::new(NEGOTIATIONS_PER_SECOND, NEGOTIATIONS_PER_SECOND);
        Self { negotiations, counters }
    }

    /// Removes and counts the segments of one receive that QUIC must not see.
    pub(crate) fn filter(
        &mut self,
        buffer: &mut [u8],
        meta: &mut RecvMeta,
        now: impl Fn() -> Instant,
    ) {
        let stride = meta.stride.max(1);
        let (mut read, mut write) = (0, 0);
        while read < meta.len {
            let end = (read + stride).min(meta.len);
            if self.admits(&buffer[read..end], &now) {
                if write != read {
                    buffer.copy_within(read..end, write);
                }
                write += end - read;
            }
            read = end;
        }
        meta.len = write;
    }

    /// Whether a packet may pass: any of version 1, any that can be of a connection, and a measured
    /// few that ask for Version Negotiation. Counts one that may not.
    fn admits(&mut self, packet: &[u8], now: &impl Fn() -> Instant) -> bool {
        let (passes, dropped) = match packet {
            [first, version @ ..] if first & 0x80 != 0 => {
                let passes = match version.first_chunk().map(|v| u32::from_be_bytes(*v)) {
                    Some(VERSION) => true,
                    Some(0) | None => false,
                    _ => packet.len() >= MIN_INITIAL && self.negotiations.take(now()),
                };
                (passes, &self.counters.udp_dropped_version)
            }
            _ => (packet.len() >= MIN_SHORT, &self.counters.udp_dropped_too_small),
        };
        if !passes {
            dropped.add(1);
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate { negotiations: Bucket::new(2, 2), counters: Arc::default() }
    }

    fn long(version: u32, len: usize) -> Vec<u8> {
        let mut packet = vec![0xC0];
        packet.extend(version.to_be_bytes());
        packet.resize(len, 0);
        packet
    }

    #[test]
    fn small_packets_of_other_versions_are_not_answered() {
        let (mut gate, now) = (gate(), Instant::now());
        let mut admits = |packet: &[u8]| gate.admits(packet, &|| now);
        assert!(admits(&long(1, 1200)) && admits(&long(1, 30)));
        assert!(!admits(&long(0xFACE_B00C, 1199)));
        assert!(!admits(&long(0, 1200)), "Version Negotiation sent to a server");
        assert!(!admits(&[0xC0, 0, 0, 0]), "a header cut short");
        assert!(admits(&long(2, 1200)) && admits(&long(2, 1200)));
        assert!(!admits(&long(2, 1200)), "beyond the rate");
        assert_eq!(gate.counters.udp_dropped_version.get(), 4);
    }

    #[test]
    fn what_is_too_small_for_a_connection_is_not_answered() {
        let (mut gate, now) = (gate(), Instant::now());
        // A hole-punch probe of 26 bytes looks like a short header.
        for (len, passes) in [(1, false), (26, false), (40, false), (41, true), (1200, true)] {
            assert_eq!(gate.admits(&vec![0x5A; len], &|| now), passes, "{len} bytes");
        }
        assert_eq!(gate.counters.udp_dropped_too_small.get(), 3);
    }

    #[test]
    fn a_batch_keeps_its_good_segments_in_order() {
        let bad = long(7, 100);
        let good = |mark: u8| {
            let mut packet = long(VERSION, 100);
            packet[50] = mark;
            packet
        };
        let mut buffer: Vec<u8> =
            [bad.clone(), good(1), bad, good(2), good(3)[..60].into()].concat();
        let mut meta = RecvMeta::default();
        (meta.len, meta.stride) = (buffer.len(), 100);
        let mut gate = gate();
        gate.filter(&mut buffer, &mut meta, Instant::now);
        assert_eq!((meta.len, gate.counters.udp_dropped_version.get()), (260, 2));
        let marks: Vec<u8> = buffer[..260].chunks(100).map(|packet| packet[50]).collect();
        assert_eq!(marks, [1, 2, 3]);
    }
}
