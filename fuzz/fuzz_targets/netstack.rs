//! Whatever packets a relay sends to a connector's userspace stack, whole or in fragments, and
//! whatever its applications do meanwhile: nothing breaks, every packet that goes out is well formed
//! and goes back to a source that wrote, and flows and fragments stay within their bounds.
#![no_main]

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use ztna_netstack::{
    Arrival, Backend, Counters, FlowId, Limits, PacketBuilder, Refusal, Stack, Transport,
};
use ztna_packet::{checksum, packet::PacketInfo};

fuzz_target!(|data: &[u8]| {
    let mut now = Instant::now();
    let limits = Limits { tcp_flows: 8, udp_flows: 8, flows_per_source: 6, ..Limits::default() };
    let counters = Arc::new(Counters::default());
    let mut stack = Stack::new(limits, counters.clone(), 7, now);
    let backend = |transport| Backend {
        service: Bytes::from_static(b"web"),
        transport,
        addresses: vec!["127.0.0.1:80".parse().unwrap()],
        service_addresses: vec!["198.18.0.1".parse().unwrap()],
        proxy_protocol: false,
    };
    stack.set_services(vec![backend(Transport::Tcp), backend(Transport::Udp)]);
    let mut sources: HashSet<IpAddr> = HashSet::new();
    let mut flows: Vec<FlowId> = Vec::new();
    let mut rest = data;
    while let [action, length, tail @ ..] = rest {
        let (bytes, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        let id = flows.get(usize::from(*length) % flows.len().max(1)).copied();
        match (action % 13, id) {
            (0..=5 | 12, _) => {
                let packets = match action % 13 {
                    0 => vec![bytes.to_vec()],
                    1 => vec![envelope(17, bytes)],
                    2 => vec![envelope(1, bytes)],
                    12 => fragments(action / 13, bytes),
                    _ => vec![envelope(6, bytes)],
                };
                for packet in packets {
                    if let Ok(info) = PacketInfo::parse(&packet) {
                        sources.insert(info.source);
                    }
                    match stack.receive(&packet, now) {
                        Arrival::Done | Arrival::Refused(..) => {}
                        Arrival::Tcp(id) | Arrival::Udp(id, ..) => flows.push(id),
                        Arrival::Wanted(id, _) => {
                            flows.push(id);
                            match action / 64 {
                                0 => stack.refuse(id, Refusal::Refused, now),
                                1 => stack.refuse(id, Refusal::Unreachable, now),
                                _ => drop(stack.accept(id, now)),
                            }
                        }
                    }
                }
            }
            (6, _) => now += Duration::from_millis(u64::from(*length) * 50),
            (7, Some(id)) => {
                if let Some(flow) = stack.tcp(id) {
                    flow.send(|room| room.len().min(usize::from(*action) * 64));
                    flow.receive(|bytes| bytes.len());
                }
                stack.send_udp(id, bytes, now);
            }
            (8, Some(id)) => match stack.tcp(id) {
                Some(flow) if action / 64 == 0 => flow.abort(),
                Some(flow) => flow.finish(),
                None if action % 2 == 0 => stack.refuse_udp(id, Refusal::Refused, now),
                None => stack.refuse_udp(id, Refusal::Unreachable, now),
            },
            (9, Some(id)) => {
                stack.set_datagram_limit(usize::from(*action) * 8);
                stack.flush(id, usize::from(*length), now);
            }
            (10, Some(id)) => stack.release(id),
            (11, _) => drop(stack.expire(now)),
            _ => {}
        }
        for id in &flows {
            stack.flush(*id, 4, now);
        }
        for outgoing in stack.take() {
            let info = PacketInfo::parse(outgoing.packet()).expect("a well formed packet");
            assert_eq!(info.total_len, outgoing.packet().len());
            assert!(sources.contains(&info.destination), "to {}", info.destination);
        }
        assert!(stack.len() <= 16);
        assert!(counters.fragment_bytes.get() <= 4 << 20);
        flows.retain(|id| stack.contains(*id));
    }
});

/// A UDP packet in fragments of which the first byte says what is wrong with them: one is missing,
/// comes twice, with another content, or at another place.
fn fragments(kind: u8, bytes: &[u8]) -> Vec<Vec<u8>> {
    let (wrong, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let mut out = PacketBuilder::default();
    out.packet(&[], &envelope(17, rest), 40);
    let mut all: Vec<Vec<u8>> = out.take().map(|o| o.packet().to_vec()).collect();
    let at = usize::from(*wrong) % all.len();
    let mut other = all[at].clone();
    match kind % 5 {
        0 => drop(all.remove(at)),
        1 => all.push(other),
        2 => {
            *other.last_mut().expect("a header") ^= 1;
            all.insert(0, other);
        }
        3 => {
            other[7] = other[7].wrapping_add(1);
            all.insert(at, other);
        }
        _ => all.reverse(),
    }
    all
}

/// A packet from one of a few sources whose checksums are right, so that it gets further than most.
fn envelope(protocol: u8, bytes: &[u8]) -> Vec<u8> {
    let (mark, payload) = bytes.split_first().unwrap_or((&0, &[]));
    let total = 20 + payload.len();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    packet.extend([100, 64, 0, 1 + mark % 4, 198, 18, 0, 1]);
    let sum = checksum::finish(checksum::sum(&packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    // Few ports, so that packets meet.
    if protocol != 1 && packet.len() >= 24 {
        let port = u16::from(packet[21] % 4) + 1000;
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[22..24].copy_from_slice(&80u16.to_be_bytes());
    }
    let at = match protocol {
        6 => 36,
        17 => 26,
        _ => 22,
    };
    if protocol == 17 && packet.len() >= 28 {
        let length = (packet.len() - 20) as u16;
        packet[24..26].copy_from_slice(&length.to_be_bytes());
    }
    if packet.len() >= at + 2 {
        packet[at..at + 2].fill(0);
        let pseudo = match protocol {
            1 => 0,
            _ => checksum::sum(&packet[12..20]) + u64::from(protocol) + (packet.len() - 20) as u64,
        };
        let sum = checksum::finish(checksum::sum(&packet[20..]) + pseudo);
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}
