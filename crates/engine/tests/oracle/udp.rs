//! UDP packets and their fragments, made without the code they test.

use std::net::IpAddr;

use bytes::Bytes;

use super::packets::{Transport, build, verdict};

/// A UDP packet whose checksum is right.
pub fn udp(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let mut packet = build(source, destination, 0, &Transport::Udp(b"ping".to_vec()));
    let at = transport(source);
    // What the source port gains the payload loses, so that the checksum stays right.
    packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
    let lost = u16::from_be_bytes([packet[at + 8], packet[at + 9]]) + (0x1234 - port);
    packet[at + 8..at + 10].copy_from_slice(&lost.to_be_bytes());
    packet
}

fn transport(address: IpAddr) -> usize {
    if address.is_ipv6() { 40 } else { 20 }
}

/// The answer to [`udp`] from this address.
pub fn answer(from: IpAddr, agent: IpAddr, port: u16) -> Bytes {
    let mut packet = udp(from, agent, port);
    let at = transport(agent);
    packet[at..at + 4].rotate_left(2);
    packet.into()
}

/// A packet as the first of its fragments and the rest of a datagram after it, which has no ports.
pub fn fragments(packet: &[u8], id: u16) -> [Bytes; 2] {
    [true, false].map(|first| {
        let at = if packet[0] >> 4 == 6 { 40 } else { 20 };
        let mut part = packet[..at].to_vec();
        let id = id.to_be_bytes();
        if at == 40 {
            let length = u16::from_be_bytes([part[4], part[5]]) + 8;
            part[4..6].copy_from_slice(&length.to_be_bytes());
            part.extend([part[6], 0, 0, if first { 1 } else { 8 }, 0, 0, id[0], id[1]]);
            part[6] = 44;
        } else {
            part[4..6].copy_from_slice(&id);
            part[6..8].copy_from_slice(if first { &[0x20, 0] } else { &[0, 1] });
        }
        part.extend(if first { &packet[at..] } else { &[0xAA; 12] });
        part.into()
    })
}

/// Whether every checksum is right.
pub fn is_right(packet: &[u8]) -> bool {
    let verdict = verdict(packet);
    verdict.header != Some(false) && verdict.transport == Some(true)
}
