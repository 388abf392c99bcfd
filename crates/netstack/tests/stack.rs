//! An agent's stack against a connector's, through good and bad weather.
#![allow(missing_docs)]

mod pipe;

use std::{net::SocketAddr, time::Duration};

use pipe::{Application, Weather, World, destination};
use ztna_netstack::{FlowId, PacketBuilder, TcpState, Transport, TunnelDrop};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn what_is_sent_comes_back_in_any_weather() {
    for (weather, len) in [
        (Weather::default(), 4_000_000),
        (Weather { reorder: 20, duplicate: 20, ..Weather::default() }, 1_000_000),
        (Weather { loss: 2, reorder: 2, duplicate: 1, ..Weather::default() }, 1_000_000),
        (Weather { loss: 20, reorder: 10, duplicate: 10, ..Weather::default() }, 60_000),
    ] {
        for to in [destination(), "[fd00::1]:80".parse().unwrap()] {
            let mut world = World::new(Application::Echo, weather);
            let id = world.open(to).unwrap();
            let data = pattern(len);
            let back = world.exchange(&[id], &data);
            assert!(back[0] == data, "{weather:?}: {} of {len} bytes", back[0].len());
            assert_eq!(world.state(id), Some(TcpState::Done));
        }
    }
}

#[test]
fn five_hundred_flows_at_once() {
    let mut world = World::new(Application::Echo, Weather { loss: 1, ..Weather::default() });
    let ids: Vec<FlowId> = (0..500).map(|_| world.open(destination()).unwrap()).collect();
    let data = pattern(20_000);
    for (i, back) in world.exchange(&ids, &data).iter().enumerate() {
        assert!(*back == data, "flow {i}: {} bytes", back.len());
    }
    for id in ids {
        world.agent.stack.release(id);
    }
    for id in world.connector.flows.keys().copied().collect::<Vec<_>>() {
        world.connector.stack.release(id);
    }
    assert!(world.agent.stack.len() <= 64 && world.connector.stack.len() <= 64);
    world.agent.stack.expire(world.now + Duration::from_secs(11));
    world.connector.stack.expire(world.now + Duration::from_secs(11));
    assert!(world.agent.stack.is_empty() && world.connector.stack.is_empty());
}

#[test]
fn a_backend_that_refuses_or_is_away_ends_the_flow_at_once() {
    for application in [Application::Refuses, Application::Unreachable] {
        let mut world = World::new(application, Weather::default());
        let start = world.now;
        let id = world.open(destination()).unwrap();
        assert_eq!(world.settle(id), Some(TcpState::Aborted), "{application:?}");
        assert!(world.now - start < Duration::from_millis(100));
        assert!(world.connector.stack.is_empty());
        assert_eq!(world.connector.counters.tcp_refused.get(), 1);
    }
}

#[test]
fn nobody_gets_through_to_what_is_not_named() {
    let mut world = World::new(Application::Echo, Weather::default());
    let to = "198.18.0.2:81".parse().unwrap();
    world.agent.stack.set_wrapper(to, b"other");
    // Two services, and the address of neither: that the port is one of theirs says nothing.
    let mut other = pipe_backend("203.0.113.1:81");
    other.service_addresses.clear();
    world.connector.stack.set_services(vec![other.clone(), pipe_backend("203.0.113.2:82")]);
    let id = world.open(to).unwrap();
    assert_eq!(world.settle(id), Some(TcpState::Aborted));
    assert_eq!(world.dropped(TunnelDrop::NoService), 1);
    assert!(world.connector.stack.is_empty());
}

fn pipe_backend(address: &str) -> ztna_netstack::Backend {
    ztna_netstack::Backend {
        service: bytes::Bytes::copy_from_slice(address.as_bytes()),
        transport: Transport::Tcp,
        addresses: vec![address.parse().unwrap()],
        service_addresses: vec!["198.18.9.9".parse().unwrap()],
        proxy_protocol: false,
    }
}

#[test]
fn a_reset_reaches_the_other_side() {
    for steps in [0, 2] {
        reset_after(steps);
    }
}

/// Resets a flow so many steps after the agent has seen its SYN answered: with none, before the
/// connector has seen that.
fn reset_after(steps: usize) {
    let mut world = World::new(Application::Deaf, Weather::default());
    let id = world.open(destination()).unwrap();
    assert_eq!(world.settle(id), Some(TcpState::Open));
    for _ in 0..steps {
        world.step();
    }
    world.agent.stack.tcp(id).unwrap().abort();
    world.agent.flows.insert(id, world.now);
    let end = world.now + Duration::from_secs(10);
    while world.now < end && world.step() {
        let id = *world.connector.flows.keys().next().unwrap();
        if world.connector.stack.tcp(id).unwrap().state() == TcpState::Aborted {
            return;
        }
    }
    panic!("the connector's flow lives on");
}

#[test]
fn a_deaf_application_stops_the_sender() {
    let mut world = World::new(Application::Deaf, Weather::default());
    let id = world.open(destination()).unwrap();
    world.settle(id);
    let mut sent = 0;
    let end = world.now + Duration::from_secs(30);
    while world.now < end && world.step() {
        let flow = world.agent.stack.tcp(id).unwrap();
        let n = flow.send(|room| room.len());
        if n > 0 {
            sent += n;
            world.agent.flows.insert(id, world.now);
        }
    }
    assert!((2 << 20..=(2 << 20) + 4096).contains(&sent), "{sent} bytes for two buffers of 1 MiB");
    // It is not dead: the moment the application reads, bytes flow again.
    world.application = Application::Echo;
    let more = world.now + Duration::from_secs(5);
    while world.now < more && world.step() {}
    assert!(world.agent.stack.tcp(id).unwrap().readable() > 0);
}

#[test]
fn a_retransmission_that_finds_no_room_is_sent_later() {
    let mut world = World::new(Application::Deaf, Weather::default());
    let id = world.open(destination()).unwrap();
    world.settle(id);
    let fill = |world: &mut World| {
        world.agent.stack.tcp(id).unwrap().send(|room| 60_000.min(room.len()));
        world.agent.flows.insert(id, world.now);
    };
    fill(&mut world);
    while world.agent.stack.tcp(id).unwrap().unsent() > 0 {
        world.step();
    }
    // Of a flight the first packet is lost, and all that follow the next three.
    fill(&mut world);
    world.agent.stack.flush(id, 1000, world.now);
    let flight: Vec<_> = world.agent.stack.take().collect();
    for outgoing in &flight[1..4] {
        world.connector.stack.receive(outgoing.packet(), world.now);
    }
    for answer in world.connector.stack.take() {
        world.agent.stack.receive(answer.packet(), world.now);
    }
    assert!(world.agent.stack.flush(id, 0, world.now).blocked);
    let flush = world.agent.stack.flush(id, 1, world.now);
    let again: Vec<_> = world.agent.stack.take().collect();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].packet()[40..], flight[0].packet()[40..]);
    // And if that is lost as well, again after the time that Linux would wait.
    assert!(flush.deadline.unwrap() < world.now + Duration::from_millis(250));
}

#[test]
fn a_smaller_path_is_heeded() {
    let mut world = World::new(Application::Echo, Weather::default());
    let id = world.open(destination()).unwrap();
    world.settle(id);
    // The connection to the relay carries less than when the flow began.
    for side in [&mut world.agent, &mut world.connector] {
        side.stack.set_datagram_limit(900);
    }
    world.agent.stack.tcp(id).unwrap().send(|room| room.len());
    world.agent.stack.flush(id, 1000, world.now);
    let sizes: Vec<usize> = world.agent.stack.take().map(|o| o.datagram.len()).collect();
    assert!(!sizes.is_empty() && sizes.iter().all(|size| *size <= 900), "{sizes:?}");
}

#[test]
fn a_path_that_becomes_narrower_without_a_word_is_found_out() {
    for to in [destination(), "[fd00::1]:80".parse().unwrap()] {
        let mut world = World::new(Application::Echo, Weather::default());
        for side in [&mut world.agent, &mut world.connector] {
            side.stack.set_datagram_limit(1300);
        }
        let id = world.open(to).unwrap();
        world.settle(id);
        world.weather.narrow = 1150;
        let (data, start) = (pattern(200_000), world.now);
        assert!(world.exchange(&[id], &data)[0] == data);
        let took = world.now - start;
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

#[test]
fn echo_requests_are_answered_within_a_rate() {
    let mut world = World::new(Application::Echo, Weather::default());
    let mut web = pipe_backend("127.0.0.1:80");
    web.service_addresses = vec![destination().ip(), "fd00::1".parse().unwrap()];
    world.connector.stack.set_services(vec![web, pipe_backend("203.0.113.1:81")]);
    let mut asked = PacketBuilder::default();
    for (from, to) in
        [("100.64.0.9", "198.18.0.1"), ("fd64::9", "fd00::1"), ("10.0.0.1", "10.0.0.2")]
    {
        asked.echo_request(&[], from.parse().unwrap(), to.parse().unwrap(), 0);
    }
    let asked: Vec<_> = asked.take().collect();
    for packet in &asked {
        world.connector.stack.receive(packet.packet(), world.now);
    }
    let answers: Vec<_> = world.connector.stack.take().collect();
    assert_eq!(answers.len(), 2, "the third is to none of the services");
    assert_eq!(world.dropped(TunnelDrop::NoService), 1);
    // An answer is what was asked, turned around; a stack has no use for one.
    assert_eq!(answers[0].packet()[12..16], [198, 18, 0, 1]);
    world.agent.stack.receive(answers[0].packet(), world.now);
    assert_eq!(world.dropped(TunnelDrop::Protocol), 1);
    for _ in 0..1000 {
        world.connector.stack.receive(asked[0].packet(), world.now);
    }
    assert!(world.connector.counters.echo_answered.get() <= 200);
    assert!(world.dropped(TunnelDrop::EchoRate) >= 800);
}

#[test]
fn a_source_has_no_more_flows_than_it_may() {
    let mut world = World::new(Application::Deaf, Weather::default());
    let mut opened = 0;
    for _ in 0..3000 {
        world.now += Duration::from_millis(3);
        opened += usize::from(world.open(destination()).is_some());
    }
    assert_eq!(opened, 1024);
    assert_eq!(world.dropped(TunnelDrop::FlowLimit), 3000 - 1024);
    let mut world = World::new(Application::Deaf, Weather::default());
    let opened = (0..1000).filter(|_| world.open(destination()).is_some()).count();
    assert_eq!(opened, 500, "at one moment only the burst");
}

#[test]
fn connections_to_some_leave_places_for_the_others() {
    let mut world = World::new(Application::Echo, Weather::default());
    let ends: Vec<SocketAddr> = (1..=5).map(|host| ([198, 18, 1, host], 80).into()).collect();
    for end in &ends {
        world.agent.stack.set_wrapper(*end, b"web");
    }
    for _ in 0..1200 {
        world.now += Duration::from_millis(3);
        for end in &ends[..4] {
            world.open(*end);
        }
    }
    let taken = world.agent.stack.len();
    assert!(taken <= 4096 * 4 / 5 + 4, "{taken} of 4096");
    for number in 0..400 {
        world.now += Duration::from_millis(3);
        assert!(world.open(ends[4]).is_some(), "connection {number} of the fifth");
    }
}
