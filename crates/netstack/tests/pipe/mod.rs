//! Two stacks and what lies between them: a pipe that loses, reorders and duplicates packets, with
//! a clock of its own.
// Each of the tests uses a part of it.
#![allow(dead_code)]

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ztna_netstack::{
    Arrival, Backend, Counters, FlowId, Limits, Refusal, Stack, TcpState, Transport, TunnelDrop,
};

/// What happens to packets between the stacks, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub loss: u64,
    pub reorder: u64,
    pub duplicate: u64,
    /// Bytes of a packet above which it is lost without a word; 0 for no such bound.
    pub narrow: usize,
}

/// What an application behind a backend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    /// Sends back what it receives, and ends when that ends.
    Echo,
    /// Takes nothing.
    Deaf,
    /// Refuses connections.
    Refuses,
    /// Cannot be reached.
    Unreachable,
}

/// One direction of the pipe delays packets by this.
const DELAY: Duration = Duration::from_millis(5);

pub struct Side {
    pub stack: Stack,
    pub counters: Arc<Counters>,
    /// TCP flows and when to flush them.
    pub flows: HashMap<FlowId, Instant>,
    /// UDP payloads received.
    pub udp: Vec<(FlowId, Vec<u8>)>,
    /// UDP flows that the other side does not take packets of.
    pub refused: Vec<(FlowId, Refusal)>,
}

/// An agent's stack, a connector's stack, and the clock.
pub struct World {
    pub agent: Side,
    pub connector: Side,
    pub now: Instant,
    pub application: Application,
    pub weather: Weather,
    sky: BTreeMap<(Instant, u64), (bool, Bytes)>,
    serial: u64,
    dice: u64,
}

pub const SOURCE: [u8; 4] = [100, 64, 0, 1];

pub fn destination() -> SocketAddr {
    "198.18.0.1:80".parse().unwrap()
}

fn side(limits: Limits, seed: u64, now: Instant) -> Side {
    let counters = Arc::new(Counters::default());
    let stack = Stack::new(limits, counters.clone(), seed, now);
    Side { stack, counters, flows: HashMap::new(), udp: Vec::new(), refused: Vec::new() }
}

impl World {
    pub fn new(application: Application, weather: Weather) -> Self {
        let now = Instant::now();
        let mut agent = side(Limits::default(), 1, now);
        agent.stack.set_wrapper(destination(), b"web");
        agent.stack.set_wrapper("[fd00::1]:80".parse().unwrap(), b"web");
        let mut connector = side(Limits::default(), 2, now);
        let backend = |transport| Backend {
            service: Bytes::from_static(b"web"),
            transport,
            addresses: vec!["127.0.0.1:80".parse().unwrap()],
            service_addresses: vec![destination().ip(), "fd00::1".parse().unwrap()],
            proxy_protocol: false,
        };
        connector.stack.set_services(vec![backend(Transport::Tcp), backend(Transport::Udp)]);
        Self {
            agent,
            connector,
            now,
            application,
            weather,
            sky: BTreeMap::new(),
            serial: 0,
            dice: 7,
        }
    }

    pub fn open(&mut self, to: SocketAddr) -> Option<FlowId> {
        let source: IpAddr =
            if to.is_ipv4() { SOURCE.into() } else { "fd64:7a74:6e61::1".parse().unwrap() };
        let id = self.agent.stack.open(Transport::Tcp, source, to, self.now)?;
        self.agent.flows.insert(id, self.now);
        Some(id)
    }

    fn roll(&mut self, percent: u64) -> bool {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % 100 < percent
    }

    /// Puts what a side has written into the air.
    fn collect(&mut self, from_agent: bool) {
        let side = if from_agent { &mut self.agent } else { &mut self.connector };
        let sent: Vec<_> = side.stack.take().collect();
        for outgoing in sent {
            // The relay takes the wrapper off.
            let packet = outgoing.datagram.slice(outgoing.wrapper..);
            let too_large = self.weather.narrow != 0 && packet.len() > self.weather.narrow;
            if too_large || self.roll(self.weather.loss) {
                continue;
            }
            let copies = 1 + usize::from(self.roll(self.weather.duplicate));
            for _ in 0..copies {
                let late = if self.roll(self.weather.reorder) { DELAY } else { Duration::ZERO };
                self.serial += 1;
                self.sky
                    .insert((self.now + DELAY + late, self.serial), (from_agent, packet.clone()));
            }
        }
    }

    /// Moves bytes between the connector's flows and its application.
    fn serve(&mut self) {
        let Side { stack, flows, .. } = &mut self.connector;
        for (id, due) in flows.iter_mut() {
            let Some(flow) = stack.tcp(*id) else {
                continue;
            };
            let mut moved = false;
            while self.application == Application::Echo
                && flow.readable() > 0
                && flow.writable() > 0
            {
                let mut bytes = Vec::new();
                let room = flow.writable();
                flow.receive(|data| {
                    bytes.extend_from_slice(&data[..data.len().min(room)]);
                    bytes.len()
                });
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let n = flow.send(|room| {
                        let n = rest.len().min(room.len());
                        room[..n].copy_from_slice(&rest[..n]);
                        n
                    });
                    rest = &rest[n..];
                }
                moved = true;
            }
            if flow.at_end() && flow.state() == TcpState::Open {
                flow.finish();
                moved = true;
            }
            if moved {
                *due = self.now;
            }
        }
    }

    /// Lets everything that is due happen, then moves the clock to the next thing that is. False
    /// when nothing will ever happen again.
    pub fn step(&mut self) -> bool {
        self.serve();
        for from_agent in [true, false] {
            let now = self.now;
            let side = if from_agent { &mut self.agent } else { &mut self.connector };
            let due: Vec<_> =
                side.flows.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
            for id in due {
                let flush = side.stack.flush(id, 64, now);
                match flush.deadline.filter(|_| side.stack.contains(id)) {
                    _ if flush.blocked => drop(side.flows.insert(id, now)),
                    Some(at) => {
                        side.flows.insert(id, at.max(now + Duration::from_micros(100)));
                    }
                    None => drop(side.flows.insert(id, now + Duration::from_secs(3600))),
                }
            }
            self.collect(from_agent);
        }
        let timers = self.agent.flows.values().chain(self.connector.flows.values());
        let next = timers.copied().chain(self.sky.keys().next().map(|(at, _)| *at)).min();
        let Some(next) = next.filter(|next| *next < self.now + Duration::from_secs(3000)) else {
            return false;
        };
        self.now = self.now.max(next);
        while let Some(entry) = self.sky.first_entry().filter(|e| e.key().0 <= self.now) {
            let (to_connector, packet) = entry.remove();
            self.deliver(to_connector, &packet);
        }
        true
    }

    fn deliver(&mut self, to_connector: bool, packet: &[u8]) {
        let now = self.now;
        let side = if to_connector { &mut self.connector } else { &mut self.agent };
        match side.stack.receive(packet, now) {
            Arrival::Done => {}
            Arrival::Tcp(id) => {
                side.flows.insert(id, now);
            }
            Arrival::Wanted(id, _) => match self.application {
                Application::Refuses => side.stack.refuse(id, Refusal::Refused, now),
                Application::Unreachable => side.stack.refuse(id, Refusal::Unreachable, now),
                _ => {
                    assert!(side.stack.accept(id, now));
                    side.flows.insert(id, now);
                }
            },
            Arrival::Udp(id, _, payload) => side.udp.push((id, payload.into_owned())),
            Arrival::Refused(id, refusal) => side.refused.push((id, refusal)),
        }
    }

    /// Sends `data` on each flow and returns what comes back until its end.
    pub fn exchange(&mut self, ids: &[FlowId], data: &[u8]) -> Vec<Vec<u8>> {
        let mut back = vec![Vec::new(); ids.len()];
        let mut sent = vec![0; ids.len()];
        let end = self.now + Duration::from_secs(600);
        while self.now < end {
            let mut open = 0;
            for (i, id) in ids.iter().enumerate() {
                let Some(flow) = self.agent.stack.tcp(*id) else {
                    continue;
                };
                let before = (sent[i], back[i].len());
                while sent[i] < data.len() && flow.writable() > 0 {
                    let rest = &data[sent[i]..];
                    sent[i] += flow.send(|room| {
                        let n = rest.len().min(room.len());
                        room[..n].copy_from_slice(&rest[..n]);
                        n
                    });
                    if sent[i] == data.len() {
                        flow.finish();
                    }
                }
                while flow.readable() > 0 {
                    flow.receive(|bytes| {
                        back[i].extend_from_slice(bytes);
                        bytes.len()
                    });
                }
                if before != (sent[i], back[i].len()) {
                    self.agent.flows.insert(*id, self.now);
                }
                if !matches!(flow.state(), TcpState::Done | TcpState::Aborted) {
                    open += 1;
                }
            }
            if open == 0 || !self.step() {
                break;
            }
        }
        back
    }

    pub fn state(&mut self, id: FlowId) -> Option<TcpState> {
        self.agent.stack.tcp(id).map(|flow| flow.state())
    }

    /// Steps until the flow is no longer opening.
    pub fn settle(&mut self, id: FlowId) -> Option<TcpState> {
        let end = self.now + Duration::from_secs(100);
        while self.state(id) == Some(TcpState::Opening) && self.now < end && self.step() {}
        self.state(id)
    }

    pub fn dropped(&self, reason: TunnelDrop) -> u64 {
        self.agent.counters.drops(reason) + self.connector.counters.drops(reason)
    }
}
