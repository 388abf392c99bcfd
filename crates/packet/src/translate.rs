//! Puts another address into a packet and keeps every checksum true, in place and in one pass.
//!
//! A packet that was right stays right, one that was wrong stays wrong by the same amount
//! (RFC 1624), because nothing is ever recomputed from the payload.

use std::net::IpAddr;

use crate::{
    checksum::Delta,
    packet::{Fragment, PacketInfo, address_v4, address_v6, extension_chain, protocol},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// Makes `new` the source address of `packet`, from which `info` was parsed.
///
/// In an ICMP error the packet quoted was sent *to* the old address: there it is the destination
/// that changes. Returns false, with nothing changed, if the address families differ or `packet`
/// is shorter than `info` says.
#[must_use]
pub fn rewrite_source(packet: &mut [u8], info: &mut PacketInfo, new: IpAddr) -> bool {
    let old = info.source;
    let done = old == new || rewrite(packet, info, Side::Source, old, new);
    if done {
        info.source = new;
    }
    done
}

/// Makes `new` the destination address of `packet`, from which `info` was parsed.
///
/// In an ICMP error the packet quoted was sent *from* the old address: there it is the source that
/// changes. Returns false, with nothing changed, if the address families differ or `packet` is
/// shorter than `info` says.
#[must_use]
pub fn rewrite_destination(packet: &mut [u8], info: &mut PacketInfo, new: IpAddr) -> bool {
    let old = info.destination;
    let done = old == new || rewrite(packet, info, Side::Destination, old, new);
    if done {
        info.destination = new;
    }
    done
}

/// In an ICMP error, replaces the quoted packet's destination by the result of `new`: the sender
/// knows the packet by the address it wrote. Changes nothing else.
pub fn rewrite_quoted_destination(
    packet: &mut [u8],
    info: &PacketInfo,
    new: impl Fn(IpAddr) -> Option<IpAddr>,
) {
    let Some(old) = quoted_destination(packet, info) else {
        return;
    };
    if let Some(new) = new(old)
        && let Some(message) = packet.get_mut(info.transport..info.total_len)
        && let Some(quote) = message.get_mut(8..)
    {
        let delta = rewrite_quote(quote, Side::Destination, old, new);
        fix(message, 2, delta, Zero::Value);
    }
}

/// The destination of the packet that an ICMP error quotes; `None` if this is no such error.
pub fn quoted_destination(packet: &[u8], info: &PacketInfo) -> Option<IpAddr> {
    if !info.is_icmp_error(packet) {
        return None;
    }
    let quote = packet.get(info.transport..info.total_len)?.get(8..)?;
    if info.is_v6() {
        address_v6(quote, 24).map(IpAddr::V6)
    } else {
        address_v4(quote, 16).map(IpAddr::V4)
    }
}

fn rewrite(packet: &mut [u8], info: &PacketInfo, side: Side, old: IpAddr, new: IpAddr) -> bool {
    let errors = info.is_icmp_error(packet);
    let Some(packet) = packet.get_mut(..info.total_len) else {
        return false;
    };
    let Some(delta) = replace_address(packet, side, old, new) else {
        return false;
    };
    if old.is_ipv4() {
        fix(packet, 10, delta, Zero::Value);
    }
    // Later fragments carry no transport header.
    if info.fragment == Fragment::Later {
        return true;
    }
    let Some(transport) = packet.get_mut(info.transport..) else {
        return true;
    };
    fix_transport(transport, info.protocol, old.is_ipv6(), delta);
    if errors {
        let quoted_side = match side {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        };
        if let Some(quote) = transport.get_mut(8..) {
            let delta = rewrite_quote(quote, quoted_side, old, new);
            fix(transport, 2, delta, Zero::Value);
        }
    }
    true
}

/// Translates the packet quoted in an ICMP error, as far as the quote goes, and returns the change
/// of the error's checksum.
fn rewrite_quote(quote: &mut [u8], side: Side, old: IpAddr, new: IpAddr) -> Delta {
    let mut total = Delta::default();
    let Some(transport) = quoted_transport(quote, old) else {
        return total;
    };
    let Some(delta) = replace_address(quote, side, old, new) else {
        return total;
    };
    total.add(delta);
    if old.is_ipv4() {
        total.add(fix(quote, 10, delta, Zero::Value));
    }
    if let Some((protocol, at)) = transport
        && let Some(bytes) = quote.get_mut(at..)
    {
        total.add(fix_transport(bytes, protocol, old.is_ipv6(), delta));
    }
    total
}

/// The protocol and place of the transport header of a quoted packet of `old`'s family: `None` if
/// it is no such packet, `Some(None)` if the quote holds no transport header that can be found.
///
/// Not [`PacketInfo::parse`]: a quote is cut short, so its lengths reach beyond it.
fn quoted_transport(quote: &[u8], old: IpAddr) -> Option<Option<(u8, usize)>> {
    match (old, quote.first()? >> 4) {
        (IpAddr::V4(_), 4) => {
            let header: &[u8; 20] = quote.first_chunk()?;
            let transport = usize::from(header[0] & 0x0F) * 4;
            if transport < header.len() {
                return None;
            }
            let later = u16::from_be_bytes([header[6], header[7]]) & 0x1FFF != 0;
            Some((!later).then_some((header[9], transport)))
        }
        (IpAddr::V6(_), 6) => {
            let header: &[u8; 40] = quote.first_chunk()?;
            let chain = extension_chain(quote, header[6]).ok();
            Some(
                chain
                    .filter(|chain| chain.fragment() != Fragment::Later)
                    .map(|chain| (chain.protocol, chain.transport)),
            )
        }
        _ => None,
    }
}

/// Replaces `old` by `new`; `None`, with nothing changed, if another address stands there.
fn replace_address(packet: &mut [u8], side: Side, old: IpAddr, new: IpAddr) -> Option<Delta> {
    match (old, new) {
        (IpAddr::V4(old), IpAddr::V4(new)) => {
            let at = if side == Side::Source { 12 } else { 16 };
            if address_v4(packet, at)? != old {
                return None;
            }
            packet.get_mut(at..at + 4)?.copy_from_slice(&new.octets());
            Some(Delta::between(&old.octets(), &new.octets()))
        }
        (IpAddr::V6(old), IpAddr::V6(new)) => {
            let at = if side == Side::Source { 8 } else { 24 };
            if address_v6(packet, at)? != old {
                return None;
            }
            packet.get_mut(at..at + 16)?.copy_from_slice(&new.octets());
            Some(Delta::between(&old.octets(), &new.octets()))
        }
        _ => None,
    }
}

/// The meaning of a checksum field of zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zero {
    /// A value like any other.
    Value,
    /// No checksum, so a computed zero is written as 0xFFFF (RFC 768).
    Absent,
}

/// Applies a change of addresses to a transport whose checksum covers them through a pseudo-header;
/// returns the change of the checksum itself. A header cut short before its checksum stays as it is.
fn fix_transport(transport: &mut [u8], protocol: u8, v6: bool, delta: Delta) -> Delta {
    match (protocol, v6) {
        (protocol::TCP, _) => fix(transport, 16, delta, Zero::Value),
        (protocol::UDP | protocol::UDP_LITE, _) => fix(transport, 6, delta, Zero::Absent),
        (protocol::DCCP, _) => fix(transport, 6, delta, Zero::Value),
        (protocol::ICMPV6, true) => fix(transport, 2, delta, Zero::Value),
        _ => Delta::default(),
    }
}

/// Applies `delta` to the checksum at `at`; returns the change of the checksum itself.
fn fix(bytes: &mut [u8], at: usize, delta: Delta, zero: Zero) -> Delta {
    let mut change = Delta::default();
    let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) else {
        return change;
    };
    let old = u16::from_be_bytes(*field);
    if old == 0 && zero == Zero::Absent {
        return change;
    }
    let mut new = delta.apply(old);
    if new == 0 && zero == Zero::Absent {
        new = 0xFFFF;
    }
    *field = new.to_be_bytes();
    change.word(old, new);
    change
}
