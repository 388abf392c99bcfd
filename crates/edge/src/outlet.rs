//! Packets on their way to the relay, and how they are written.

use std::net::{IpAddr, SocketAddr};

use bytes::{Bytes, BytesMut};
use ztna_packet::{checksum, packet::protocol};

/// Bytes taken at once for packets to come.
const CHUNK: usize = 64 * 1024;
const HOP_LIMIT: u8 = 64;

/// A packet and how much of it wraps it for the relay.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The datagram.
    pub datagram: Bytes,
    /// Bytes of the service wrapper before the packet.
    pub wrapper: usize,
}

impl Outgoing {
    /// The packet without its wrapper.
    pub fn packet(&self) -> &[u8] {
        &self.datagram[self.wrapper..]
    }
}

/// Datagrams written one behind the other into shared memory.
#[derive(Debug, Default)]
pub struct Outlet {
    memory: BytesMut,
    written: Vec<Outgoing>,
}

impl Outlet {
    /// Writes one datagram: `wrapper`, then `len` bytes that `fill` is given zeroed.
    pub fn write<R>(&mut self, wrapper: &[u8], len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let total = wrapper.len() + len;
        if self.memory.capacity() < total {
            self.memory.reserve(CHUNK.max(total));
        }
        self.memory.extend_from_slice(wrapper);
        self.memory.resize(total, 0);
        let result = fill(&mut self.memory[wrapper.len()..]);
        let datagram = self.memory.split_to(total).freeze();
        self.written.push(Outgoing { datagram, wrapper: wrapper.len() });
        result
    }

    /// Writes one datagram of a packet that is there already.
    pub fn copy(&mut self, wrapper: &[u8], packet: &[u8]) {
        self.write(wrapper, packet.len(), |out| out.copy_from_slice(packet));
    }

    /// Writes a UDP packet. Returns false, with nothing written, if it is larger than `mtu` or the
    /// ends are not of one family.
    pub fn udp(
        &mut self,
        wrapper: &[u8],
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        mtu: usize,
    ) -> bool {
        let header = if from.is_ipv4() { 20 } else { 40 };
        let total = header + 8 + payload.len();
        if total > mtu || total > usize::from(u16::MAX) || from.is_ipv4() != to.is_ipv4() {
            return false;
        }
        self.write(wrapper, total, |out| {
            let length = (8 + payload.len()) as u16;
            ip_header(out, protocol::UDP, from.ip(), to.ip());
            let udp = &mut out[header..];
            udp[0..2].copy_from_slice(&from.port().to_be_bytes());
            udp[2..4].copy_from_slice(&to.port().to_be_bytes());
            udp[4..6].copy_from_slice(&length.to_be_bytes());
            udp[8..].copy_from_slice(payload);
            let pseudo = pseudo_header(from.ip(), to.ip(), protocol::UDP, length);
            let sum = match checksum::finish(checksum::sum(udp) + pseudo) {
                0 => 0xFFFF,
                sum => sum,
            };
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
        });
        true
    }

    /// Writes an echo request, by which a relay learns whom `from` belongs to. Nothing is written
    /// where the ends are not of one family.
    pub fn echo_request(&mut self, wrapper: &[u8], from: IpAddr, to: IpAddr) {
        if from.is_ipv4() != to.is_ipv4() {
            return;
        }
        let (header, transport, kind) =
            if from.is_ipv4() { (20, protocol::ICMP, 8) } else { (40, protocol::ICMPV6, 128) };
        self.write(wrapper, header + 8, |out| {
            ip_header(out, transport, from, to);
            let message = &mut out[header..];
            message[0] = kind;
            let pseudo = if from.is_ipv4() { 0 } else { pseudo_header(from, to, transport, 8) };
            let sum = checksum::finish(checksum::sum(message) + pseudo);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        });
    }

    /// Datagrams written and not yet taken, oldest first.
    pub(crate) fn written(&self) -> &[Outgoing] {
        &self.written
    }

    /// How many those are.
    pub fn len(&self) -> usize {
        self.written.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// Takes the datagrams written, oldest first.
    pub fn take(&mut self) -> impl Iterator<Item = Outgoing> + '_ {
        self.written.drain(..)
    }
}

/// Fills the IP header of `packet`, which is zeroed and as long as the packet.
fn ip_header(packet: &mut [u8], transport: u8, from: IpAddr, to: IpAddr) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = packet.len() as u16;
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            // Never fragmented, so the identification is 0 (RFC 6864).
            packet[6] = 0x40;
            packet[8] = HOP_LIMIT;
            packet[9] = transport;
            packet[12..16].copy_from_slice(&from.octets());
            packet[16..20].copy_from_slice(&to.octets());
            let sum = checksum::finish(checksum::sum(&packet[..20]));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let payload = (packet.len() - 40) as u16;
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
            packet[6] = transport;
            packet[7] = HOP_LIMIT;
            packet[8..24].copy_from_slice(&from.octets());
            packet[24..40].copy_from_slice(&to.octets());
        }
        _ => {}
    }
}

/// The sum of the pseudo-header (RFC 768, RFC 8200 section 8.1).
pub(crate) fn pseudo_header(from: IpAddr, to: IpAddr, transport: u8, length: u16) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => checksum::sum(&address.octets()),
        IpAddr::V6(address) => checksum::sum(&address.octets()),
    };
    address(from) + address(to) + u64::from(transport) + u64::from(length)
}
