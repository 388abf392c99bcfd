//! The packets of one socket that wait for the end of a turn, or for room in the socket.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use noq_udp::{EcnCodepoint, Transmit};

/// Bytes in one system call; the kernel takes no UDP payload above 65,507.
const MAX_BYTES: usize = 65_000;

/// Packets of one size to one peer, which leave in one system call.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    head: Option<Head>,
    bytes: Vec<u8>,
    /// It waits for the next flush.
    pub(crate) listed: bool,
    /// A task waits for room in the socket.
    pub(crate) waiting: bool,
}

/// The properties that all packets of a batch share.
#[derive(Debug)]
struct Head {
    destination: SocketAddr,
    src_ip: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    segment: usize,
}

impl Batch {
    /// Takes packets that can follow those already here: a batch is one size, but for its last
    /// packet, and one system call takes `max_segments` packets.
    pub(crate) fn append(&mut self, transmit: &Transmit<'_>, max_segments: usize) -> bool {
        let fits = self.fits(transmit, max_segments);
        if fits {
            self.bytes.extend_from_slice(transmit.contents);
        }
        fits
    }

    fn fits(&self, transmit: &Transmit<'_>, max_segments: usize) -> bool {
        let Some(head) = &self.head else {
            return false;
        };
        let len = transmit.contents.len();
        let same_size = match transmit.segment_size {
            Some(segment) => segment == head.segment,
            None => len <= head.segment,
        };
        let total = self.bytes.len() + len;
        same_size
            && self.bytes.len().is_multiple_of(head.segment)
            && total <= MAX_BYTES.min(head.segment * max_segments)
            && head.destination == transmit.destination
            && head.src_ip == transmit.src_ip
            && head.ecn == transmit.ecn
    }

    /// Begins with packets of `segment` bytes. Nothing else may be here.
    pub(crate) fn begin(&mut self, transmit: &Transmit<'_>, segment: usize) {
        self.bytes.extend_from_slice(transmit.contents);
        let Transmit { destination, src_ip, ecn, .. } = *transmit;
        self.head = Some(Head { destination, src_ip, ecn, segment });
    }

    /// Gives the packets to `send`, and lets go of them if that takes them.
    pub(crate) fn send(
        &mut self,
        send: impl FnOnce(&Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(Head { destination, src_ip, ecn, segment }) = self.head else {
            return Ok(());
        };
        send(&Transmit {
            destination,
            src_ip,
            ecn,
            contents: &self.bytes,
            segment_size: Some(segment),
        })?;
        self.clear();
        Ok(())
    }

    /// Packets that wait here.
    pub(crate) fn len(&self) -> usize {
        self.head.as_ref().map_or(0, |head| self.bytes.len().div_ceil(head.segment))
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.head = None;
    }
}
