use super::*;

const CONNECTOR: ConnId = ConnId(9);

/// UDP from 100.64.0.1:`port` to 10.0.0.53:53.
fn packet(port: u16) -> [u8; 28] {
    let [high, low] = port.to_be_bytes();
    [
        0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 100, 64, 0, 1, 10, 0, 0, 53, high, low, 0, 53,
        0, 8, 0, 0,
    ]
}

/// The same as a part of a datagram, from the agent or to it; only the first has ports.
fn fragment(port: u16, id: u8, first: bool, to_agent: bool) -> [u8; 28] {
    let mut packet = packet(if first { port } else { 0 });
    packet[5] = id;
    packet[6..8].copy_from_slice(if first { &[0x20, 0] } else { &[0, 1] });
    if to_agent {
        packet[12..20].rotate_left(4);
        packet[20..24].rotate_left(2);
    }
    packet
}

fn sends(flows: &mut Flows, agent: u64, packet: &[u8], now: Instant) -> bool {
    flows.outbound(ConnId(agent), CONNECTOR, packet, &PacketInfo::parse(packet).unwrap(), now)
}

fn gets(flows: &mut Flows, packet: &[u8], now: Instant) -> Option<u64> {
    let info = PacketInfo::parse(packet).unwrap();
    flows.inbound(CONNECTOR, packet, &info, now).map(|agent| agent.0)
}

fn two_agents() -> (Flows, Instant) {
    let mut flows = Flows::default();
    for agent in [1, 2] {
        flows.attach(ConnId(agent), None, agent);
    }
    (flows, Instant::now())
}

#[test]
fn a_flow_is_one_agents_for_longer_than_a_kernel_keeps_it() {
    let (mut flows, now) = two_agents();
    assert!(sends(&mut flows, 1, &packet(5000), now));
    flows.detach(ConnId(1));
    let hours = |n: u64| now + Duration::from_secs(n * 3600);
    for later in [hours(1), hours(2), hours(3)] {
        flows.expire(later);
        assert!(!sends(&mut flows, 2, &packet(5000), later), "it may still be answered");
    }
    let later = hours(3) + Duration::from_secs(1);
    assert!(sends(&mut flows, 2, &packet(5000), later));
}

#[test]
fn an_identity_takes_its_flows_along() {
    let (mut flows, now) = (Flows::default(), Instant::now());
    flows.attach(ConnId(1), Some([1; 32]), 1);
    assert!(sends(&mut flows, 1, &packet(5000), now));
    flows.detach(ConnId(1));
    for (agent, identity) in [(2, Some([1; 32])), (3, Some([3; 32])), (4, None)] {
        flows.attach(ConnId(agent), identity, 1);
    }
    assert!(sends(&mut flows, 2, &packet(5000), now));
    assert!(!sends(&mut flows, 3, &packet(5000), now));
    assert!(!sends(&mut flows, 4, &packet(5000), now));
}

#[test]
fn answers_follow_an_identity_that_has_only_listened_since() {
    let (mut flows, now) = (Flows::default(), Instant::now());
    for agent in [1, 2] {
        flows.attach(ConnId(agent), Some([1; 32]), 1);
        assert!(agent == 2 || sends(&mut flows, 1, &packet(5000), now));
    }
    assert_eq!(gets(&mut flows, &turned(packet(5000)), now), Some(1));
    flows.detach(ConnId(1));
    assert_eq!(gets(&mut flows, &turned(packet(5000)), now), Some(2));
    flows.detach(ConnId(2));
    assert_eq!(gets(&mut flows, &turned(packet(5000)), now), Some(1), "and nobody else's");
    assert!(flows.newest.is_empty());
}

#[test]
fn every_fragment_of_an_answer_goes_where_the_first_goes() {
    let (mut flows, now) = two_agents();
    // Without a beginning a fragment is nobody's, and makes nothing its sender's.
    assert!(!sends(&mut flows, 1, &fragment(0, 1, false, false), now));
    for agent in [1, 2] {
        assert!(sends(&mut flows, agent, &packet(5000 + agent as u16), now));
    }
    assert_eq!(gets(&mut flows, &fragment(0, 7, false, true), now), None);
    for (agent, id) in [(1, 7), (2, 8)] {
        let first = fragment(5000 + agent as u16, id, true, true);
        assert_eq!(gets(&mut flows, &first, now), Some(agent));
    }
    for (agent, id) in [(1, 7), (2, 8), (1, 7)] {
        assert_eq!(gets(&mut flows, &fragment(0, id, false, true), now), Some(agent));
    }
    let late = now + FRAGMENTS + Duration::from_secs(1);
    assert_eq!(gets(&mut flows, &fragment(0, 7, false, true), late), None);
}

#[test]
fn no_agent_adds_to_the_datagram_of_another() {
    let (mut flows, now) = two_agents();
    assert!(sends(&mut flows, 1, &fragment(5001, 7, true, false), now));
    assert!(!sends(&mut flows, 2, &fragment(0, 7, false, false), now));
    assert!(!sends(&mut flows, 2, &fragment(5002, 7, true, false), now));
    assert!(sends(&mut flows, 1, &fragment(0, 7, false, false), now));
}

#[test]
fn one_agent_does_not_fill_the_table() {
    let (mut flows, now) = two_agents();
    flows.attach(ConnId(3), None, 1);
    let numbered = |n: u32| {
        let mut packet = packet(n as u16);
        packet[13..16].copy_from_slice(&n.to_be_bytes()[1..]);
        packet
    };
    // From one network by two connections, more than the table holds.
    for n in 0..MAX_FLOWS as u32 + 1000 {
        assert!(sends(&mut flows, if n % 2 == 0 { 1 } else { 3 }, &numbered(n), now));
    }
    assert!(flows.len() <= MAX_FLOWS / 2 + 1);
    for n in 0..10_000 {
        assert!(sends(&mut flows, 2, &numbered((1 << 23) + n), now), "another's flow {n}");
    }
    // Those that were used last are still there, and they give way to the others in the end.
    assert!(gets(&mut flows, &turned(numbered(MAX_FLOWS as u32 + 999)), now).is_some());
    for n in 0..MAX_FLOWS as u32 / 3 {
        assert!(sends(&mut flows, 2, &numbered((1 << 23) + n), now));
        assert!(sends(&mut flows, 1, &numbered((1 << 22) + n), now));
    }
    let held = |number: u64| flows.quotas[&number].held;
    assert!(held(2) >= MAX_FLOWS / 4 && held(1) <= MAX_FLOWS / 2, "{} {}", held(1), held(2));
    assert_eq!(flows.flows.len(), flows.quotas.values().map(|quota| quota.held).sum());
    flows.expire(now + QUARANTINE + Duration::from_secs(1));
    assert!(flows.flows.is_empty() && flows.quotas.is_empty());
}

fn turned(mut packet: [u8; 28]) -> [u8; 28] {
    packet[12..20].rotate_left(4);
    packet[20..24].rotate_left(2);
    packet
}
