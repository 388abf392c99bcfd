//! Answers to packets that cannot be delivered, so that applications fail fast instead of hanging:
//! ICMP (RFC 792, RFC 1191) and ICMPv6 (RFC 4443) errors.
//!
//! The caller limits their rate (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    checksum,
    packet::{Fragment, PacketInfo, protocol, source_ok},
};

/// The largest ICMP error sent over IPv4, in bytes (RFC 1812 section 4.3.2.3).
pub const MAX_LEN_V4: usize = 576;
/// The largest ICMPv6 error, in bytes: the minimum MTU (RFC 4443 section 2.4 c).
pub const MAX_LEN_V6: usize = 1280;

const HOP_LIMIT: u8 = 64;

/// The fault of the packet that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No connector serves its service: host or address unreachable.
    HostUnreachable,
    /// The host that serves it has no program on that port.
    PortUnreachable,
    /// The sender may not reach its destination.
    AdministrativelyProhibited,
    /// It is larger than its target can take.
    ///
    /// IPv4 packets that allow fragmentation are answered too: the relay never fragments, so the
    /// sender learns it in no other way, and common stacks lower their path MTU all the same. An
    /// IPv6 MTU under 1280 is reported as it is (RFC 4443 section 3.2); senders need not go below
    /// 1280 (RFC 8201 section 4), but a raised figure would be a lie they could not act on either.
    TooBig {
        /// The largest packet the target takes, in bytes.
        mtu: u16,
    },
}

impl IcmpError {
    fn v4(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::HostUnreachable => (3, 1, [0; 4]),
            Self::PortUnreachable => (3, 3, [0; 4]),
            Self::AdministrativelyProhibited => (3, 13, [0; 4]),
            Self::TooBig { mtu } => (3, 4, u32::from(mtu).to_be_bytes()),
        }
    }

    fn v6(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::HostUnreachable => (1, 3, [0; 4]),
            Self::PortUnreachable => (1, 4, [0; 4]),
            Self::AdministrativelyProhibited => (1, 1, [0; 4]),
            Self::TooBig { mtu } => (2, 0, u32::from(mtu).to_be_bytes()),
        }
    }
}

/// Writes the answer to `original` into `out`, which is cleared first, and tells whether there is one.
///
/// `original` is the packet as its sender wrote it, before any translation. `source_v4` and
/// `source_v6` are the sources of the answer. There is never an answer to a malformed packet, an
/// ICMP error or redirect, IGMP, a fragment that is not the first, a multicast, broadcast or
/// reserved destination, or a source that cannot be a destination (RFC 1122 section 3.2.2, RFC 4443
/// section 2.4 e).
pub fn error(
    kind: IcmpError,
    original: &[u8],
    source_v4: Ipv4Addr,
    source_v6: Ipv6Addr,
    out: &mut Vec<u8>,
) -> Option<()> {
    out.clear();
    let info = PacketInfo::parse(original).ok()?;
    let original = original.get(..info.total_len)?;
    if !may_answer(&info, original) {
        return None;
    }
    let source = if info.is_v6() { IpAddr::V6(source_v6) } else { IpAddr::V4(source_v4) };
    write(kind, original, source, info.source, out);
    Some(())
}

/// Writes the error of this kind about `original` into `out`, which is cleared first, for any
/// receiver. Nothing is written where `from` and `to` are not of one family.
pub fn write(kind: IcmpError, original: &[u8], from: IpAddr, to: IpAddr, out: &mut Vec<u8>) {
    out.clear();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => error_v4(kind.v4(), original, from, to, out),
        (IpAddr::V6(from), IpAddr::V6(to)) => error_v6(kind.v6(), original, from, to, out),
        _ => {}
    }
}

fn may_answer(info: &PacketInfo, original: &[u8]) -> bool {
    let informational = match (info.protocol, info.is_v6()) {
        (protocol::IGMP, false) => false,
        (protocol::ICMP, false) | (protocol::ICMPV6, true) => {
            // Type 137 is the ICMPv6 redirect; a message without a type could be anything.
            let kind = info.transport_bytes(original).first();
            kind.is_some_and(|kind| !info.is_v6() || *kind != 137) && !info.is_icmp_error(original)
        }
        _ => true,
    };
    let unicast = match info.destination {
        IpAddr::V4(to) => to.octets()[0] < 224,
        IpAddr::V6(to) => !to.is_multicast(),
    };
    informational && unicast && info.fragment != Fragment::Later && source_ok(info.source).is_ok()
}

fn error_v4(
    (kind, code, rest): (u8, u8, [u8; 4]),
    original: &[u8],
    from: Ipv4Addr,
    to: Ipv4Addr,
    out: &mut Vec<u8>,
) {
    let quote = &original[..original.len().min(MAX_LEN_V4 - 28)];
    let total = (28 + quote.len()) as u16;
    // Precedence 6 (RFC 1812 section 4.3.2.5); never fragmented, so the identification is 0 (RFC 6864).
    out.extend([0x45, 0xC0]);
    out.extend(total.to_be_bytes());
    out.extend([0, 0, 0x40, 0, HOP_LIMIT, protocol::ICMP, 0, 0]);
    out.extend(from.octets());
    out.extend(to.octets());
    let header = checksum::finish(checksum::sum(out));
    out[10..12].copy_from_slice(&header.to_be_bytes());
    out.extend([kind, code, 0, 0]);
    out.extend(rest);
    out.extend(quote);
    let message = checksum::finish(checksum::sum(&out[20..]));
    out[22..24].copy_from_slice(&message.to_be_bytes());
}

fn error_v6(
    (kind, code, rest): (u8, u8, [u8; 4]),
    original: &[u8],
    from: Ipv6Addr,
    to: Ipv6Addr,
    out: &mut Vec<u8>,
) {
    let quote = &original[..original.len().min(MAX_LEN_V6 - 48)];
    let payload = (8 + quote.len()) as u16;
    out.extend([0x60, 0, 0, 0]);
    out.extend(payload.to_be_bytes());
    out.extend([protocol::ICMPV6, HOP_LIMIT]);
    out.extend(from.octets());
    out.extend(to.octets());
    out.extend([kind, code, 0, 0]);
    out.extend(rest);
    out.extend(quote);
    let pseudo_header = u64::from(payload) + u64::from(protocol::ICMPV6);
    let message = checksum::finish(checksum::sum(&out[8..]) + pseudo_header);
    out[42..44].copy_from_slice(&message.to_be_bytes());
}
