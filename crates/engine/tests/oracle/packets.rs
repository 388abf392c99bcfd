//! Builds packets with full checksums, and tells which checksums of a packet are right.

use std::net::IpAddr;

/// A transport and its payload, with the checksum left as zero.
#[derive(Clone, Debug)]
pub enum Transport {
    Tcp(Vec<u8>),
    Udp(Vec<u8>),
    /// UDP without a checksum.
    UdpPlain(Vec<u8>),
    UdpLite(Vec<u8>),
    Dccp(Vec<u8>),
    Echo(Vec<u8>),
    Other(Vec<u8>),
    /// An ICMP error that quotes a packet of the same family.
    Error(Vec<u8>),
}

/// The whole packet. `extra` is IPv4 options or IPv6 destination options, in units of 8 bytes.
pub fn build(source: IpAddr, destination: IpAddr, extra: usize, transport: &Transport) -> Vec<u8> {
    let v6 = source.is_ipv6();
    let udp_like = |payload: &[u8], third: u16| {
        let mut bytes = vec![0x12, 0x34, 0x00, 0x35];
        bytes.extend(third.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(payload);
        bytes
    };
    let (protocol, mut bytes, at) = match transport {
        Transport::Tcp(payload) => {
            let mut bytes =
                vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0];
            bytes.extend(payload);
            (6, bytes, Some(16))
        }
        Transport::Udp(payload) => (17, udp_like(payload, payload.len() as u16 + 8), Some(6)),
        Transport::UdpPlain(payload) => (17, udp_like(payload, payload.len() as u16 + 8), None),
        Transport::UdpLite(payload) => (136, udp_like(payload, 0), Some(6)),
        Transport::Dccp(payload) => (33, udp_like(payload, 0), Some(6)),
        Transport::Other(payload) => (132, payload.clone(), None),
        Transport::Echo(payload) => {
            let mut bytes = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0xBE, 0xEF, 0, 1];
            bytes.extend(payload);
            (if v6 { 58 } else { 1 }, bytes, Some(2))
        }
        Transport::Error(quote) => {
            let mut bytes = vec![if v6 { 1 } else { 3 }, 3, 0, 0, 0, 0, 0, 0];
            bytes.extend(quote);
            (if v6 { 58 } else { 1 }, bytes, Some(2))
        }
    };
    if let Some(at) = at {
        let pseudo = if protocol == 1 {
            0
        } else {
            pseudo_header(source, destination, protocol, bytes.len())
        };
        let mut value = !folded(words(&bytes) + pseudo);
        if value == 0 && matches!(protocol, 17 | 136) {
            value = 0xFFFF;
        }
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = 20 + extra * 8;
            packet.extend([0x40 | (header / 4) as u8, 0]);
            packet.extend(((header + bytes.len()) as u16).to_be_bytes());
            packet.extend([0xAB, 0xCD, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.resize(header, 1);
            let value = !folded(words(&packet));
            packet[10..12].copy_from_slice(&value.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(((extra * 8 + bytes.len()) as u16).to_be_bytes());
            packet.extend([if extra == 0 { protocol } else { 60 }, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            if extra > 0 {
                let start = packet.len();
                packet.extend([protocol, (extra - 1) as u8]);
                packet.resize(start + extra * 8, 0);
            }
        }
        _ => unreachable!("one family for both addresses"),
    }
    packet.extend(bytes);
    packet
}

fn words(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xFFFF);
    }
    sum as u16
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    words(&octets(source)) + words(&octets(destination)) + u64::from(protocol) + length as u64
}

/// Which checksums of a packet are right; `None` where there is none or not enough to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub header: Option<bool>,
    pub transport: Option<bool>,
    pub quoted_header: Option<bool>,
    pub quoted_transport: Option<bool>,
}

/// Judges by full recomputation. `packet` must be one whole packet without bytes after it.
pub fn verdict(packet: &[u8]) -> Verdict {
    let mut verdict = Verdict::default();
    let Some((header, transport, quote)) = judge(packet) else {
        return verdict;
    };
    (verdict.header, verdict.transport) = (header, transport);
    if let Some((quoted_header, quoted_transport, _)) = quote.and_then(judge) {
        (verdict.quoted_header, verdict.quoted_transport) = (quoted_header, quoted_transport);
    }
    verdict
}

type Judged<'a> = (Option<bool>, Option<bool>, Option<&'a [u8]>);

fn judge(packet: &[u8]) -> Option<Judged<'_>> {
    let v6 = packet.first()? >> 4 == 6;
    let address = |from: usize| -> Option<IpAddr> {
        let octets = packet.get(from..from + if v6 { 16 } else { 4 })?;
        Some(if v6 {
            IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)
        } else {
            IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)
        })
    };
    let (source, destination, protocol, at, header, whole, length);
    if v6 {
        (source, destination) = (address(8)?, address(24)?);
        let mut next = packet[6];
        let mut offset = 40;
        // Only the headers the builder makes and fragments; with others the packet is not judged.
        let mut fragmented = false;
        while matches!(next, 44 | 60) {
            let extension = packet.get(offset..offset + 8)?;
            fragmented |= next == 44 && (extension[2] != 0 || extension[3] & 0xF9 != 0);
            offset += if next == 60 { (usize::from(extension[1]) + 1) * 8 } else { 8 };
            next = extension[0];
        }
        (protocol, at, header, whole) = (next, offset, None, !fragmented);
        length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    } else {
        (source, destination) = (address(12)?, address(16)?);
        at = usize::from(packet[0] & 0x0F) * 4;
        protocol = packet[9];
        header = packet.get(..at).map(|header| folded(words(header)) == 0xFFFF);
        whole = u16::from_be_bytes([packet[6], packet[7]]) & 0x3FFF == 0;
        length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    }
    let complete = whole && length == packet.len() && at >= 20;
    let Some(bytes) = packet.get(at..) else {
        return Some((header, None, None));
    };
    let field =
        |at: usize| bytes.get(at..at + 2).map(|field| u16::from_be_bytes([field[0], field[1]]));
    let pseudo = pseudo_header(source, destination, protocol, bytes.len());
    let right = |extra: u64| Some(folded(words(bytes) + extra) == 0xFFFF);
    let transport = match protocol {
        _ if !complete => None,
        6 => field(16).and_then(|_| right(pseudo)),
        17 | 136 => field(6).filter(|value| *value != 0).and_then(|_| right(pseudo)),
        33 => field(6).and_then(|_| right(pseudo)),
        1 if !v6 => field(2).and_then(|_| right(0)),
        58 if v6 => field(2).and_then(|_| right(pseudo)),
        _ => None,
    };
    let error = match (protocol, v6, bytes.first()) {
        (1, false, Some(kind)) => [3, 4, 5, 11, 12].contains(kind),
        (58, true, Some(kind)) => *kind < 128,
        _ => false,
    };
    let quote = bytes.get(8..).filter(|quote| {
        whole
            && error
            && quote.first().is_some_and(|first| (first >> 4 == 6) == v6 && (v6 || first >> 4 == 4))
    });
    Some((header, transport, quote))
}
