//! The ingress: a client's packets go to QUIC as they are, a server's if they pass the filter.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    num::NonZeroUsize,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use noq::{AsyncUdpSocket, UdpSender};
use noq_udp::RecvMeta;
use tokio::io::Interest;

use crate::{
    boundary::counters::Counters,
    bucket::Bucket,
    quic::{
        CID_LEN, VERSION,
        egress::{Egress, Sender},
        lane::Lane,
        udp::Udp,
    },
};

/// A packet smaller than this starts nothing and is no ground for Version Negotiation
/// (RFC 9000 sections 5.2.2 and 14.1).
const MIN_INITIAL: usize = 1200;

/// The smallest packet of a connection: first byte, our connection id, and what header protection
/// samples (RFC 9001 section 5.4.2). Answering less with a stateless reset would be of no use to its
/// sender and use up the resets that others need.
const MIN_SHORT: usize = 1 + CID_LEN + 4 + 16;

/// Receive errors tolerated in a row before the socket rests until the next wake-up.
const MAX_ERRORS_IN_A_ROW: usize = 16;

/// Version Negotiation packets sent in a second.
const NEGOTIATIONS_PER_SECOND: u32 = 100;

/// The filter of a server's packets before QUIC sees them.
#[derive(Debug)]
pub(crate) struct Ingress {
    negotiations: Bucket,
    counters: Arc<Counters>,
    /// The lane in which packets of handshakes wait.
    pub(crate) lane: Arc<Lane>,
}

impl Ingress {
    pub(crate) fn new(counters: Arc<Counters>, lane: Arc<Lane>) -> Self {
        let negotiations = Bucket::new(NEGOTIATIONS_PER_SECOND, NEGOTIATIONS_PER_SECOND);
        Self { negotiations, counters, lane }
    }

    /// Removes and counts the segments of one receive that QUIC must not see, or not yet.
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
            let segment = &buffer[read..end];
            if self.admits(segment, &now) && !self.waits(segment, meta) {
                if write != read {
                    buffer.copy_within(read..end, write);
                }
                write += end - read;
            }
            read = end;
        }
        meta.len = write;
    }

    /// Whether a packet was put into the lane: one that may carry a client's certificate, or
    /// follows one. Counts a packet without room there.
    fn waits(&self, packet: &[u8], meta: &RecvMeta) -> bool {
        let long = packet.first().is_some_and(|first| first & 0x80 != 0);
        let waits = (long && !is_lone_initial(packet))
            || (!self.lane.is_empty() && self.lane.follows(meta.addr));
        if waits && !self.lane.hold(packet, meta) {
            self.counters.udp_dropped_handshake.add(1);
        }
        waits
    }

    /// Whether a packet may pass: of version 1, possibly of a connection, or one of a measured few
    /// that ask for Version Negotiation. Counts the others.
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

/// Whether a datagram is one Initial packet and nothing behind it (RFC 9000 section 17.2.2), which
/// belongs to no later step of a handshake.
fn is_lone_initial(datagram: &[u8]) -> bool {
    fn parse(datagram: &[u8]) -> Option<bool> {
        let (header, rest) = datagram.split_at_checked(5)?;
        let (destination, rest) = rest.split_first()?;
        let (source, rest) = rest.get(usize::from(*destination)..)?.split_first()?;
        let (token, rest) = varint(rest.get(usize::from(*source)..)?)?;
        let (length, rest) = varint(rest.get(usize::try_from(token).ok()?..)?)?;
        Some(header[0] & 0x30 == 0 && length == rest.len() as u64)
    }
    parse(datagram).unwrap_or(false)
}

/// The variable-length integer (RFC 9000 section 16) at the start of `bytes`, and the rest.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let first = *bytes.first()?;
    let (value, rest) = bytes.split_at_checked(1 << (first >> 6))?;
    let value =
        value[1..].iter().fold(u64::from(first & 0x3F), |value, b| value << 8 | u64::from(*b));
    Some((value, rest))
}

/// The receiving side of a server's socket.
pub(crate) fn server(
    udp: Arc<Udp>,
    egress: Arc<Egress>,
    lane: Arc<Lane>,
) -> Box<dyn AsyncUdpSocket> {
    let ingress = Ingress::new(udp.counters.clone(), lane);
    Box::new(Receiver { udp, egress, ingress: Some(ingress) })
}

/// The receiving side of a client's socket.
pub(crate) fn client(udp: Arc<Udp>, egress: Arc<Egress>) -> Box<dyn AsyncUdpSocket> {
    Box::new(Receiver { udp, egress, ingress: None })
}

#[derive(Debug)]
struct Receiver {
    udp: Arc<Udp>,
    egress: Arc<Egress>,
    ingress: Option<Ingress>,
}

impl AsyncUdpSocket for Receiver {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        Box::pin(Sender::new(self.udp.clone(), self.egress.clone()))
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Self { udp, ingress, .. } = self;
        let counters = &udp.counters;
        if let Some(Ingress { lane, .. }) = ingress
            && !lane.is_empty()
        {
            let taken = lane.take(cx, bufs, meta);
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
        }
        for _ in 0..MAX_ERRORS_IN_A_ROW {
            if ready!(udp.io.poll_recv_ready(cx)).is_err() {
                counters.udp_recv_errors.add(1);
                continue;
            }
            let received =
                udp.io.try_io(Interest::READABLE, || udp.state.recv((&udp.io).into(), bufs, meta));
            let count = match received {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                // ICMP errors of earlier sends and the like do not end the endpoint.
                Err(e) => {
                    udp.failed(&e, &counters.udp_recv_errors);
                    continue;
                }
            };
            if ingress.is_none() {
                udp.contact.hear();
            }
            for (meta, buffer) in meta.iter_mut().zip(bufs.iter_mut()).take(count) {
                let segments = meta.len.div_ceil(meta.stride.max(1)) as u64;
                counters.udp_rx_datagrams.add(segments);
                counters.udp_rx_bytes.add(meta.len as u64);
                if meta.addr.port() == 0 {
                    counters.udp_dropped_source_port_zero.add(segments.max(1));
                    meta.len = 0;
                } else if let Some(ingress) = ingress {
                    ingress.filter(buffer, meta, Instant::now);
                } else {
                    // A client that knew this address would send from it for good, also once its
                    // host has moved to another network: the route chooses the source.
                    meta.dst_ip = None;
                }
            }
            return Poll::Ready(Ok(count));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        self.udp.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.state.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ingress() -> Ingress {
        Ingress { negotiations: Bucket::new(2, 2), ..Ingress::new(Arc::default(), Arc::default()) }
    }

    /// An Initial packet: headers as clients write them, and so many bytes behind them.
    fn initial(token: &[u8], payload: usize) -> Vec<u8> {
        let mut packet = vec![0xC0, 0, 0, 0, 1, 20];
        packet.extend([7; 20]);
        packet.push(0);
        packet.extend([0x40, token.len() as u8]);
        packet.extend(token);
        packet.extend((payload as u16 | 0x4000).to_be_bytes());
        packet.resize(packet.len() + payload, 0);
        packet
    }

    #[test]
    fn packets_of_handshakes_wait_and_those_of_their_address_behind_them() {
        let mut ingress = ingress();
        let lane = ingress.lane.clone();
        let _under_way = [1, 2].map(|port| lane.begin(([192, 0, 2, 1], port).into()));
        let mut receive = |port: u16, packet: &[u8]| {
            let mut meta = RecvMeta::default();
            meta.addr = ([192, 0, 2, 1], port).into();
            (meta.len, meta.stride) = (packet.len(), packet.len());
            ingress.filter(&mut packet.to_vec(), &mut meta, Instant::now);
            meta.len > 0
        };
        let (alone, short) = (initial(b"token", 1200), [0x40; 100]);
        let handshake = [&[0xE0], &alone[1..]].concat();
        let coalesced = [&alone[..], &handshake[..60]].concat();
        assert!(receive(1, &alone) && receive(1, &initial(b"", 1200)) && receive(1, &short));
        assert!(!receive(1, &handshake) && !receive(2, &coalesced));
        assert!(!receive(1, &short) && !receive(2, &short), "not before the handshake");
        assert!(receive(3, &short) && receive(3, &alone), "others do not wait");
        assert!(!receive(3, &handshake) && receive(3, &short), "nor behind what others forge");
    }

    proptest! {
        #[test]
        fn no_datagram_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            is_lone_initial(&bytes);
            let mut initial = initial(&bytes, 40);
            prop_assert!(is_lone_initial(&initial));
            initial.push(0);
            prop_assert!(!is_lone_initial(&initial));
            initial.truncate(bytes.len());
            is_lone_initial(&initial);
        }
    }

    fn long(version: u32, len: usize) -> Vec<u8> {
        let mut packet = vec![0xC0];
        packet.extend(version.to_be_bytes());
        packet.resize(len, 0);
        packet
    }

    #[test]
    fn small_packets_of_other_versions_are_not_answered() {
        let (mut ingress, now) = (ingress(), Instant::now());
        let mut admits = |packet: &[u8]| ingress.admits(packet, &|| now);
        assert!(admits(&long(1, 1200)) && admits(&long(1, 30)));
        assert!(!admits(&long(0xFACE_B00C, 1199)));
        assert!(!admits(&long(0, 1200)), "Version Negotiation sent to a server");
        assert!(!admits(&[0xC0, 0, 0, 0]), "a header cut short");
        assert!(admits(&long(2, 1200)) && admits(&long(2, 1200)));
        assert!(!admits(&long(2, 1200)), "beyond the rate");
        assert_eq!(ingress.counters.udp_dropped_version.get(), 4);
    }

    #[test]
    fn what_is_too_small_for_a_connection_is_not_answered() {
        let (mut ingress, now) = (ingress(), Instant::now());
        // A hole-punch probe of 26 bytes looks like a short header.
        for (len, passes) in [(1, false), (26, false), (40, false), (41, true), (1200, true)] {
            assert_eq!(ingress.admits(&vec![0x5A; len], &|| now), passes, "{len} bytes");
        }
        assert_eq!(ingress.counters.udp_dropped_too_small.get(), 3);
    }

    #[test]
    fn a_batch_keeps_its_good_segments_in_order() {
        let bad = long(7, 100);
        let good = |mark: u8| [[0x40; 50], [mark; 50]].concat();
        let mut buffer: Vec<u8> =
            [bad.clone(), good(1), bad, good(2), good(3)[..60].into()].concat();
        let mut meta = RecvMeta::default();
        (meta.len, meta.stride) = (buffer.len(), 100);
        let mut ingress = ingress();
        ingress.filter(&mut buffer, &mut meta, Instant::now);
        assert_eq!((meta.len, ingress.counters.udp_dropped_version.get()), (260, 2));
        let marks: Vec<u8> = buffer[..260].chunks(100).map(|packet| packet[50]).collect();
        assert_eq!(marks, [1, 2, 3]);
    }
}
