//! Echo requests (RFC 792, RFC 4443 section 4) answered in place of the applications' hosts.

use ztna_packet::{
    checksum,
    packet::{PacketInfo, protocol},
};

use crate::packet_builder::pseudo_header;

/// Whether a packet is an echo request with a good checksum.
pub(crate) fn is_request(packet: &[u8], info: &PacketInfo) -> bool {
    let message = info.transport_bytes(packet);
    let pseudo = match (info.protocol, message.first()) {
        (protocol::ICMP, Some(8)) if !info.is_v6() => 0,
        (protocol::ICMPV6, Some(128)) if info.is_v6() => {
            pseudo_header(info.source, info.destination, protocol::ICMPV6, message.len() as u16)
        }
        _ => return false,
    };
    message.len() >= 8 && checksum::finish(checksum::sum(message) + pseudo) == 0
}

/// Makes `reply` the answer to an echo request.
pub(crate) fn turn_around(packet: &[u8], info: &PacketInfo, reply: &mut Vec<u8>) {
    let packet = &packet[..info.total_len];
    reply.clear();
    reply.extend_from_slice(packet);
    let (source, destination, len) = if info.is_v6() { (8, 24, 16) } else { (12, 16, 4) };
    reply[source..source + len].copy_from_slice(&packet[destination..destination + len]);
    reply[destination..destination + len].copy_from_slice(&packet[source..source + len]);
    // Swapped addresses leave every sum as it was; only the type changes.
    let mut change = checksum::Delta::default();
    let (asked, answered) = if info.is_v6() { (128, 129) } else { (8, 0) };
    change.word(asked << 8, answered << 8);
    let message = &mut reply[info.transport..];
    message[0] = answered as u8;
    let sum = change.apply(u16::from_be_bytes([message[2], message[3]]));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}
