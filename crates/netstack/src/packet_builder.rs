//! The builder of packets to the relay.

use std::net::{IpAddr, SocketAddr};

use bytes::{Bytes, BytesMut};
use ztna_packet::{checksum, packet::protocol};

/// Bytes reserved at once for packets.
const CHUNK: usize = 64 * 1024;
const HOP_LIMIT: u8 = 64;
/// The number of the fragment header (RFC 8200 section 4.5).
pub(crate) const FRAGMENT: u8 = 44;

/// A packet with the length of its wrapper for the relay.
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
pub struct PacketBuilder {
    memory: BytesMut,
    written: Vec<Outgoing>,
    /// The last packet that was too large to be written at once.
    whole: Vec<u8>,
    /// Identification of the last fragmented packet.
    identification: u32,
}

impl PacketBuilder {
    /// Writes one datagram: `wrapper`, then `len` bytes, zeroed, for `fill` to write.
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

    /// Writes an existing packet, as fragments if it is larger than `mtu`. False, with nothing
    /// written, if it cannot be cut so small.
    pub fn packet(&mut self, wrapper: &[u8], packet: &[u8], mtu: usize) -> bool {
        if packet.len() <= mtu {
            self.write(wrapper, packet.len(), |out| out.copy_from_slice(packet));
            return true;
        }
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => self.fragments_v4(wrapper, packet, mtu),
            // We write no headers that every fragment would have to carry.
            Some(6) if !matches!(packet[6], 0 | 43 | 44) => self.fragments_v6(wrapper, packet, mtu),
            _ => false,
        }
    }

    fn fragments_v4(&mut self, wrapper: &[u8], packet: &[u8], mtu: usize) -> bool {
        let first = usize::from(packet[0] & 0x0F) * 4;
        let room = mtu.saturating_sub(first) & !7;
        let Some(body) = packet.get(first..).filter(|_| room > 0) else {
            return false;
        };
        self.identification = self.identification.wrapping_add(1);
        let identification = (self.identification as u16).to_be_bytes();
        for (index, part) in body.chunks(room).enumerate() {
            let at = index * room;
            let more = at + part.len() < body.len();
            // Options stand in the first fragment only: an answer's are of no use on the way.
            let header = if at == 0 { first } else { 20 };
            self.write(wrapper, header + part.len(), |out| {
                out[..header].copy_from_slice(&packet[..header]);
                out[0] = 0x40 | (header / 4) as u8;
                out[2..4].copy_from_slice(&((header + part.len()) as u16).to_be_bytes());
                out[4..6].copy_from_slice(&identification);
                let word = (at / 8) as u16 | u16::from(more) << 13;
                out[6..8].copy_from_slice(&word.to_be_bytes());
                out[10..12].fill(0);
                let sum = checksum::finish(checksum::sum(&out[..header]));
                out[10..12].copy_from_slice(&sum.to_be_bytes());
                out[header..].copy_from_slice(part);
            });
        }
        true
    }

    fn fragments_v6(&mut self, wrapper: &[u8], packet: &[u8], mtu: usize) -> bool {
        let room = mtu.saturating_sub(48) & !7;
        let Some(body) = packet.get(40..).filter(|_| room > 0) else {
            return false;
        };
        self.identification = self.identification.wrapping_add(1);
        let identification = self.identification.to_be_bytes();
        for (index, part) in body.chunks(room).enumerate() {
            let at = index * room;
            let more = at + part.len() < body.len();
            self.write(wrapper, 48 + part.len(), |out| {
                out[..40].copy_from_slice(&packet[..40]);
                out[4..6].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
                out[6] = FRAGMENT;
                out[40] = packet[6];
                let word = at as u16 | u16::from(more);
                out[42..44].copy_from_slice(&word.to_be_bytes());
                out[44..48].copy_from_slice(&identification);
                out[48..].copy_from_slice(part);
            });
        }
        true
    }

    /// Writes a UDP packet, as fragments where it is larger than `mtu`. False, with nothing written,
    /// if it is larger than a packet can be or the ends are not of one family.
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
        // The length of an IPv6 packet leaves out its header.
        let longest = usize::from(u16::MAX) + if from.is_ipv4() { 0 } else { header };
        if total > longest || from.is_ipv4() != to.is_ipv4() {
            return false;
        }
        if total <= mtu {
            self.write(wrapper, total, |out| fill_udp(out, from, to, payload));
            return true;
        }
        let mut whole = std::mem::take(&mut self.whole);
        whole.clear();
        whole.resize(total, 0);
        fill_udp(&mut whole, from, to, payload);
        let written = self.packet(wrapper, &whole, mtu);
        self.whole = whole;
        written
    }

    /// Writes an echo request, by which a relay learns the agent of `from`. Nothing is written
    /// where the ends are not of one family. `token` is its identifier and sequence number.
    pub fn echo_request(&mut self, wrapper: &[u8], from: IpAddr, to: IpAddr, token: u32) {
        if from.is_ipv4() != to.is_ipv4() {
            return;
        }
        let (header, transport, kind) =
            if from.is_ipv4() { (20, protocol::ICMP, 8) } else { (40, protocol::ICMPV6, 128) };
        self.write(wrapper, header + 8, |out| {
            ip_header(out, transport, from, to);
            let message = &mut out[header..];
            message[0] = kind;
            message[4..8].copy_from_slice(&token.to_be_bytes());
            let pseudo = if from.is_ipv4() { 0 } else { pseudo_header(from, to, transport, 8) };
            let sum = checksum::finish(checksum::sum(message) + pseudo);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        });
    }

    /// Datagrams that were not taken yet, oldest first.
    pub(crate) fn written(&self) -> &[Outgoing] {
        &self.written
    }

    /// The number of these datagrams.
    pub fn len(&self) -> usize {
        self.written.len()
    }

    /// Whether all were taken.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// Takes the datagrams written, oldest first.
    pub fn take(&mut self) -> impl Iterator<Item = Outgoing> + '_ {
        self.written.drain(..)
    }
}

/// Fills `out`, which is zeroed and as long as the packet.
fn fill_udp(out: &mut [u8], from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let header = out.len() - 8 - payload.len();
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
}

/// Fills the IP header of `packet`, which is zeroed and as long as the packet.
fn ip_header(packet: &mut [u8], transport: u8, from: IpAddr, to: IpAddr) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = packet.len() as u16;
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            // Not a fragment and never to become one, so the identification is 0 (RFC 6864).
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
