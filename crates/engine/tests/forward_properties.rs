//! The forwarding rules under random operations. Never delivered to a connection that has no route
//! from the sender; never to an agent that does not own the destination. IPv4 and IPv6 alike, and
//! with every checksum right after a translation.

mod oracle;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use oracle::packets::{Transport, build, verdict};
use proptest::prelude::*;
use ztna_engine::{
    ConnId, RelayConfig, Target,
    forward::{Forwarder, Verdict},
    packet::PacketInfo,
    routes::Routes,
    virtuals::Virtuals,
};

const AGENTS: u32 = 6;
const CONNECTORS: u32 = 4;
const SERVICES: [&str; 3] = ["web", "dns", "ssh"];

#[derive(Clone, Debug)]
enum Step {
    Agent { agent: u32, services: Vec<usize>, identity: Option<u8> },
    Service { service: usize, connectors: Vec<u32> },
    Leave { conn: u32 },
    Send { agent: u32, service: Option<usize>, source: IpAddr, to: Option<usize> },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let services = proptest::collection::vec(0..SERVICES.len(), 0..3);
    let connectors = proptest::collection::vec(AGENTS..AGENTS + CONNECTORS, 0..3);
    let step = prop_oneof![
        1 => (0..AGENTS, services, proptest::option::of(0..4u8))
            .prop_map(|(agent, services, identity)| Step::Agent { agent, services, identity }),
        1 => (0..SERVICES.len(), connectors)
            .prop_map(|(service, connectors)| Step::Service { service, connectors }),
        1 => (0..AGENTS + CONNECTORS).prop_map(|conn| Step::Leave { conn }),
        2 => send(),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A packet to an address of the application's own, or to the virtual one of a service.
fn send() -> impl Strategy<Value = Step> {
    let any = || proptest::option::of(0..SERVICES.len());
    // Together as many as an agent may use.
    let source = prop_oneof![
        (1..3u8).prop_map(|last| IpAddr::from([10, 9, 8, last])),
        (1..3u16).prop_map(|last| IpAddr::from([0xFD00, 0, 0, 0, 0, 0, 0, last])),
    ];
    (0..AGENTS, any(), source, any()).prop_map(|(agent, service, source, to)| Step::Send {
        agent,
        service,
        source,
        to,
    })
}

fn config(translate: bool) -> RelayConfig {
    RelayConfig {
        translate,
        pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 10),
        pool_v6: (Ipv6Addr::new(0xFD64, 0x7A74, 0x6E61, 0, 0, 0, 0, 0), 64),
        addresses_per_agent: 4,
        lease_grace: Duration::from_secs(300),
        icmp_source_v4: Ipv4Addr::new(192, 0, 0, 8),
        icmp_source_v6: Ipv6Addr::new(0xFD64, 0x7A74, 0x6E61, 0xFFFF, 0, 0, 0, 1),
        icmp_per_second: 100,
        stall_timeout: Duration::from_secs(3),
    }
}

/// An address of the application's own, or the virtual one of a service, of the family of `source`.
fn backend(source: IpAddr, named: Option<usize>) -> IpAddr {
    let virtuals = named.map(|service| Virtuals::of(SERVICES[service].as_bytes()));
    match source {
        IpAddr::V4(_) => virtuals.map_or([10, 0, 0, 53].into(), |v| v.v4.into()),
        IpAddr::V6(_) => virtuals.map_or([0xFD00, 0, 0, 0, 0, 0, 0, 53].into(), |v| v.v6.into()),
    }
}

fn udp(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    build(source, destination, 0, &Transport::Udp(b"ping".to_vec()))
}

/// The answer to [`udp`]: the checksum does not mind that the ports change places.
fn answer(backend: IpAddr, agent: IpAddr) -> Bytes {
    let mut packet = udp(backend, agent);
    let at = if agent.is_ipv6() { 40 } else { 20 };
    packet[at..at + 4].rotate_left(2);
    packet.into()
}

fn is_right(packet: &[u8]) -> bool {
    let verdict = verdict(packet);
    verdict.header != Some(false) && verdict.transport == Some(true)
}

fn id(n: u32) -> ConnId {
    ConnId::new(n, 1)
}

fn run(steps: Vec<Step>, translate: bool) -> Result<(), TestCaseError> {
    let now = Instant::now();
    let mut forwarder = Forwarder::new(&config(translate), Routes::new(Arc::default())).unwrap();
    let mut reaches: HashMap<u32, Vec<usize>> = HashMap::new();
    let mut serves: HashMap<usize, HashSet<u32>> = HashMap::new();
    for step in steps {
        match step {
            Step::Agent { agent, services, identity } => {
                let names: Vec<Bytes> = services.iter().map(|s| SERVICES[*s].into()).collect();
                forwarder.set_agent(id(agent), &names, identity.map(|key| [key; 32]), now);
                reaches.insert(agent, services);
            }
            Step::Service { service, connectors } => {
                let target = |c: &u32| Target { conn: id(*c), rank: 0, key: u64::from(*c) };
                let unique: HashSet<u32> = connectors.into_iter().collect();
                let targets = unique.iter().map(target).collect();
                forwarder.routes.set_service(&SERVICES[service].into(), targets);
                serves.insert(service, unique);
            }
            Step::Leave { conn } => {
                forwarder.remove(id(conn), now);
                reaches.remove(&conn);
                for connectors in serves.values_mut() {
                    connectors.remove(&conn);
                }
            }
            Step::Send { agent, service, source, to: named } => {
                let backend = backend(source, named);
                let mut datagram = Vec::new();
                if let Some(service) = service {
                    let name = SERVICES[service].as_bytes();
                    datagram.extend([0x2F, name.len() as u8]);
                    datagram.extend(name);
                }
                datagram.extend(udp(source, backend));
                let listed = reaches.get(&agent).cloned().unwrap_or_default();
                let wanted = service.or(listed.first().copied());
                let verdict = forwarder.forward(id(agent), &datagram.into(), now);
                let Verdict::Deliver(delivery) = verdict else {
                    // Leases allow every agent its packets; learned flows may conflict.
                    let deliverable = wanted.is_some_and(|s| {
                        let served = serves.get(&s).is_some_and(|c| !c.is_empty());
                        listed.contains(&s) && served && named.is_none_or(|n| n == s)
                    });
                    prop_assert!(!deliverable || !translate, "{verdict:?}");
                    continue;
                };
                let wanted = wanted.expect("no service, no delivery");
                prop_assert!(listed.contains(&wanted));
                prop_assert!(named.is_none_or(|n| n == wanted), "another service's address");
                let to = delivery.to.slot() as u32;
                prop_assert!(serves[&wanted].contains(&to));
                let sent = PacketInfo::parse(&delivery.packet).unwrap();
                prop_assert!(is_right(&delivery.packet) && sent.is_v6() == source.is_ipv6());
                // The answer finds its way back to the sender, with the address it used.
                let probe = answer(backend, sent.source);
                let back = forwarder.forward(id(to), &probe, now);
                let Verdict::Deliver(back) = back else { panic!("the answer is lost: {back:?}") };
                prop_assert_eq!(back.to, id(agent));
                let got = PacketInfo::parse(&back.packet).unwrap();
                prop_assert!(is_right(&back.packet));
                prop_assert_eq!(got.destination, source);
                // And no connector of another service can use that address.
                for other in AGENTS..AGENTS + CONNECTORS {
                    let verdict = forwarder.forward(id(other), &probe, now);
                    if let Verdict::Deliver(delivery) = verdict {
                        // A learned flow is another connector's own: there it may lead elsewhere.
                        prop_assert!(!translate || delivery.to == id(agent));
                        let reached = &reaches[&(delivery.to.slot() as u32)];
                        let serving = |s| serves.get(s).is_some_and(|c| c.contains(&other));
                        prop_assert!(reached.iter().any(serving), "no route from the sender");
                    }
                }
            }
        }
    }
    for conn in 0..AGENTS + CONNECTORS {
        forwarder.remove(id(conn), now);
    }
    for name in SERVICES {
        forwarder.routes.set_service(&name.into(), vec![]);
    }
    prop_assert!(forwarder.routes.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn leased_addresses_keep_connections_apart(steps in steps()) {
        run(steps, true)?;
    }

    #[test]
    fn learned_flows_keep_connections_apart(steps in steps()) {
        run(steps, false)?;
    }
}

#[test]
fn an_error_about_a_translated_packet_quotes_what_its_sender_wrote() {
    let now = Instant::now();
    let mut forwarder = Forwarder::new(&config(true), Routes::new(Arc::default())).unwrap();
    let target = Target { conn: id(9), rank: 0, key: 9 };
    forwarder.routes.set_service(&"web".into(), vec![target]);
    forwarder.set_agent(id(1), &["web".into()], Some([1; 32]), now);
    for source in [IpAddr::from([10, 9, 8, 7]), IpAddr::from([0xFD00, 0, 0, 0, 0, 0, 0, 7])] {
        let backend = backend(source, None);
        let written = udp(source, backend);
        let Verdict::Deliver(sent) = forwarder.forward(id(1), &written.clone().into(), now) else {
            panic!("not relayed")
        };
        assert_ne!(&sent.packet[..], &written[..], "it has an address of its own");
        let seen = PacketInfo::parse(&sent.packet).unwrap().source;
        let error = build(backend, seen, 0, &Transport::Error(sent.packet.to_vec()));
        let Verdict::Deliver(back) = forwarder.forward(id(9), &error.into(), now) else {
            panic!("not relayed")
        };
        assert!(is_right(&back.packet));
        assert!(back.packet.ends_with(&written));
    }
}
