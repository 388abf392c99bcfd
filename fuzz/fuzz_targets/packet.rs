//! Invariant: any bytes parse without a panic, and rewriting an address there and back restores the packet or is refused.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use ztna_engine::{
    flow::FlowKey,
    icmp::{self, IcmpError},
    packet::PacketInfo,
    translate::{rewrite_destination, rewrite_source},
};

fuzz_target!(|data: &[u8]| {
    let mut out = Vec::new();
    let (v4, v6) = (Ipv4Addr::new(192, 0, 0, 8), Ipv6Addr::new(0xFD64, 0, 0, 0, 0, 0, 0, 1));
    for kind in [IcmpError::HostUnreachable, IcmpError::TooBig { mtu: 1300 }] {
        if icmp::error(kind, data, v4, v6, &mut out).is_some() {
            let answer = PacketInfo::parse(&out).expect("an answer is a packet");
            assert!(answer.is_icmp_error(&out), "and an ICMP error");
        }
    }
    let Ok(info) = PacketInfo::parse(data) else { return };
    assert!(info.total_len <= data.len() && info.transport <= info.total_len);
    let _ = (FlowKey::from_agent(data, &info), FlowKey::to_agent(data, &info));
    let new: IpAddr = if info.is_v6() { v6.into() } else { v4.into() };
    for rewrite in [rewrite_source, rewrite_destination] {
        let (mut packet, mut now) = (data[..info.total_len].to_vec(), info);
        if rewrite(&mut packet, &mut now, new) {
            let seen = PacketInfo::parse(&packet).expect("still a packet");
            assert_eq!((seen.source, seen.destination), (now.source, now.destination));
            assert_eq!(seen.total_len, info.total_len);
        }
    }
});
