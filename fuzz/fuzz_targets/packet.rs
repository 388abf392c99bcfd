//! No bytes make parsing, translation or an ICMP answer panic; every checksum that was right before
//! a translation is right after it, every wrong one stays wrong, and an answer's are always right.
#![no_main]

#[path = "../../crates/engine/tests/oracle/packets.rs"]
#[allow(dead_code)]
mod packets;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use packets::verdict;
use ztna_engine::{
    flow::FlowKey,
    icmp::{self, IcmpError},
    packet::PacketInfo,
    translate::{rewrite_destination, rewrite_source},
};

const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(100, 127, 255, 254)];
const V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xFD64, 0x7A74, 0x6E61, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xFD64, 0x7A74, 0x6E61, 0, 0xFFFF, 0, 0xFFFF, 0xFFFE),
];

fuzz_target!(|bytes: &[u8]| {
    let kinds = [
        IcmpError::HostUnreachable,
        IcmpError::AdministrativelyProhibited,
        IcmpError::TooBig { mtu: 1300 },
    ];
    for kind in kinds {
        let mut answer = Vec::new();
        if icmp::error(kind, bytes, V4[0], V6[0], &mut answer).is_some() {
            let info = PacketInfo::parse(&answer).expect("an answer is a packet");
            assert_eq!(info.total_len, answer.len());
            assert!(info.is_icmp_error(&answer), "an answer is never answered");
            assert_ne!(verdict(&answer).header, Some(false));
            assert_eq!(verdict(&answer).transport, Some(true));
        }
    }
    let Ok(mut info) = PacketInfo::parse(bytes) else {
        return;
    };
    assert!(info.transport <= info.total_len && info.total_len <= bytes.len());
    FlowKey::from_agent(bytes, &info);
    FlowKey::to_agent(bytes, &info);

    let mut packet = bytes[..info.total_len].to_vec();
    let before = verdict(&packet);
    let [first, second]: [IpAddr; 2] =
        if info.is_v6() { V6.map(Into::into) } else { V4.map(Into::into) };
    assert!(rewrite_source(&mut packet, &mut info, first));
    assert_eq!(verdict(&packet), before);
    assert!(rewrite_destination(&mut packet, &mut info, second));
    assert_eq!(verdict(&packet), before);
    assert_eq!(PacketInfo::parse(&packet), Ok(info));
});
