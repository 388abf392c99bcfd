//! UDP flows of a stack: how they end, and how they make room.
#![allow(missing_docs)]

mod pipe;

use std::{net::IpAddr, time::Duration};

use pipe::{Application, SOURCE, Weather, World, destination};
use ztna_netstack::{Arrival, Backend, PacketBuilder, Refusal, Transport, TunnelDrop};
use ztna_packet::icmp::{self, IcmpError};

#[test]
fn both_ways_and_its_end() {
    let mut world = World::new(Application::Echo, Weather::default());
    let now = world.now;
    for (source, to) in [
        (IpAddr::from(SOURCE), destination()),
        ("fd64::1".parse().unwrap(), "[fd00::1]:80".parse().unwrap()),
    ] {
        let id = world.agent.stack.open(Transport::Udp, source, to, now).unwrap();
        let largest = if to.is_ipv4() { 65_507 } else { 65_527 };
        for payload in [&b"question"[..], b"", &[7; 1100], &[8; 1200], &vec![9; largest]] {
            assert!(world.agent.stack.send_udp(id, payload, world.now));
            while world.connector.udp.is_empty() && world.step() {}
            let (flow, seen) = world.connector.udp.pop().unwrap();
            assert!(seen == payload);
            assert!(world.connector.stack.send_udp(flow, payload, world.now));
            while world.agent.udp.is_empty() && world.step() {}
            assert!(world.agent.udp.pop().unwrap() == (id, payload.to_vec()));
        }
        assert!(!world.agent.stack.send_udp(id, &vec![0; largest + 1], world.now));
    }
    assert_eq!(world.connector.counters.udp_flows.get(), 2);
    assert!(world.connector.stack.expire(now + Duration::from_secs(59)).is_empty());
    assert_eq!(world.connector.stack.expire(world.now + Duration::from_secs(60)).len(), 2);
    assert!(world.connector.stack.is_empty());
}

#[test]
fn more_questions_than_flows_displace_the_oldest() {
    let mut world = World::new(Application::Echo, Weather::default());
    let source = IpAddr::from(SOURCE);
    let start = world.now;
    let open = |world: &mut World| {
        world.now += Duration::from_millis(5);
        world.agent.stack.open(Transport::Udp, source, destination(), world.now).unwrap()
    };
    let (busy, idle) = (open(&mut world), open(&mut world));
    for _ in 0..2500 {
        open(&mut world);
        world.agent.stack.send_udp(busy, b"again", world.now);
    }
    let stack = &mut world.agent.stack;
    assert_eq!(stack.len(), 1024);
    assert!(stack.contains(busy), "it is in use");
    let displaced = stack.take_displaced();
    assert_eq!((displaced.len(), displaced[0]), (2502 - 1024, idle));
    assert_eq!(world.agent.counters.udp_displaced.get(), 2502 - 1024);
    assert_eq!(world.dropped(TunnelDrop::FlowLimit), 0);
    assert!(world.now < start + Duration::from_secs(60), "none has run out");
    // A TCP connection gets its place as well, and never gives it up.
    assert!(world.open(destination()).is_some());
    assert_eq!(world.agent.stack.len(), 1024);
}

#[test]
fn an_agent_with_several_addresses_leaves_flows_to_others() {
    let mut world = World::new(Application::Echo, Weather::default());
    let open = |world: &mut World, host: u8, port: u16| {
        world.now += Duration::from_millis(3);
        let question = packet(&format!("100.64.0.{host}:{port}"), "198.18.0.1:80");
        matches!(world.connector.stack.receive(&question, world.now), Arrival::Udp(..))
    };
    for port in 10_000..11_200 {
        // It may have four inner addresses; the longest idle flow of each makes room.
        assert!((1..=4).all(|host| open(&mut world, host, port)));
    }
    let taken = world.connector.stack.len();
    assert!(taken <= 2048 * 4 / 5 + 4, "{taken} of 2048");
    for port in 1..=200 {
        assert!(open(&mut world, 9, port), "another agent's flow {port}");
    }
    let others = 200;
    assert_eq!(world.connector.stack.len(), taken + others, "none of them made room");
}

#[test]
fn a_question_to_a_resolver_ends_early_whatever_the_inner_port() {
    let mut world = World::new(Application::Echo, Weather::default());
    let dns = Backend {
        service: "dns".into(),
        transport: Transport::Udp,
        addresses: vec!["10.0.0.53:53".parse().unwrap()],
        service_addresses: vec![destination().ip()],
        proxy_protocol: false,
    };
    world.connector.stack.set_services(vec![dns]);
    let question = packet("100.64.0.9:40000", "198.18.0.1:5300");
    world.connector.stack.receive(&question, world.now);
    let soon = world.now + Duration::from_secs(9);
    assert!(world.connector.stack.expire(soon).is_empty());
    assert_eq!(world.connector.stack.expire(soon + Duration::from_secs(1)).len(), 1);
}

#[test]
fn who_asks_is_told_why_nobody_answers() {
    for (refusal, code) in [(Refusal::Refused, 3), (Refusal::Unreachable, 1)] {
        let mut world = World::new(Application::Echo, Weather::default());
        let question = packet("100.64.0.9:40000", "198.18.0.1:80");
        let arrival = world.connector.stack.receive(&question, world.now);
        let Arrival::Udp(id, Some(_), _) = arrival else { panic!("{arrival:?}") };
        world.connector.stack.refuse_udp(id, refusal, world.now);
        let answer = world.connector.stack.take().next().unwrap();
        // Destination unreachable (RFC 792): the port, or the host.
        assert_eq!(answer.packet()[20..22], [3, code]);
        assert!(world.connector.stack.is_empty());
    }
}

#[test]
fn an_agent_hears_why_nobody_answers() {
    for to in [destination(), "[fd00::1]:80".parse().unwrap()] {
        for payload in [&b"question"[..], &[7; 5000]] {
            for refusal in [Refusal::Refused, Refusal::Unreachable] {
                let mut world = World::new(Application::Echo, Weather::default());
                let source = if to.is_ipv4() { SOURCE.into() } else { "fd64::1".parse().unwrap() };
                let id = world.agent.stack.open(Transport::Udp, source, to, world.now).unwrap();
                world.agent.stack.send_udp(id, payload, world.now);
                while world.connector.udp.is_empty() && world.step() {}
                let (flow, _) = world.connector.udp.pop().unwrap();
                world.connector.stack.refuse_udp(flow, refusal, world.now);
                while world.agent.refused.is_empty() && world.step() {}
                assert_eq!(world.agent.refused, [(id, refusal)]);
            }
        }
    }
}

#[test]
fn a_narrower_path_is_heeded_by_all_flows_to_its_end() {
    for to in [destination(), "[fd00::1]:80".parse().unwrap()] {
        let mut world = World::new(Application::Echo, Weather::default());
        let source = if to.is_ipv4() { SOURCE.into() } else { "fd64::1".parse().unwrap() };
        let open = |world: &mut World| {
            world.agent.stack.open(Transport::Udp, source, to, world.now).unwrap()
        };
        let sizes = |world: &mut World, id| {
            world.agent.stack.send_udp(id, &[7; 4000], world.now);
            world.agent.stack.take().map(|o| o.packet().to_vec()).collect::<Vec<_>>()
        };
        let id = open(&mut world);
        let fragments = sizes(&mut world, id);
        assert!(fragments[0].len() > 1100);
        // A relay that cannot pass on the first fragment says so (RFC 1191); not of others.
        let mut error = Vec::new();
        let (v4, v6) = ("192.0.0.8".parse().unwrap(), "fd64::8".parse().unwrap());
        let too_big = IcmpError::TooBig { mtu: 900 };
        icmp::error(too_big, &fragments[0], v4, v6, &mut error).unwrap();
        world.agent.stack.receive(&error, world.now);
        for id in [id, open(&mut world)] {
            assert!(sizes(&mut world, id).iter().all(|fragment| fragment.len() <= 900));
        }
        // The path may be wider one day.
        world.agent.stack.expire(world.now + Duration::from_secs(600));
        let id = open(&mut world);
        assert!(sizes(&mut world, id)[0].len() > 1100);
    }
}

#[test]
fn an_agent_answers_a_stray_packet_to_the_service_it_came_from() {
    let mut world = World::new(Application::Echo, Weather::default());
    let late = packet("198.18.0.1:80", "100.64.0.1:50000");
    world.agent.stack.receive(&late, world.now);
    let answer = world.agent.stack.take().next().unwrap();
    assert_eq!(answer.datagram[..answer.wrapper], *b"\x2F\x03web");
}

fn packet(from: &str, to: &str) -> Vec<u8> {
    let mut out = PacketBuilder::default();
    assert!(out.udp(&[], from.parse().unwrap(), to.parse().unwrap(), b"?", 1200));
    out.take().next().unwrap().packet().to_vec()
}
