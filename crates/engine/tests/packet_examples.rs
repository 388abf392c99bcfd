//! Named packets: what is refused, what is answered and with what.

mod oracle;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use oracle::packets::{Transport, build, verdict};
use ztna_engine::{
    icmp::{self, IcmpError},
    packet::{BadSource, Fragment, Malformed, PacketInfo, source_ok, source_unicast},
    translate::{rewrite_destination, rewrite_source},
};

const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v4(transport: Transport) -> Vec<u8> {
    build(ip("10.0.0.1"), ip("10.9.0.1"), 0, &transport)
}

fn v6(extra: usize, transport: Transport) -> Vec<u8> {
    build(ip("fd00::1"), ip("fd00::9"), extra, &transport)
}

fn answer(kind: IcmpError, packet: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0xAA; 3];
    icmp::error(kind, packet, V4, "fd01::1".parse::<Ipv6Addr>().unwrap(), &mut out).map(|()| out)
}

fn changed(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    packet
}

#[test]
fn sources_that_nobody_may_use() {
    use BadSource::*;
    for (address, expected) in [
        ("0.0.0.0", Err(Unspecified)),
        ("0.1.2.3", Err(Unspecified)),
        ("127.8.0.1", Err(Loopback)),
        ("169.254.1.1", Err(LinkLocal)),
        ("224.0.0.1", Err(Multicast)),
        ("239.255.255.255", Err(Multicast)),
        ("240.0.0.1", Err(Reserved)),
        ("255.255.255.255", Err(Reserved)),
        ("10.0.0.1", Ok(())),
        ("100.64.0.1", Ok(())),
        ("169.253.1.1", Ok(())),
        ("::", Err(Unspecified)),
        ("::1", Err(Loopback)),
        ("::10.0.0.1", Err(Embedded)),
        ("::ffff:10.0.0.1", Err(Embedded)),
        ("::ffff:127.0.0.1", Err(Embedded)),
        ("2002:7f00:1::1", Err(Embedded)),
        ("2002:a00:1::1", Ok(())),
        ("64:ff9b::169.254.169.254", Err(Embedded)),
        ("64:ff9b::10.0.0.1", Ok(())),
        ("fe80::1", Err(LinkLocal)),
        ("febf::1", Err(LinkLocal)),
        ("ff02::1", Err(Multicast)),
        ("fd00::1", Ok(())),
        ("2001:db8::1", Ok(())),
    ] {
        assert_eq!(source_ok(ip(address)), expected, "{address}");
        if expected.is_ok() {
            assert_eq!(source_unicast(ip(address)), Ok(()), "{address}");
        }
    }
}

#[test]
fn a_connector_may_send_from_any_unicast_address() {
    use BadSource::{Embedded, Multicast, Reserved, Unspecified};
    for (address, expected) in [
        ("127.0.0.1", Ok(())),
        ("169.254.169.254", Ok(())),
        ("240.0.0.1", Ok(())),
        ("::1", Ok(())),
        ("fe80::1", Ok(())),
        ("::ffff:127.0.0.1", Ok(())),
        ("64:ff9b::7f00:1", Ok(())),
        ("0.0.0.0", Err(Unspecified)),
        ("0.1.2.3", Err(Unspecified)),
        ("224.0.0.1", Err(Multicast)),
        ("239.255.255.255", Err(Multicast)),
        ("255.255.255.255", Err(Reserved)),
        ("::", Err(Unspecified)),
        ("ff02::1", Err(Multicast)),
        ("::ffff:224.0.0.1", Err(Embedded)),
        ("::ffff:0.0.0.0", Err(Embedded)),
        ("2002:e000:1::1", Err(Embedded)),
        ("64:ff9b::255.255.255.255", Err(Embedded)),
    ] {
        assert_eq!(source_unicast(ip(address)), expected, "{address}");
    }
}

#[test]
fn ipv4_lengths_must_agree() {
    let good = v4(Transport::Udp(vec![1; 8]));
    let parse = |at, bytes: &[u8]| PacketInfo::parse(&changed(good.clone(), at, bytes));
    assert_eq!(parse(0, &[0x45]).map(|info| info.total_len), Ok(36));
    assert_eq!(PacketInfo::parse(&[]), Err(Malformed::TooShort));
    assert_eq!(PacketInfo::parse(&good[..19]), Err(Malformed::TooShort));
    assert_eq!(PacketInfo::parse(&good[..35]), Err(Malformed::TotalLength));
    assert_eq!(parse(0, &[0x44]), Err(Malformed::HeaderLength));
    assert_eq!(parse(0, &[0x4F]), Err(Malformed::HeaderLength), "60 bytes of header in 36");
    assert_eq!(parse(2, &[0, 19]), Err(Malformed::HeaderLength));
    for version in [0x05, 0x12, 0x13, 0x55, 0x75, 0xF5] {
        assert_eq!(parse(0, &[version]), Err(Malformed::Version));
    }
}

#[test]
fn fragments_are_told_apart_and_may_not_end_beyond_the_largest_packet() {
    let good = v4(Transport::Udp(vec![1; 8]));
    let parse = |word: u16| {
        PacketInfo::parse(&changed(good.clone(), 6, &word.to_be_bytes())).map(|info| info.fragment)
    };
    assert_eq!(parse(0x4000), Ok(Fragment::Whole));
    assert_eq!(parse(0x2000), Ok(Fragment::First));
    assert_eq!(parse(0x2001), Ok(Fragment::Later));
    assert_eq!(parse(0x0001), Ok(Fragment::Later));
    assert_eq!(parse(0x1FFD), Ok(Fragment::Later), "65,512 and 16 bytes, one under");
    assert_eq!(parse(0x1FFF), Err(Malformed::Fragment));
}

#[test]
fn source_routes_are_refused() {
    let packet = build(ip("10.0.0.1"), ip("10.9.0.1"), 1, &Transport::Udp(vec![]));
    assert!(PacketInfo::parse(&packet).is_ok(), "eight no-operations");
    for option in [131, 137] {
        let packet = changed(packet.clone(), 22, &[option, 3, 4]);
        assert_eq!(PacketInfo::parse(&packet), Err(Malformed::SourceRoute));
        let hidden = changed(packet, 20, &[7, 2]);
        assert_eq!(
            PacketInfo::parse(&hidden),
            Err(Malformed::SourceRoute),
            "behind another option"
        );
    }
    // The destination options header turned into a routing header of type 0.
    let packet = changed(v6(1, Transport::Udp(vec![])), 6, &[43]);
    assert!(PacketInfo::parse(&packet).is_ok(), "no segments left");
    assert_eq!(PacketInfo::parse(&changed(packet, 43, &[1])), Err(Malformed::SourceRoute));
}

#[test]
fn ipv6_extension_headers_are_followed_to_their_end_and_no_further() {
    let info = PacketInfo::parse(&v6(2, Transport::Udp(vec![1; 4]))).unwrap();
    assert_eq!((info.protocol, info.transport), (17, 56));
    let cut = changed(v6(1, Transport::Other(vec![])), 41, &[1]);
    assert_eq!(PacketInfo::parse(&cut), Err(Malformed::ExtensionHeaders), "longer than the packet");
    let misplaced = changed(v6(1, Transport::Other(vec![0; 8])), 40, &[0]);
    assert_eq!(
        PacketInfo::parse(&misplaced),
        Err(Malformed::ExtensionHeaders),
        "hop-by-hop is not first"
    );
    let mut endless = v6(9, Transport::Other(vec![0; 16]));
    for header in 0..9 {
        endless = changed(endless, 40 + header * 8, &[60, 0]);
    }
    assert_eq!(PacketInfo::parse(&endless), Err(Malformed::ExtensionHeaders), "too many");
    let jumbo = changed(v6(0, Transport::Other(vec![])), 6, &[0]);
    assert_eq!(PacketInfo::parse(&jumbo), Err(Malformed::TotalLength));
    let none = changed(v6(0, Transport::Other(vec![])), 6, &[59]);
    assert_eq!(PacketInfo::parse(&none).map(|info| info.protocol), Ok(59));
}

#[test]
fn only_the_first_ipv6_fragment_has_a_transport_that_is_translated() {
    let packet = changed(v6(1, Transport::Udp(vec![1; 8])), 6, &[44]);
    for (field, kind) in
        [([0, 0], Fragment::Whole), ([0, 1], Fragment::First), ([0, 9], Fragment::Later)]
    {
        let mut packet = changed(packet.clone(), 42, &field);
        let mut info = PacketInfo::parse(&packet).unwrap();
        assert_eq!((info.fragment, info.protocol), (kind, 17));
        let before = packet[48..].to_vec();
        assert!(rewrite_source(&mut packet, &mut info, ip("fd00::2")));
        assert_eq!(packet[48..] == before, kind == Fragment::Later);
    }
}

#[test]
fn a_quote_about_somebody_else_is_left_alone() {
    let quote = build(ip("10.0.0.7"), ip("10.9.0.1"), 0, &Transport::Udp(vec![]));
    let error = build(ip("10.9.0.1"), ip("10.0.0.1"), 0, &Transport::Error(quote.clone()));
    let mut packet = error.clone();
    let mut info = PacketInfo::parse(&packet).unwrap();
    assert!(rewrite_destination(&mut packet, &mut info, ip("10.0.0.2")));
    assert_eq!(packet[20..], error[20..]);
}

#[test]
fn a_quote_whose_header_ends_before_its_addresses_is_left_alone() {
    let quote = build(ip("10.9.0.1"), ip("10.0.0.1"), 0, &Transport::Udp(vec![]));
    let error = v4(Transport::Error(changed(quote, 0, &[0x44])));
    let mut packet = error.clone();
    let mut info = PacketInfo::parse(&packet).unwrap();
    assert!(rewrite_source(&mut packet, &mut info, ip("10.0.0.2")));
    assert!(rewrite_destination(&mut packet, &mut info, ip("10.9.0.2")));
    assert_eq!(packet[20..], error[20..]);
}

#[test]
fn the_same_address_changes_nothing_and_another_family_is_refused() {
    let original = v4(Transport::Tcp(vec![1, 2, 3]));
    let mut packet = original.clone();
    let mut info = PacketInfo::parse(&packet).unwrap();
    assert!(rewrite_source(&mut packet, &mut info, ip("10.0.0.1")));
    assert!(!rewrite_source(&mut packet, &mut info, ip("fd00::1")));
    assert_eq!(packet, original);
    assert!(
        !rewrite_source(&mut packet[..10], &mut info, ip("10.0.0.9")),
        "not the packet that was parsed"
    );
    assert_eq!(info.source, ip("10.0.0.1"));
}

#[test]
fn answers_name_the_fault_and_quote_the_packet() {
    let kinds = [
        (IcmpError::HostUnreachable, [3, 1], [1, 3], 0),
        (IcmpError::AdministrativelyProhibited, [3, 13], [1, 1], 0),
        (IcmpError::TooBig { mtu: 1300 }, [3, 4], [2, 0], 1300u32),
    ];
    for (kind, type_v4, type_v6, value) in kinds {
        let original = v4(Transport::Udp(vec![7; 1400]));
        let out = answer(kind, &original).unwrap();
        let info = PacketInfo::parse(&out).unwrap();
        assert_eq!((info.source, info.destination), (V4.into(), ip("10.0.0.1")));
        assert_eq!((&out[20..22], &out[24..28]), (&type_v4[..], &value.to_be_bytes()[..]));
        assert_eq!((out.len(), &out[28..]), (576, &original[..548]));
        assert_eq!((verdict(&out).header, verdict(&out).transport), (Some(true), Some(true)));

        let original = v6(0, Transport::Udp(vec![7; 1400]));
        let out = answer(kind, &original).unwrap();
        let info = PacketInfo::parse(&out).unwrap();
        assert_eq!((info.source, info.destination), (ip("fd01::1"), ip("fd00::1")));
        assert_eq!((&out[40..42], &out[44..48]), (&type_v6[..], &value.to_be_bytes()[..]));
        assert_eq!((out.len(), &out[48..]), (1280, &original[..1232]));
        assert_eq!(verdict(&out).transport, Some(true));
    }
    let ping = v4(Transport::Echo(vec![1; 5]));
    assert_eq!(answer(IcmpError::HostUnreachable, &ping).unwrap()[28..], ping);
    let with_more = [&ping[..], &[9; 4]].concat();
    assert_eq!(answer(IcmpError::HostUnreachable, &with_more).unwrap()[28..], ping);
}

#[test]
fn some_packets_are_never_answered() {
    let quote = || v4(Transport::Udp(vec![]));
    let udp = || Transport::Udp(vec![1; 8]);
    let silent = [
        ("an ICMP error", v4(Transport::Error(quote()))),
        ("an ICMP redirect", changed(v4(Transport::Error(quote())), 20, &[5])),
        ("an ICMPv6 error", v6(0, Transport::Error(vec![]))),
        ("an unknown ICMPv6 error", changed(v6(0, Transport::Error(vec![])), 40, &[99])),
        ("an ICMPv6 redirect", changed(v6(0, Transport::Error(vec![])), 40, &[137])),
        ("ICMP without a type", changed(v4(Transport::Other(vec![])), 9, &[1])),
        ("IGMP", changed(v4(Transport::Other(vec![0; 8])), 9, &[2])),
        ("a later fragment", changed(v4(udp()), 6, &[0, 1])),
        ("to multicast", build(ip("10.0.0.1"), ip("224.0.0.251"), 0, &udp())),
        ("to broadcast", build(ip("10.0.0.1"), ip("255.255.255.255"), 0, &udp())),
        ("to IPv6 multicast", build(ip("fd00::1"), ip("ff02::fb"), 0, &udp())),
        ("from loopback", build(ip("127.0.0.1"), ip("10.0.0.1"), 0, &udp())),
        ("from multicast", build(ip("224.0.0.1"), ip("10.0.0.1"), 0, &udp())),
        ("from nowhere", build(ip("::"), ip("fd00::1"), 0, &udp())),
        ("malformed", quote()[..27].to_vec()),
    ];
    for (name, packet) in silent {
        assert_eq!(answer(IcmpError::HostUnreachable, &packet), None, "{name}");
    }
    let first = changed(v4(udp()), 6, &[0x20, 0]);
    assert!(answer(IcmpError::HostUnreachable, &first).is_some(), "a first fragment is answered");
}
