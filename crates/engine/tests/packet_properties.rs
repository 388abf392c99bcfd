//! Translation against a full recomputation, and every parser against any bytes.

mod oracle;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use oracle::packets::{Transport, Verdict, build, verdict};
use proptest::{prelude::*, sample::Index};
use ztna_engine::{
    classify::{Class, classify},
    flow::FlowKey,
    icmp::{self, IcmpError},
    packet::{Fragment, PacketInfo},
    translate::{rewrite_destination, rewrite_source},
};

fn address(v6: bool) -> BoxedStrategy<IpAddr> {
    if v6 {
        any::<[u16; 3]>()
            .prop_map(|[a, b, c]| IpAddr::V6(Ipv6Addr::new(0xFD00, 0xFFFF, a, b, 0, 0xFFFF, 0, c)))
            .boxed()
    } else {
        (1u8..127, any::<[u8; 3]>())
            .prop_map(|(a, [b, c, d])| IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            .boxed()
    }
}

fn transport() -> impl Strategy<Value = Transport> {
    let payload = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            prop::collection::vec(Just(0xFF), 0..9)
        ]
    };
    prop_oneof![
        payload().prop_map(Transport::Tcp),
        payload().prop_map(Transport::Udp),
        payload().prop_map(Transport::UdpPlain),
        payload().prop_map(Transport::UdpLite),
        payload().prop_map(Transport::Dccp),
        payload().prop_map(Transport::Echo),
        payload().prop_map(Transport::Other),
    ]
}

/// Two ends of one family, and one more address.
fn ends() -> impl Strategy<Value = [IpAddr; 3]> {
    any::<bool>().prop_flat_map(|v6| [address(v6), address(v6), address(v6)])
}

fn info(packet: &[u8]) -> PacketInfo {
    PacketInfo::parse(packet).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_translated_packet_is_the_one_its_new_sender_would_have_built(
        [old, remote, new] in ends(), transport in transport(), extra in 0usize..3, trailing in 0usize..5,
    ) {
        let mut packet = build(old, remote, extra, &transport);
        prop_assert_ne!(verdict(&packet).transport, Some(false));
        let length = packet.len();
        packet.resize(length + trailing, 0xEE);
        let mut facts = info(&packet);
        prop_assert!(rewrite_source(&mut packet, &mut facts, new));
        prop_assert_eq!(&packet[..length], build(new, remote, extra, &transport));
        prop_assert_eq!(facts, info(&packet));
        prop_assert!(packet[length..].iter().all(|byte| *byte == 0xEE), "bytes after the packet are not touched");

        let mut packet = build(remote, old, extra, &transport);
        let mut facts = info(&packet);
        prop_assert!(rewrite_destination(&mut packet, &mut facts, new));
        prop_assert_eq!(packet, build(remote, new, extra, &transport));
    }

    #[test]
    fn a_translated_icmp_error_is_the_one_about_the_translated_packet(
        [old, remote, new] in ends(), transport in transport(), extra in 0usize..3, cut in any::<Index>(),
    ) {
        let header = if old.is_ipv6() { 40 } else { 20 };
        let quote = |from, to| {
            let quote = build(from, to, extra, &transport);
            // Whole words: nobody can translate half a checksum.
            let keep = header + cut.index((quote.len() - header) / 2 + 1) * 2;
            Transport::Error(quote[..keep].to_vec())
        };
        // To the agent: about a packet that it sent.
        let mut packet = build(remote, old, 0, &quote(old, remote));
        let mut facts = info(&packet);
        prop_assert!(rewrite_destination(&mut packet, &mut facts, new));
        prop_assert_eq!(&packet, &build(remote, new, 0, &quote(new, remote)));
        prop_assert_eq!(verdict(&packet).transport, Some(true));
        // From the agent: about a packet that it was sent.
        let mut packet = build(old, remote, 0, &quote(remote, old));
        let mut facts = info(&packet);
        prop_assert!(rewrite_source(&mut packet, &mut facts, new));
        prop_assert_eq!(&packet, &build(new, remote, 0, &quote(remote, new)));
    }

    #[test]
    fn what_was_right_stays_right_and_what_was_wrong_stays_wrong(
        [old, remote, new] in ends(), transport in transport(), extra in 0usize..3,
        quoted in any::<bool>(), damage in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
    ) {
        let mut packet = build(remote, old, extra, &transport);
        if quoted {
            packet = build(old, remote, extra, &Transport::Error(packet));
        }
        for (at, value) in damage {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        let Ok(mut facts) = PacketInfo::parse(&packet) else { return Ok(()) };
        packet.truncate(facts.total_len);
        let before = verdict(&packet);
        if facts.source.is_ipv6() == new.is_ipv6() {
            prop_assert!(rewrite_source(&mut packet, &mut facts, new));
            prop_assert_eq!(verdict(&packet), before);
            prop_assert!(rewrite_destination(&mut packet, &mut facts, old));
            prop_assert_eq!(verdict(&packet), before);
        } else {
            let unchanged = packet.clone();
            prop_assert!(!rewrite_source(&mut packet, &mut facts, new));
            prop_assert_eq!(packet, unchanged);
        }
    }

    #[test]
    fn no_bytes_upset_any_parser(mut bytes in prop::collection::vec(any::<u8>(), 0..120), version in 0u8..4) {
        if let (Some(first), 1..) = (bytes.first_mut(), version) {
            *first = [0x45, 0x60, 0x4F][usize::from(version) - 1];
        }
        if let Class::ServiceRouted { service, packet_offset } = classify(&bytes) {
            prop_assert_eq!(service.len() + 2, packet_offset);
            prop_assert!(bytes.len() - packet_offset >= 20);
        }
        let mut out = Vec::new();
        let answer = icmp::error(IcmpError::HostUnreachable, &bytes, Ipv4Addr::new(192, 0, 0, 8), Ipv6Addr::LOCALHOST, &mut out);
        if let Ok(facts) = PacketInfo::parse(&bytes) {
            prop_assert!(facts.transport <= facts.total_len && facts.total_len <= bytes.len());
            FlowKey::from_agent(&bytes, &facts);
            FlowKey::to_agent(&bytes, &facts);
        } else {
            prop_assert_eq!(answer, None);
        }
        if answer.is_some() {
            let Verdict { header, transport, .. } = verdict(&out);
            prop_assert_ne!(header, Some(false));
            prop_assert_eq!(transport, Some(true));
        }
    }

    #[test]
    fn both_directions_and_icmp_errors_of_a_flow_have_one_key([agent, remote, router] in ends(), payload: [u8; 12]) {
        for transport in [Transport::Tcp(payload.to_vec()), Transport::Udp(payload.to_vec()), Transport::Echo(payload.to_vec())] {
            let out = build(agent, remote, 0, &transport);
            let key = FlowKey::from_agent(&out, &info(&out));
            let error = build(router, agent, 0, &Transport::Error(out[..out.len() - 12].to_vec()));
            prop_assert_eq!(FlowKey::to_agent(&error, &info(&error)), key);
            let mut back = build(remote, agent, 0, &transport);
            let at = info(&back).transport;
            if !matches!(transport, Transport::Echo(_)) {
                let ports: [u8; 4] = back[at..at + 4].try_into().unwrap();
                back[at..at + 4].copy_from_slice(&[ports[2], ports[3], ports[0], ports[1]]);
            }
            prop_assert_eq!(FlowKey::to_agent(&back, &info(&back)), key);
        }
    }

    #[test]
    fn fragments_are_translated_as_the_whole_would_be(
        old in address(false), remote in address(false), new in address(false),
        payload in prop::collection::vec(any::<u8>(), 64),
    ) {
        let fragments = |from| {
            let whole = build(from, remote, 0, &Transport::Udp(payload.clone()));
            let mut first = whole[..44].to_vec();
            let mut later = [&whole[..20], &whole[44..]].concat();
            for (fragment, word) in [(&mut first, 0x2000u16), (&mut later, 3)] {
                let length = fragment.len() as u16;
                fragment[2..4].copy_from_slice(&length.to_be_bytes());
                fragment[6..8].copy_from_slice(&word.to_be_bytes());
                fragment[10..12].fill(0);
                let sum = ztna_engine::checksum::finish(ztna_engine::checksum::sum(&fragment[..20]));
                fragment[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            [(first, Fragment::First), (later, Fragment::Later)]
        };
        for ((mut got, kind), (expected, _)) in fragments(old).into_iter().zip(fragments(new)) {
            let mut facts = info(&got);
            prop_assert_eq!(facts.fragment, kind);
            prop_assert!(rewrite_source(&mut got, &mut facts, new));
            prop_assert_eq!(got, expected);
        }
    }
}
