//! Packets in fragments: all that is whole arrives, nothing that contradicts itself does, and what
//! is held has a bound.
#![allow(missing_docs)]

mod pipe;

use std::{net::SocketAddr, time::Duration};

use pipe::{Application, Side, Weather, World, destination};
use proptest::prelude::*;
use ztna_netstack::{Arrival, PacketBuilder, TunnelDrop};
use ztna_packet::{checksum, packet::PacketInfo};

const MIB: u64 = 1 << 20;

fn ends(v6: bool, host: u16) -> (SocketAddr, SocketAddr) {
    if v6 {
        let source = std::net::Ipv6Addr::new(0xFD64, 0, 0, 0, 0, 0, 0, host);
        ((source, 40_000).into(), "[fd00::1]:80".parse().unwrap())
    } else {
        let [high, low] = host.to_be_bytes();
        (([100, 64, high, low], 40_000).into(), destination())
    }
}

/// A UDP packet in fragments of at most `mtu` bytes.
fn cut(v6: bool, host: u16, payload: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let (from, to) = ends(v6, host);
    let mut out = PacketBuilder::default();
    assert!(out.udp(&[], from, to, payload, mtu));
    out.take().map(|outgoing| outgoing.packet().to_vec()).collect()
}

/// The payloads that arrive at a connector.
fn deliver<'a>(world: &mut World, packets: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<Vec<u8>> {
    let Side { stack, .. } = &mut world.connector;
    let arrivals = packets.into_iter().map(|packet| match stack.receive(packet, world.now) {
        Arrival::Udp(_, _, payload) => Some(payload.into_owned()),
        Arrival::Done => None,
        other => panic!("{other:?}"),
    });
    arrivals.flatten().collect()
}

/// One fragment as somebody hostile writes it.
#[derive(Clone, Debug)]
struct Forged {
    at: u16,
    more: bool,
    data: Vec<u8>,
}

impl Forged {
    /// Of the datagram that `like` belongs to.
    fn write(&self, like: &[u8]) -> Vec<u8> {
        let word = self.at / 8 * 8;
        if like[0] >> 4 == 6 {
            let mut packet = like[..48].to_vec();
            packet[4..6].copy_from_slice(&((8 + self.data.len()) as u16).to_be_bytes());
            packet[42..44].copy_from_slice(&(word | u16::from(self.more)).to_be_bytes());
            packet.extend(&self.data);
            return packet;
        }
        let mut packet = like[..20].to_vec();
        packet[2..4].copy_from_slice(&((20 + self.data.len()) as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&((word / 8) | (u16::from(self.more) << 13)).to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum::finish(checksum::sum(&packet));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(&self.data);
        packet
    }
}

fn forged() -> impl Strategy<Value = Forged> {
    (any::<u16>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(at, more, data)| Forged { at: at % 9000, more, data })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_arrives_once_in_whatever_order_its_fragments_come(
        v6: bool,
        length in prop_oneof![0usize..5000, 60_000usize..=65_507],
        mtu in 576usize..1500,
        order in prop::collection::vec(any::<prop::sample::Index>(), 130),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let payload: Vec<u8> = (0..length).map(|i| (i * 31 + i / 251) as u8).collect();
        let mut packets = cut(v6, 9, &payload, mtu);
        prop_assert!(packets.iter().all(|packet| packet.len() <= mtu));
        let mut shuffled = Vec::new();
        for pick in order {
            if packets.is_empty() {
                break;
            }
            shuffled.push(packets.swap_remove(pick.index(packets.len())));
        }
        // Some come twice; the last one completes the packet, and would begin it anew.
        for pick in again {
            if shuffled.len() > 1 {
                let copy = shuffled[pick.index(shuffled.len() - 1)].clone();
                shuffled.insert(shuffled.len() - 1, copy);
            }
        }
        let mut world = World::new(Application::Echo, Weather::default());
        let arrived = deliver(&mut world, &shuffled);
        prop_assert_eq!(arrived.len(), 1);
        prop_assert!(arrived[0] == payload);
        prop_assert_eq!(world.connector.counters.fragment_bytes.get(), 0);
    }

    #[test]
    fn fragments_that_contradict_each_other_never_arrive(
        v6: bool,
        length in 1500usize..8000,
        forged in prop::collection::vec((any::<prop::sample::Index>(), forged()), 1..4),
    ) {
        let payload: Vec<u8> = (0..length).map(|i| (i * 31 + i / 251) as u8).collect();
        let mut packets = cut(v6, 9, &payload, 1200);
        for (place, forged) in &forged {
            let packet = forged.write(&packets[0]);
            // Behind the last one the packet is complete and has left.
            packets.insert(place.index(packets.len()), packet);
        }
        let mut world = World::new(Application::Echo, Weather::default());
        // What completes a packet of its own has a checksum that is wrong. Fragments that fit
        // nowhere, because they are empty or odd, change nothing.
        for arrived in deliver(&mut world, &packets) {
            prop_assert!(arrived == payload);
        }
        let fragments = world.connector.counters.drops(TunnelDrop::Fragment);
        let malformed = world.connector.counters.drops(TunnelDrop::Malformed);
        prop_assert!(fragments + malformed > 0);
    }

    #[test]
    fn whatever_comes_what_is_held_has_a_bound(
        v6: bool,
        hosts in 1u16..40,
        fragments in prop::collection::vec((any::<u16>(), any::<u16>(), forged()), 1..400),
    ) {
        let mut world = World::new(Application::Echo, Weather::default());
        for (host, id, forged) in fragments {
            let mut like = cut(v6, 1 + host % hosts, &[0; 2000], 1200)[0].clone();
            let at = if v6 { 46 } else { 4 };
            like[at..at + 2].copy_from_slice(&id.to_be_bytes());
            let packet = forged.write(&like);
            prop_assert!(PacketInfo::parse(&packet).is_ok());
            world.connector.stack.receive(&packet, world.now);
            let held = world.connector.counters.fragment_bytes.get();
            prop_assert!(held <= u64::from(hosts) * MIB / 2);
        }
        world.connector.stack.expire(world.now + Duration::from_secs(10));
        prop_assert_eq!(world.connector.counters.fragment_bytes.get(), 0);
    }
}

#[test]
fn an_overlap_is_dropped_with_all_that_follows() {
    for v6 in [false, true] {
        let payload = [7; 5000];
        let packets = cut(v6, 9, &payload, 1200);
        let header = if v6 { 48 } else { 20 };
        for (at, length) in [(0, 8), (8, 8), (1144, 16), (16, 3000)] {
            let overlap = Forged { at, more: true, data: vec![9; length] }.write(&packets[0]);
            let mut world = World::new(Application::Echo, Weather::default());
            let mut sent = packets.clone();
            sent.insert(2, overlap);
            assert!(deliver(&mut world, &sent).is_empty());
            let dropped = world.connector.counters.drops(TunnelDrop::Fragment);
            assert_eq!(dropped, sent.len() as u64);
            // The next one is another datagram.
            let mut out = PacketBuilder::default();
            let (from, to) = ends(v6, 9);
            for _ in 0..2 {
                assert!(out.udp(&[], from, to, &payload, 1200));
            }
            let next: Vec<_> = out.take().skip(packets.len()).collect();
            let next: Vec<_> = next.iter().map(|o| o.packet().to_vec()).collect();
            assert_eq!(deliver(&mut world, &next), [payload.to_vec()]);
        }
        // A last fragment that ends the packet before others do.
        let early = Forged { at: 1200, more: false, data: packets[0][header..].to_vec() };
        let mut world = World::new(Application::Echo, Weather::default());
        let mut sent = packets.clone();
        sent.insert(3, early.write(&packets[0]));
        assert!(deliver(&mut world, &sent).is_empty());
    }
}

#[test]
fn a_flood_of_fragments_displaces_no_datagram_under_way() {
    let mut world = World::new(Application::Echo, Weather::default());
    let start = Forged { at: 0, more: true, data: vec![1; 1176] };
    let like = cut(false, 9, &[0; 3000], 1200)[0].clone();
    let payload = [7; 60_000];
    let mut number = 0u16;
    for piece in cut(false, 5, &payload, 1200) {
        // Each of many sources begins a datagram of its own, and ends none.
        for _ in 0..50 {
            number += 1;
            let mut packet = start.write(&like);
            packet[14..16].copy_from_slice(&(number % 1000 + 10).to_be_bytes());
            packet[4..6].copy_from_slice(&number.to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(&packet[..20]));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            world.connector.stack.receive(&packet, world.now);
        }
        world.now += Duration::from_millis(1);
        assert!(world.connector.counters.fragment_bytes.get() <= 4 * MIB);
        if let [arrived] = &deliver(&mut world, [&piece])[..] {
            assert!(*arrived == payload);
            assert!(world.connector.counters.drops(TunnelDrop::FragmentLimit) > 1000);
            return;
        }
    }
    panic!("it gave its place to others");
}

#[test]
fn what_stays_incomplete_is_given_up() {
    let mut world = World::new(Application::Echo, Weather::default());
    let packets = cut(false, 9, &[7; 5000], 1200);
    deliver(&mut world, &packets[1..]);
    assert!(world.connector.counters.fragment_bytes.get() > 0);
    world.connector.stack.expire(world.now + Duration::from_secs(9));
    assert_eq!(world.connector.counters.drops(TunnelDrop::FragmentTimeout), 0);
    world.now += Duration::from_secs(10);
    // Also where nobody looked in between: the first is the first of another datagram.
    assert!(deliver(&mut world, &packets[..1]).is_empty());
    let left = packets.len() as u64 - 1;
    assert_eq!(world.connector.counters.drops(TunnelDrop::FragmentTimeout), left);
    assert_eq!(deliver(&mut world, &packets[1..]), [vec![7; 5000]]);
}

#[test]
fn a_large_ping_comes_back() {
    for (v6, length) in [(false, 1400), (false, 65_000), (true, 1400), (true, 65_000)] {
        let mut world = World::new(Application::Echo, Weather::default());
        let mut out = PacketBuilder::default();
        let (from, to) = ends(v6, 9);
        out.echo_request(&[], from.ip(), to.ip(), 0);
        let mut request = out.take().next().unwrap().packet().to_vec();
        // More data and the same sum: zeros.
        request.resize(request.len() + length, 0);
        let header = if v6 { 40 } else { 20 };
        let total = request.len();
        if v6 {
            request[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        } else {
            request[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        }
        // ICMPv6 counts the length in.
        if v6 {
            let old = u16::from_be_bytes([request[42], request[43]]);
            let mut change = checksum::Delta::default();
            change.word(8, (8 + length) as u16);
            request[42..44].copy_from_slice(&change.apply(old).to_be_bytes());
        }
        assert!(out.packet(&[], &request, 1200));
        for packet in out.take().map(|o| o.packet().to_vec()).collect::<Vec<_>>() {
            assert!(matches!(world.connector.stack.receive(&packet, world.now), Arrival::Done));
        }
        assert_eq!(world.connector.counters.echo_answered.get(), 1);
        let answers: Vec<_> = world.connector.stack.take().collect();
        assert!(answers.len() > 1 && answers.iter().all(|o| o.packet().len() <= 1200));
        let bytes: usize =
            (answers.iter()).map(|o| o.packet().len() - header - if v6 { 8 } else { 0 }).sum();
        assert_eq!(bytes, total - header);
    }
}
