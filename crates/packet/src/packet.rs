//! The headers of one relayed IP packet: IPv4 (RFC 791) and IPv6 (RFC 8200).
//!
//! Parsing is strict about lengths, because everything after it relies on them, and lenient about
//! the transport: the receiver refuses a packet whose TCP or UDP header is cut short. Checksums are
//! not verified. They are only updated incrementally, so the receiver still sees the damage of a
//! packet that was damaged before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers (RFC 5237) the engine looks into.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// Group membership; never answered with an ICMP error.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP, whose checksum does not cover addresses.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// IPv6 extension headers followed before a packet is refused. RFC 8200 section 4.1 lists seven.
const MAX_EXTENSION_HEADERS: usize = 8;

/// The reason for which bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends inside its header.
    TooShort,
    /// Its version is neither 4 nor 6.
    Version,
    /// Its header length is under five words or beyond its total length.
    HeaderLength,
    /// Its total length is beyond the datagram, or it is a jumbogram (RFC 2675).
    TotalLength,
    /// Its extension headers are cut short, too many or out of place.
    ExtensionHeaders,
    /// It is a fragment that ends beyond 65,535 bytes.
    Fragment,
    /// It asks for source routing (refused: RFC 7126 section 4.3 and 4.4, RFC 5095).
    SourceRoute,
}

/// The part of a datagram that a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The beginning, with the transport header.
    First,
    /// A later part, without transport header.
    Later,
}

/// The facts of one packet's headers. It borrows nothing, so the packet may be changed beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketInfo {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The transport's number; in IPv6 the one after all extension headers.
    pub protocol: u8,
    /// The part of the datagram.
    pub fragment: Fragment,
    /// The identification that the fragments of one datagram share between the same ends; 0 for a
    /// whole one.
    pub fragment_id: u32,
    /// The offset of the transport header, at most `total_len`.
    pub transport: usize,
    /// The packet's length in bytes by its own header; bytes beyond it are no part of the packet.
    pub total_len: usize,
}

/// Whether a datagram begins as an IP packet does.
#[inline]
pub fn is_packet(datagram: &[u8]) -> bool {
    matches!(datagram.first().map(|byte| byte >> 4), Some(4 | 6))
}

impl PacketInfo {
    /// Reads the headers of the packet at the start of `bytes`; longer `bytes` are allowed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.first().ok_or(Malformed::TooShort)? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(Malformed::Version),
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; 20] = bytes.first_chunk().ok_or(Malformed::TooShort)?;
        let transport = usize::from(header[0] & 0x0F) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if total_len > bytes.len() {
            return Err(Malformed::TotalLength);
        }
        if transport < 20 || transport > total_len {
            return Err(Malformed::HeaderLength);
        }
        if transport > 20 && has_source_route(&bytes[20..transport]) {
            return Err(Malformed::SourceRoute);
        }
        let word = u16::from_be_bytes([header[6], header[7]]);
        let fragment =
            fragment(usize::from(word & 0x1FFF) * 8, word & 0x2000 != 0, total_len - transport)?;
        let [.., a, b, c, d, e, f, g, h] = *header;
        Ok(Self {
            source: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            destination: IpAddr::V4(Ipv4Addr::new(e, f, g, h)),
            protocol: header[9],
            fragment,
            fragment_id: match fragment {
                Fragment::Whole => 0,
                _ => u16::from_be_bytes([header[4], header[5]]).into(),
            },
            transport,
            total_len,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; 40] = bytes.first_chunk().ok_or(Malformed::TooShort)?;
        let total_len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let packet = bytes.get(..total_len).ok_or(Malformed::TotalLength)?;
        if total_len == 40 && header[6] == 0 {
            return Err(Malformed::TotalLength);
        }
        let chain = extension_chain(packet, header[6])?;
        if let Some((offset, more)) = chain.fragment_field {
            fragment(offset, more, total_len - chain.transport)?;
        }
        Ok(Self {
            source: IpAddr::V6(address_v6(packet, 8).ok_or(Malformed::TooShort)?),
            destination: IpAddr::V6(address_v6(packet, 24).ok_or(Malformed::TooShort)?),
            protocol: chain.protocol,
            fragment: chain.fragment(),
            fragment_id: match chain.fragment() {
                Fragment::Whole => 0,
                _ => chain.fragment_id,
            },
            transport: chain.transport,
            total_len,
        })
    }

    /// Whether the packet is IPv6.
    pub fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// The transport's bytes; empty if `packet` is not the parsed one.
    pub fn transport_bytes<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet.get(self.transport..self.total_len).unwrap_or_default()
    }

    /// Whether the packet is an ICMP or ICMPv6 error, so that another packet is quoted in it.
    ///
    /// Every ICMPv6 type below 128 is an error (RFC 4443 section 2.1).
    pub fn is_icmp_error(&self, packet: &[u8]) -> bool {
        if self.fragment == Fragment::Later {
            return false;
        }
        match (self.protocol, self.is_v6(), self.transport_bytes(packet).first()) {
            (protocol::ICMP, false, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            (protocol::ICMPV6, true, Some(kind)) => *kind < 128,
            _ => false,
        }
    }
}

/// Judges the offset and length of a fragment, both in bytes.
fn fragment(offset: usize, more: bool, payload: usize) -> Result<Fragment, Malformed> {
    match (offset, more) {
        (0, false) => Ok(Fragment::Whole),
        (0, true) => Ok(Fragment::First),
        _ if offset + payload > 65_535 => Err(Malformed::Fragment),
        _ => Ok(Fragment::Later),
    }
}

/// Whether IPv4 options hold a loose or strict source route. Options that cannot be read end the
/// search: no router would follow a route after them.
fn has_source_route(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [] | [0, ..] => return false,
            [1, rest @ ..] => rest,
            [131 | 137, ..] => return true,
            [_, length, ..] if *length >= 2 => {
                options.get(usize::from(*length)..).unwrap_or_default()
            }
            _ => return false,
        };
    }
}

/// The end of the extension headers of an IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// The transport's number.
    pub protocol: u8,
    /// The offset of the transport header.
    pub transport: usize,
    fragment_field: Option<(usize, bool)>,
    fragment_id: u32,
}

impl Chain {
    /// The part of the datagram that the packet carries.
    pub fn fragment(&self) -> Fragment {
        match self.fragment_field {
            None | Some((0, false)) => Fragment::Whole,
            Some((0, true)) => Fragment::First,
            Some(_) => Fragment::Later,
        }
    }
}

/// Follows the extension headers of `packet`, whose fixed header names `next`.
///
/// A first fragment must hold the whole chain (RFC 7112). A routing header with segments left is
/// refused: besides being source routing, it puts another address into the transport's checksum.
pub fn extension_chain(packet: &[u8], mut next: u8) -> Result<Chain, Malformed> {
    let mut at = 40;
    let (mut fragment_field, mut fragment_id) = (None, 0);
    for index in 0..=MAX_EXTENSION_HEADERS {
        let unit = match next {
            // Hop-by-hop options stand first or nowhere.
            0 if index == 0 => 8,
            0 => return Err(Malformed::ExtensionHeaders),
            43 | 44 | 60 | 135 | 139 | 140 => 8,
            51 => 4,
            _ => return Ok(Chain { protocol: next, transport: at, fragment_field, fragment_id }),
        };
        if next == 135 {
            // Mobility headers end the chain (RFC 6275 section 6.1.1).
            return Ok(Chain { protocol: next, transport: at, fragment_field, fragment_id });
        }
        let Some(&[following, length, high, low]) =
            packet.get(at..).and_then(|rest| rest.first_chunk())
        else {
            return Err(Malformed::ExtensionHeaders);
        };
        let size = match next {
            44 => 8,
            51 => (usize::from(length) + 2) * unit,
            _ => (usize::from(length) + 1) * unit,
        };
        if at + size > packet.len() {
            return Err(Malformed::ExtensionHeaders);
        }
        match next {
            43 if low != 0 => return Err(Malformed::SourceRoute),
            44 if fragment_field.is_some() => return Err(Malformed::ExtensionHeaders),
            44 => {
                let word = u16::from_be_bytes([high, low]);
                let offset = usize::from(word & 0xFFF8);
                fragment_field = Some((offset, word & 1 != 0));
                let id = packet.get(at + 4..).and_then(|rest| rest.first_chunk());
                fragment_id = id.map_or(0, |id| u32::from_be_bytes(*id));
                if offset != 0 {
                    let (protocol, transport) = (following, at + size);
                    return Ok(Chain { protocol, transport, fragment_field, fragment_id });
                }
            }
            _ => {}
        }
        at += size;
        next = following;
    }
    Err(Malformed::ExtensionHeaders)
}

/// The IPv6 address at `at`.
pub fn address_v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}

/// The IPv4 address at `at`.
pub fn address_v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

/// The reason for which an address cannot be the source of a relayed packet: of an agent's by
/// [`source_ok`], of a connector's by [`source_unicast`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadSource {
    /// 0.0.0.0/8 or `::`.
    Unspecified,
    /// 127.0.0.0/8 or `::1`.
    Loopback,
    /// 169.254.0.0/16 or fe80::/10.
    LinkLocal,
    /// 224.0.0.0/4 or ff00::/8.
    Multicast,
    /// 240.0.0.0/4, which holds the limited broadcast address.
    Reserved,
    /// An IPv4 address in IPv6 clothes: ::/96 and ::ffff:0:0/96 always, 6to4 (2002::/16) and NAT64
    /// (64:ff9b::/96) where the IPv4 address inside is bad itself.
    Embedded,
}

/// Whether `address` may be the source of a packet that an agent sends.
pub fn source_ok(address: IpAddr) -> Result<(), BadSource> {
    match address {
        IpAddr::V4(address) => source_ok_v4(address),
        IpAddr::V6(address) => source_ok_v6(address),
    }
}

/// Whether `address` stands for one host, and so may be the source of a packet that a connector
/// sends: 127.0.0.1 may, since connectors of ztna-v1 answer UDP from their backend's own address.
pub fn source_unicast(address: IpAddr) -> Result<(), BadSource> {
    match source_ok(address) {
        Err(BadSource::Loopback | BadSource::LinkLocal) => Ok(()),
        Err(BadSource::Reserved) if address != IpAddr::V4(Ipv4Addr::BROADCAST) => Ok(()),
        Err(BadSource::Embedded) => embedded(address)
            .filter(|address| source_unicast((*address).into()).is_ok())
            .map_or(Err(BadSource::Embedded), |_| Ok(())),
        judged => judged,
    }
}

fn source_ok_v4(address: Ipv4Addr) -> Result<(), BadSource> {
    match address.octets() {
        [0, ..] => Err(BadSource::Unspecified),
        [127, ..] => Err(BadSource::Loopback),
        [169, 254, ..] => Err(BadSource::LinkLocal),
        [224..=239, ..] => Err(BadSource::Multicast),
        [240..=255, ..] => Err(BadSource::Reserved),
        _ => Ok(()),
    }
}

fn source_ok_v6(address: Ipv6Addr) -> Result<(), BadSource> {
    let segments = address.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Err(BadSource::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Err(BadSource::Loopback),
        [0, 0, 0, 0, 0, 0 | 0xFFFF, ..] => Err(BadSource::Embedded),
        [first, ..] if first & 0xFFC0 == 0xFE80 => Err(BadSource::LinkLocal),
        [first, ..] if first & 0xFF00 == 0xFF00 => Err(BadSource::Multicast),
        _ => match embedded(address.into()) {
            Some(inside) => source_ok_v4(inside).or(Err(BadSource::Embedded)),
            None => Ok(()),
        },
    }
}

/// The IPv4 address inside an IPv6 one of the networks of [`BadSource::Embedded`].
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let (high, low) = match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xFFFF, high, low] => (high, low),
        [0x2002, high, low, ..] => (high, low),
        [0x64, 0xFF9B, 0, 0, 0, 0, high, low] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}
