//! The forwarding rules under random operations. Never delivered to a connection that has no route
//! from the sender; never to an agent that does not own the destination. IPv4 and IPv6 alike, and
//! with every checksum right after a translation.

mod oracle;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use oracle::{
    packets::{Transport, build},
    udp::{answer, fragments, is_right, udp},
};
use proptest::prelude::*;
use ztna_engine::{
    ConnId, RelayConfig, Target,
    forward::{Forwarder, Verdict},
    nat,
    packet::PacketInfo,
    routes::Routes,
    service_address::ServiceAddresses,
};

const AGENTS: u32 = 6;
const CONNECTORS: u32 = 4;
const SERVICES: [&str; 3] = ["web", "dns", "ssh"];
/// How long a flow stays one agent's while nothing passes, as ARCHITECTURE.md has it.
const REST: Duration = Duration::from_secs(10_800);

#[derive(Clone, Debug)]
enum Step {
    Agent { agent: u32, services: Vec<usize>, identity: Option<u8> },
    Service { service: usize, connectors: Vec<u32> },
    Leave { conn: u32 },
    Send { agent: u32, service: Option<usize>, source: IpAddr, port: u16, to: Option<usize> },
    Pass(u64),
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let services = proptest::collection::vec(0..SERVICES.len(), 0..3);
    let connectors = proptest::collection::vec(AGENTS..AGENTS + CONNECTORS, 0..3);
    let step = prop_oneof![
        2 => (0..AGENTS, services, proptest::option::of(0..4u8))
            .prop_map(|(agent, services, identity)| Step::Agent { agent, services, identity }),
        2 => (0..SERVICES.len(), connectors)
            .prop_map(|(service, connectors)| Step::Service { service, connectors }),
        1 => (0..AGENTS + CONNECTORS).prop_map(|conn| Step::Leave { conn }),
        6 => send(),
        1 => prop_oneof![1..400u64, 5_000..11_000u64].prop_map(Step::Pass),
        1 => Just(Step::Expire),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A packet to an address of the application's own, or to the service address of one.
fn send() -> impl Strategy<Value = Step> {
    let any = || proptest::option::of(0..SERVICES.len());
    // Together as many as an agent may use.
    let source = prop_oneof![
        (1..3u8).prop_map(|last| IpAddr::from([10, 9, 8, last])),
        (1..3u16).prop_map(|last| IpAddr::from([0xFD00, 0, 0, 0, 0, 0, 0, last])),
    ];
    (0..AGENTS, any(), source, 1..3u16, any()).prop_map(|(agent, service, source, port, to)| {
        Step::Send { agent, service, source, port, to }
    })
}

fn config(translate: bool) -> RelayConfig {
    RelayConfig { translate, ..RelayConfig::default() }
}

/// An address of the application's own, or the service address of one, of the family of `source`.
fn backend(source: IpAddr, named: Option<usize>) -> IpAddr {
    let service_addresses = named.map(|service| ServiceAddresses::of(SERVICES[service].as_bytes()));
    match source {
        IpAddr::V4(_) => service_addresses.map_or([10, 0, 0, 53].into(), |v| v.v4.into()),
        IpAddr::V6(_) => {
            service_addresses.map_or([0xFD00, 0, 0, 0, 0, 0, 0, 53].into(), |v| v.v6.into())
        }
    }
}

/// What ought to be, kept apart from the forwarder: who is there, who may reach whom, and with learned
/// flows whose a flow is.
struct World {
    forwarder: Forwarder,
    translate: bool,
    now: Instant,
    /// How many connections each peer has had.
    generations: HashMap<u32, u32>,
    reaches: HashMap<u32, (Vec<usize>, Option<u8>)>,
    /// The last agent of each identity to come, while it is there.
    newest: HashMap<u8, u32>,
    serves: HashMap<usize, HashSet<u32>>,
    /// The connector an agent's packets to a service went to last.
    chosen: HashMap<(u32, usize), ConnId>,
    flows: HashMap<(ConnId, IpAddr, u16), Flow>,
    datagrams: u16,
}

#[derive(Clone, Copy)]
struct Flow {
    agent: ConnId,
    identity: Option<u8>,
    used: Instant,
}

impl World {
    fn new(translate: bool) -> Self {
        Self {
            forwarder: Forwarder::new(&config(translate), Routes::new(Arc::default())).unwrap(),
            translate,
            now: Instant::now(),
            generations: HashMap::new(),
            reaches: HashMap::new(),
            newest: HashMap::new(),
            serves: HashMap::new(),
            chosen: HashMap::new(),
            flows: HashMap::new(),
            datagrams: 0,
        }
    }

    fn id(&self, peer: u32) -> ConnId {
        ConnId::new(peer, self.generations.get(&peer).copied().unwrap_or(1))
    }

    /// The connection that `id` was, if it is there.
    fn agent(&self, id: ConnId) -> Option<&Vec<usize>> {
        let peer = id.slot() as u32;
        self.reaches.get(&peer).map(|(services, _)| services).filter(|_| self.id(peer) == id)
    }

    fn leave(&mut self, peer: u32) {
        self.forwarder.remove(self.id(peer), self.now);
        self.newest.retain(|_, agent| *agent != peer);
        self.reaches.remove(&peer);
        self.chosen.retain(|(agent, _), _| *agent != peer);
        for connectors in self.serves.values_mut() {
            connectors.remove(&peer);
        }
        *self.generations.entry(peer).or_insert(1) += 1;
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Pass(seconds) => self.now += Duration::from_secs(seconds),
            Step::Expire => self.forwarder.expire(self.now),
            Step::Leave { conn } => self.leave(conn),
            Step::Agent { agent, services, identity } => {
                // A connection never changes whose it is.
                if self.reaches.get(&agent).is_some_and(|(_, known)| *known != identity) {
                    self.leave(agent);
                }
                let names: Vec<Bytes> = services.iter().map(|s| SERVICES[*s].into()).collect();
                let key = identity.map(|key| [key; 32]);
                self.forwarder.set_agent(self.id(agent), &names, key, agent.into(), self.now);
                self.chosen.retain(|(who, s), _| *who != agent || services.contains(s));
                let was_there = self.reaches.get(&agent).is_some_and(|(had, _)| !had.is_empty());
                if services.is_empty() {
                    self.newest.retain(|_, newest| *newest != agent);
                } else if !was_there && let Some(identity) = identity {
                    self.newest.insert(identity, agent);
                    // Packets of an older connection are its own again.
                    self.now += nat::HAND_OVER;
                }
                self.reaches.insert(agent, (services, identity));
            }
            Step::Service { service, connectors } => {
                let target = |c: &u32| Target { conn: self.id(*c), rank: 0, key: u64::from(*c) };
                let unique: HashSet<u32> = connectors.into_iter().collect();
                let targets = unique.iter().map(target).collect();
                self.forwarder.routes.set_service(&SERVICES[service].into(), targets);
                self.serves.insert(service, unique);
            }
            Step::Send { agent, service, source, port, to } => {
                self.send(agent, service, (source, port), to)?;
            }
        }
        Ok(())
    }

    /// Whose a learned flow is.
    fn owner(&self, connector: ConnId, end: (IpAddr, u16)) -> Option<Flow> {
        let flow = self.flows.get(&(connector, end.0, end.1)).copied();
        flow.filter(|flow| self.now - flow.used <= REST)
    }

    /// The agent that gets what comes for a flow: its identity's newest once the one that sent is gone.
    fn present(&self, flow: Flow) -> ConnId {
        let is_there = self.agent(flow.agent).is_some_and(|services| !services.is_empty());
        let newest = || flow.identity.and_then(|identity| self.newest.get(&identity));
        if is_there { flow.agent } else { newest().map_or(flow.agent, |agent| self.id(*agent)) }
    }

    /// Whether an agent may not use a flow by this connector, since it is another's.
    fn conflicts(&self, agent: u32, connector: ConnId, end: (IpAddr, u16)) -> bool {
        let identity = self.reaches.get(&agent).and_then(|(_, identity)| *identity);
        self.owner(connector, end).is_some_and(|flow| {
            flow.agent != self.id(agent) && (identity.is_none() || identity != flow.identity)
        })
    }

    fn send(
        &mut self,
        agent: u32,
        service: Option<usize>,
        end: (IpAddr, u16),
        named: Option<usize>,
    ) -> Result<(), TestCaseError> {
        let (source, port) = end;
        let backend = backend(source, named);
        let mut datagram = Vec::new();
        if let Some(service) = service {
            let name = SERVICES[service].as_bytes();
            datagram.extend([0x2F, name.len() as u8]);
            datagram.extend(name);
        }
        datagram.extend(udp(source, backend, port));
        let (listed, identity) = self.reaches.get(&agent).cloned().unwrap_or_default();
        let wanted = service.or(listed.first().copied());
        let serving = |s: usize| self.serves.get(&s).into_iter().flatten().map(|c| self.id(*c));
        let deliverable = wanted.is_some_and(|s| {
            listed.contains(&s) && serving(s).next().is_some() && named.is_none_or(|n| n == s)
        });
        // It stays with its connector while that serves; else it may go to any.
        let ways: Vec<ConnId> = wanted.map_or(vec![], |s| {
            let last = self.chosen.get(&(agent, s)).filter(|last| serving(s).any(|c| c == **last));
            last.map_or_else(|| serving(s).collect(), |last| vec![*last])
        });
        let from = self.id(agent);
        let verdict = self.forwarder.forward(from, &datagram.into(), self.now);
        let Verdict::Deliver(delivery) = verdict else {
            let taken = || ways.iter().any(|connector| self.conflicts(agent, *connector, end));
            prop_assert!(!deliverable || !self.translate && taken(), "{verdict:?}");
            // A choice was made all the same, and is not seen; that of before counts while it serves.
            if let Some(s) = wanted
                && !self.chosen.get(&(agent, s)).is_some_and(|last| ways.contains(last))
            {
                self.chosen.remove(&(agent, s));
            }
            return Ok(());
        };
        prop_assert!(deliverable, "{delivery:?}");
        let to = delivery.to;
        prop_assert!(ways.contains(&to), "{to:?} of {ways:?}");
        if !self.translate {
            prop_assert!(!self.conflicts(agent, to, end), "another's flow");
            let flow = Flow { agent: from, identity, used: self.now };
            self.flows.insert((to, source, port), flow);
        }
        self.chosen.insert((agent, wanted.unwrap()), to);
        let sent = PacketInfo::parse(&delivery.packet).unwrap();
        prop_assert!(is_right(&delivery.packet) && sent.is_v6() == source.is_ipv6());
        prop_assert!(self.translate || sent.source == source);
        // The answer finds its way back to the sender, with the address it used; also from another
        // address, where that is no service's.
        let beside: IpAddr = if source.is_ipv6() { "::1" } else { "127.0.0.1" }.parse().unwrap();
        for answerer in [backend, beside] {
            let probe = answer(answerer, sent.source, port);
            self.datagrams += 1;
            let [first, rest] = fragments(&probe, self.datagrams);
            let lost = self.forwarder.forward(to, &rest, self.now);
            // Nothing of a datagram comes before its beginning, unless its destination tells all.
            prop_assert!(self.translate || matches!(lost, Verdict::Drop(_)), "{lost:?}");
            for (part, whole) in [(&probe, true), (&first, false), (&rest, false)] {
                let back = self.forwarder.forward(to, part, self.now);
                let Verdict::Deliver(back) = back else { panic!("the answer is lost: {back:?}") };
                prop_assert_eq!(back.to, from);
                let got = PacketInfo::parse(&back.packet).unwrap();
                prop_assert!(!whole || is_right(&back.packet));
                prop_assert_eq!((got.source, got.destination), (answerer, source));
            }
        }
        let many: IpAddr = if source.is_ipv6() { "ff02::1" } else { "224.0.0.1" }.parse().unwrap();
        let forged = self.forwarder.forward(to, &answer(many, sent.source, port), self.now);
        prop_assert!(matches!(forged, Verdict::Drop(_)), "{forged:?}");
        // Another connector reaches the agent whose flow with it this is, where it serves it.
        for other in AGENTS..AGENTS + CONNECTORS {
            let other = self.id(other);
            let owner = match self.translate {
                true => Some(from),
                false => self.owner(other, end).map(|flow| self.present(flow)),
            };
            let expected = owner.filter(|owner| {
                self.agent(*owner).is_some_and(|services| {
                    let allowed = |s: &usize| named.is_none_or(|named| named == *s);
                    let mut shared = services.iter().filter(|s| allowed(s));
                    shared.any(|s| {
                        self.serves.get(s).is_some_and(|c| c.contains(&(other.slot() as u32)))
                    })
                })
            });
            let probe = answer(backend, sent.source, port);
            let got = match self.forwarder.forward(other, &probe, self.now) {
                Verdict::Deliver(delivery) => Some(delivery.to),
                _ => None,
            };
            prop_assert_eq!(got, expected, "from {:?}", other);
            // Nothing comes back from one that serves nothing any more.
            let serves = self.serves.values().any(|c| c.contains(&(other.slot() as u32)));
            if let Some(flow) = self.flows.get_mut(&(other, source, port))
                && serves
                && self.now - flow.used <= REST
            {
                flow.used = self.now;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), TestCaseError> {
        for conn in 0..AGENTS + CONNECTORS {
            self.leave(conn);
        }
        for name in SERVICES {
            self.forwarder.routes.set_service(&name.into(), vec![]);
        }
        prop_assert!(self.forwarder.routes.is_empty());
        Ok(())
    }
}

fn run(steps: Vec<Step>, translate: bool) -> Result<(), TestCaseError> {
    let mut world = World::new(translate);
    for step in steps {
        world.step(step)?;
    }
    world.finish()
}

fn id(n: u32) -> ConnId {
    ConnId::new(n, 1)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

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
    forwarder.set_agent(id(1), &["web".into()], Some([1; 32]), 1, now);
    for source in [IpAddr::from([10, 9, 8, 7]), IpAddr::from([0xFD00, 0, 0, 0, 0, 0, 0, 7])] {
        let backend = backend(source, None);
        let written = udp(source, backend, 1);
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
