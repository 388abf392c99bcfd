//! Random introductions, closes, packets and time. A connector answers what it got, late or at once:
//! that reaches the agent that it got it from, or nobody.

mod oracle;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use oracle::udp::{answer, udp};
use proptest::prelude::*;
use ztna_engine::{
    ConnId, RelayConfig, Target,
    forward::{Forwarder, Verdict},
    packet::PacketInfo,
    routes::Routes,
};

const AGENTS: u64 = 6;
const CONNECTORS: u64 = 3;
const SERVICES: [&str; 3] = ["web", "dns", "ssh"];
/// How long an answer may be late, and how long a place is held, as the documents have it.
const LATE: Duration = Duration::from_secs(10_800);
const HOLD: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
enum Step {
    Agent {
        agent: u64,
        services: Vec<usize>,
    },
    Service {
        service: usize,
        connectors: Vec<u64>,
    },
    Leave {
        peer: u64,
    },
    LookUp {
        agent: u64,
        connector: u64,
    },
    Introduce {
        agent: u64,
        connector: u64,
    },
    Separate {
        agent: u64,
        connector: u64,
    },
    /// Through the relay, to the agent's first service.
    Send {
        agent: u64,
    },
    /// Past the relay, and whether it is answered at once.
    Direct {
        agent: u64,
        connector: u64,
        answered: bool,
    },
    /// A packet that answers nothing.
    Stray {
        connector: u64,
        to: IpAddr,
    },
    Pass(u64),
    Expire,
}

/// The address that each agent uses, the same on macOS; and whether it has an identity.
fn of(agent: u64) -> (IpAddr, Option<[u8; 32]>) {
    let (last, key) = match agent {
        0..3 => ([100, 64, 0, 1], None),
        3 => ([100, 64, 0, 2], None),
        4 => ([10, 0, 0, 100], None),
        _ => ([10, 0, 0, 100], Some([0xA7; 32])),
    };
    (last.into(), key)
}

fn same_identity(one: ConnId, other: ConnId) -> bool {
    let key = |id: ConnId| of(id.0 & 0xFFFF_FFFF).1;
    key(one).is_some() && key(one) == key(other)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let agent = || 0..AGENTS;
    let connector = || AGENTS..AGENTS + CONNECTORS;
    let both = || (agent(), connector());
    let services = proptest::collection::vec(0..SERVICES.len(), 0..3);
    let connectors = proptest::collection::vec(connector(), 0..3);
    let stray = prop_oneof![
        (0..AGENTS).prop_map(|agent| of(agent).0),
        (0..4u8).prop_map(|last| IpAddr::from([100, 64, 0, last])),
        (0..4u8).prop_map(|last| IpAddr::from([100, 127, 255, last])),
        Just(IpAddr::from([224, 0, 0, 1])),
    ];
    let step = prop_oneof![
        2 => (agent(), services).prop_map(|(agent, services)| Step::Agent { agent, services }),
        1 => (0..SERVICES.len(), connectors)
            .prop_map(|(service, connectors)| Step::Service { service, connectors }),
        1 => (0..AGENTS + CONNECTORS).prop_map(|peer| Step::Leave { peer }),
        4 => both().prop_map(|(agent, connector)| Step::LookUp { agent, connector }),
        4 => both().prop_map(|(agent, connector)| Step::Introduce { agent, connector }),
        1 => both().prop_map(|(agent, connector)| Step::Separate { agent, connector }),
        4 => agent().prop_map(|agent| Step::Send { agent }),
        5 => (both(), any::<bool>()).prop_map(|((agent, connector), answered)| {
            Step::Direct { agent, connector, answered }
        }),
        2 => (connector(), stray).prop_map(|(connector, to)| Step::Stray { connector, to }),
        1 => prop_oneof![0..15u64, 100..400u64, 5_000..11_000u64].prop_map(Step::Pass),
        1 => Just(Step::Expire),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A packet that a connector got, and has not forgotten.
#[derive(Clone, Copy, Debug)]
struct Got {
    connector: ConnId,
    /// Whom it answers.
    address: IpAddr,
    agent: ConnId,
    at: Instant,
    direct: bool,
}

/// What an agent did that another one's answers could be taken for.
#[derive(Debug)]
struct Use {
    agent: ConnId,
    /// `None` for a relayed packet.
    introduced_to: Option<ConnId>,
    address: IpAddr,
    seen: IpAddr,
}

struct World {
    forwarder: Forwarder,
    now: Instant,
    generations: HashMap<u64, u64>,
    reaches: HashMap<u64, Vec<usize>>,
    serves: HashMap<usize, HashSet<u64>>,
    /// Looked up without a conflict, and when.
    places: HashMap<(ConnId, ConnId), Instant>,
    introduced: HashSet<(ConnId, ConnId)>,
    got: Vec<Got>,
    /// Look-ups, introductions and relayed packets of all times.
    used: Vec<Use>,
    /// Whether introductions are made without a look-up too.
    forced: bool,
}

impl World {
    fn new(forced: bool) -> Self {
        let config = RelayConfig { addresses_per_agent: 2, ..RelayConfig::default() };
        let mut world = Self {
            forwarder: Forwarder::new(&config, Routes::new(Arc::default())).unwrap(),
            now: Instant::now(),
            generations: HashMap::new(),
            reaches: HashMap::new(),
            serves: HashMap::new(),
            places: HashMap::new(),
            introduced: HashSet::new(),
            got: Vec::new(),
            used: Vec::new(),
            forced,
        };
        // Something to begin with, or few steps would find each other.
        for service in 0..SERVICES.len() {
            world.serve(service, HashSet::from([AGENTS + service as u64 % 2]));
        }
        for agent in 0..AGENTS {
            world.register(agent, vec![agent as usize % 2]);
        }
        world
    }

    fn id(&self, peer: u64) -> ConnId {
        ConnId(self.generations.get(&peer).copied().unwrap_or(1) << 32 | peer)
    }

    fn is_there(&self, id: ConnId) -> bool {
        self.id(id.0 & 0xFFFF_FFFF) == id
    }

    fn shares(&self, agent: ConnId, connector: ConnId) -> bool {
        let peer = |id: ConnId| id.0 & 0xFFFF_FFFF;
        let reaches = self.reaches.get(&peer(agent)).filter(|_| self.is_there(agent));
        self.is_there(connector)
            && reaches.is_some_and(|services| {
                services.iter().any(|s| self.serves[s].contains(&peer(connector)))
            })
    }

    fn serve(&mut self, service: usize, connectors: HashSet<u64>) {
        let target = |c: &u64| Target { conn: self.id(*c), rank: 0, key: *c };
        let targets = connectors.iter().map(target).collect();
        self.forwarder.set_service(&SERVICES[service].into(), targets, self.now);
        self.serves.insert(service, connectors);
    }

    fn register(&mut self, agent: u64, services: Vec<usize>) {
        let names: Vec<Bytes> = services.iter().map(|s| SERVICES[*s].into()).collect();
        self.forwarder.set_agent(self.id(agent), &names, of(agent).1, agent, self.now);
        if services.is_empty() {
            self.end(self.id(agent));
        }
        self.reaches.insert(agent, services);
    }

    /// Ends what an agent or a connector has of introductions.
    fn end(&mut self, conn: ConnId) {
        self.introduced.retain(|(a, c)| *a != conn && *c != conn);
        self.places.retain(|(a, c), _| *a != conn && *c != conn);
    }

    fn leave(&mut self, peer: u64) {
        let id = self.id(peer);
        self.forwarder.remove(id, self.now);
        self.end(id);
        self.reaches.remove(&peer);
        for connectors in self.serves.values_mut() {
            connectors.remove(&peer);
        }
        self.got.retain(|got| got.connector != id);
        *self.generations.entry(peer).or_insert(1) += 1;
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let now = self.now;
        match step {
            Step::Pass(seconds) => self.now += Duration::from_secs(seconds),
            Step::Expire => self.forwarder.expire(now),
            Step::Leave { peer } => self.leave(peer),
            Step::Agent { agent, services } => self.register(agent, services),
            Step::Service { service, connectors } => {
                self.serve(service, connectors.into_iter().collect());
            }
            Step::LookUp { agent, connector } => {
                let (agent, connector) = (self.id(agent), self.id(connector));
                if self.shares(agent, connector)
                    && self.forwarder.conflict(agent, connector, now).is_none()
                {
                    self.places.insert((agent, connector), now);
                    self.use_directly((agent, connector));
                }
            }
            Step::Introduce { agent, connector } => {
                let pair = (self.id(agent), self.id(connector));
                let place = self.places.remove(&pair).filter(|at| now - *at < HOLD);
                if self.shares(pair.0, pair.1) && (place.is_some() || self.forced) {
                    self.forwarder.introduce(pair.0, pair.1);
                    self.introduced.insert(pair);
                    self.use_directly(pair);
                }
            }
            Step::Separate { agent, connector } => {
                let pair = (self.id(agent), self.id(connector));
                self.forwarder.separate(pair.0, pair.1, now);
                self.introduced.remove(&pair);
                self.places.remove(&pair);
                // What it has not answered yet it does not answer any more: nothing tells the relay of it.
                self.got.retain(|got| !got.direct || (got.agent, got.connector) != pair);
            }
            Step::Send { agent } => self.send(agent),
            Step::Direct { agent, connector, answered } => {
                let pair = (self.id(agent), self.id(connector));
                if self.introduced.contains(&pair) {
                    let (address, _) = of(agent);
                    self.learn(Got {
                        connector: pair.1,
                        address,
                        agent: pair.0,
                        at: now,
                        direct: true,
                    });
                    if answered {
                        let to = self.answer(pair.1, address);
                        prop_assert!(to.is_none() || self.forced || to == Some(pair.0), "{to:?}");
                        if !self.forced && self.is_alone(pair, address) {
                            prop_assert_eq!(to, Some(pair.0), "nobody else can be meant");
                        }
                    }
                }
            }
            Step::Stray { connector, to } => {
                let connector = self.id(connector);
                if let Some(agent) = self.answer(connector, to) {
                    prop_assert!(self.shares(agent, connector));
                    let introduced = self.introduced.contains(&(agent, connector));
                    prop_assert!(introduced || self.was_seen(agent, to));
                }
            }
        }
        self.check_late()
    }

    fn use_directly(&mut self, (agent, connector): (ConnId, ConnId)) {
        let (address, _) = of(agent.0 & 0xFFFF_FFFF);
        self.used.push(Use { agent, introduced_to: Some(connector), address, seen: address });
    }

    /// Whether connectors have seen an agent by an address.
    fn was_seen(&self, agent: ConnId, address: IpAddr) -> bool {
        let same = |other| other == agent || same_identity(other, agent);
        self.used.iter().any(|u| u.introduced_to.is_none() && u.seen == address && same(u.agent))
    }

    fn learn(&mut self, got: Got) {
        let same = |other: &Got| {
            (other.connector, other.address, other.agent) == (got.connector, got.address, got.agent)
        };
        self.got.retain(|other| !same(other));
        self.got.push(got);
    }

    fn send(&mut self, agent: u64) {
        let (source, _) = of(agent);
        let packet = udp(source, [10, 0, 0, 53].into(), 1).into();
        if let Verdict::Deliver(delivery) =
            self.forwarder.forward(self.id(agent), &packet, self.now)
        {
            let seen = PacketInfo::parse(&delivery.packet).unwrap().source;
            let (connector, agent) = (delivery.to, self.id(agent));
            self.learn(Got { connector, address: seen, agent, at: self.now, direct: false });
            self.used.push(Use { agent, introduced_to: None, address: source, seen });
        }
    }

    /// Whom a connector's packet reaches.
    fn answer(&mut self, connector: ConnId, to: IpAddr) -> Option<ConnId> {
        let packet = answer([127, 0, 0, 1].into(), to, 1);
        match self.forwarder.forward(connector, &packet, self.now) {
            Verdict::Deliver(delivery) => Some(delivery.to),
            _ => None,
        }
    }

    /// Whether nobody else can ever have used the address, nor have been introduced to the connector.
    fn is_alone(&self, pair: (ConnId, ConnId), address: IpAddr) -> bool {
        let mut others = self.used.iter().filter(|u| u.agent != pair.0);
        self.shares(pair.0, pair.1)
            && !others.any(|u| u.introduced_to == Some(pair.1) || u.address == address)
    }

    /// Every connector answers everything that it got again.
    fn check_late(&mut self) -> Result<(), TestCaseError> {
        let now = self.now;
        self.got.retain(|got| now - got.at < LATE);
        for got in self.got.clone() {
            let Some(to) = self.answer(got.connector, got.address) else {
                continue;
            };
            prop_assert!(self.is_there(to) && self.shares(to, got.connector), "{got:?}: {to:?}");
            let meant = to == got.agent || !got.direct && same_identity(to, got.agent);
            let introduced = self.introduced.contains(&(to, got.connector));
            let may = introduced || self.was_seen(to, got.address);
            prop_assert!(meant || self.forced && may, "{got:?} reached {to:?}");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn an_answer_reaches_whom_it_is_meant_for_or_nobody(steps in steps()) {
        let mut world = World::new(false);
        for step in steps {
            world.step(step)?;
        }
    }

    #[test]
    fn an_answer_reaches_introduced_agents_only(steps in steps()) {
        let mut world = World::new(true);
        for step in steps {
            world.step(step)?;
        }
    }
}
