//! Reachability of an agent's services: each is asked for its connector by echo requests.
//!
//! A relay answers a packet that no connector takes with "host unreachable", a connector answers an
//! echo request to its service address. Both are part of ztna-v1, so every relay and connector can
//! be asked. A service without either answer counts as reachable.

use std::{cell::RefCell, net::Ipv4Addr, rc::Rc};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::{
    sync::Notify,
    time::{Duration, Instant, sleep_until},
};
use ztna_netstack::PacketBuilder;

use super::{notices::Notices, tx_queue::TxQueue};
use crate::{
    boundary::event::{Notice, Subject},
    packet::protocol,
    relay::service_address::ServiceAddresses,
};

/// A service that has just been acknowledged is asked so often, with this pause.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);
/// Between two questions to a service without a connector, and how many of them may stay
/// unanswered before it counts as reachable: its connector may be one that answers no echo.
const ALONE: Duration = Duration::from_secs(2);
const ALONE_TRIES: u32 = 5;
/// Between two questions to a service whose connector answers.
const REACHED: Duration = Duration::from_secs(10);
/// The task of a tunnel looks at least so often.
const LOOK: Duration = Duration::from_secs(1);

/// The state of the way to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It has been asked and has not answered yet.
    Asked,
    /// Its connector answers, or the relay does not deny it.
    Open,
    /// The relay has no connector for it.
    NoConnector,
}

/// The services acknowledged on a tunnel's connection.
#[derive(Debug)]
pub(super) struct Reach {
    tx_queue: Rc<TxQueue>,
    notices: Notices,
    /// The source of questions; without it none are asked, and every service counts as open.
    source: Option<Ipv4Addr>,
    services: RefCell<FxHashMap<Bytes, Service>>,
    changed: Notify,
}

#[derive(Debug)]
struct Service {
    wrapper: Vec<u8>,
    to: Ipv4Addr,
    way: Way,
    told: Option<Way>,
    /// Identifier and sequence number of the present question, which others cannot guess.
    token: u32,
    unanswered: u32,
    asked: Option<Instant>,
    due: Instant,
}

impl Service {
    fn new(name: &Bytes, now: Instant) -> Self {
        Self {
            wrapper: ztna_netstack::wrapper(name),
            to: ServiceAddresses::of(name).v4,
            way: Way::Asked,
            told: None,
            token: token(),
            unanswered: 0,
            asked: None,
            due: now,
        }
    }

    fn set(&mut self, way: Way, now: Instant) -> bool {
        let changed = self.way != way;
        self.way = way;
        self.unanswered = 0;
        self.token = token();
        self.due = now + if way == Way::Open { REACHED } else { ALONE };
        changed
    }

    /// Whether it has been asked in vain so often that silence is the answer.
    fn is_silent(&self) -> bool {
        match self.way {
            Way::Asked => self.unanswered >= TRIES,
            Way::NoConnector => self.unanswered >= ALONE_TRIES,
            Way::Open => false,
        }
    }
}

impl Reach {
    pub(super) fn new(tx_queue: Rc<TxQueue>, notices: Notices, source: Option<Ipv4Addr>) -> Self {
        Self { tx_queue, notices, source, services: RefCell::default(), changed: Notify::new() }
    }

    /// Replaces the acknowledged services, and asks the new ones.
    pub(super) fn acknowledge(&self, names: &[Bytes]) {
        let now = Instant::now();
        let services = &mut *self.services.borrow_mut();
        services.retain(|name, _| names.contains(name));
        for name in names {
            services.entry(name.clone()).or_insert_with(|| Service::new(name, now));
        }
        self.changed.notify_one();
    }

    /// Asks every service anew: the connection is another one.
    pub(super) fn attached(&self) {
        let now = Instant::now();
        for (name, service) in &mut *self.services.borrow_mut() {
            *service = Service::new(name, now);
        }
        self.changed.notify_one();
    }

    /// The way to a service; `None` while it is not acknowledged.
    pub(super) fn way(&self, service: &Bytes) -> Option<Way> {
        self.services.borrow().get(service).map(|service| service.way)
    }

    pub(super) fn is_acknowledged(&self, service: &Bytes) -> bool {
        self.services.borrow().contains_key(service)
    }

    /// Asks a service soon: a connection to it has failed.
    pub(super) fn doubt(&self, service: &Bytes) {
        if let Some(service) = self.services.borrow_mut().get_mut(service) {
            let now = Instant::now();
            let soonest = service.asked.map_or(now, |asked| asked + PAUSE);
            service.due = service.due.min(now.max(soonest));
            self.changed.notify_one();
        }
    }

    /// Waits until a question is due, or it is time to look.
    pub(super) async fn wait(&self) {
        let now = Instant::now();
        let due = self.services.borrow().values().map(|service| service.due).min();
        let due = due.filter(|_| self.tx_queue.conn().is_some()).unwrap_or(now + LOOK);
        tokio::select! {
            () = sleep_until(due.min(now + LOOK)) => {}
            () = self.changed.notified() => {}
        }
    }

    /// Sends due questions and reports; true if a way has changed by silence.
    pub(super) fn ask(&self) -> bool {
        let (now, mut changed) = (Instant::now(), false);
        if self.tx_queue.conn().is_none() {
            return false;
        }
        let mut out = PacketBuilder::default();
        for (name, service) in &mut *self.services.borrow_mut() {
            if now >= service.due {
                let Some(source) = self.source.filter(|_| !service.is_silent()) else {
                    changed |= service.set(Way::Open, now);
                    self.tell(name, service);
                    continue;
                };
                let token = service.token;
                out.echo_request(&service.wrapper, source.into(), service.to.into(), token);
                service.unanswered += 1;
                service.asked = Some(now);
                service.due = now
                    + match service.way {
                        Way::Asked => PAUSE,
                        Way::NoConnector => ALONE,
                        Way::Open => REACHED,
                    };
            }
            self.tell(name, service);
        }
        for outgoing in out.take() {
            self.tx_queue.send(outgoing.datagram);
        }
        changed
    }

    /// Takes a packet from the relay, if it answers a question; then, whether a way has changed.
    pub(super) fn take(&self, packet: &[u8]) -> Option<bool> {
        if packet.first() != Some(&0x45) || packet.get(9) != Some(&protocol::ICMP) {
            return None;
        }
        let (to, token, way) = read(packet)?;
        let services = &mut *self.services.borrow_mut();
        let asked = services.iter_mut().find(|(_, s)| s.token == token && s.to == to);
        let (name, service) = asked.filter(|(_, service)| service.unanswered > 0)?;
        let changed = way.is_some_and(|way| service.set(way, Instant::now()));
        self.tell(name, service);
        Some(changed)
    }

    fn tell(&self, name: &Bytes, service: &mut Service) {
        if service.way == Way::Asked || service.told == Some(service.way) {
            return;
        }
        let error = match service.way {
            Way::NoConnector => Some("has no connector at the relay".to_owned()),
            _ => None,
        };
        let (subject, address) = (Subject::Connector, None);
        if self.notices.tell(Notice { subject, service: name.clone(), address, error }) {
            service.told = Some(service.way);
        }
    }
}

/// The answer in an ICMP packet: the destination and token of the question, and the way there if it
/// tells.
fn read(packet: &[u8]) -> Option<(Ipv4Addr, u32, Option<Way>)> {
    let address = |packet: &[u8], at: usize| {
        let octets: &[u8; 4] = packet.get(at..)?.first_chunk()?;
        Some(Ipv4Addr::from(*octets))
    };
    let token = |message: &[u8]| {
        let token: &[u8; 4] = message.get(4..)?.first_chunk()?;
        Some(u32::from_be_bytes(*token))
    };
    let from = address(packet, 12)?;
    let message = packet.get(20..)?;
    match message.first()? {
        0 => Some((from, token(message)?, Some(Way::Open))),
        3 => {
            let quote = message.get(8..)?;
            let question = quote.get(20..)?;
            if quote[0] != 0x45 || quote[9] != protocol::ICMP || question.first() != Some(&8) {
                return None;
            }
            let to = address(quote, 16)?;
            let way = match (from == to, message[1]) {
                // This comes from the connector's own host.
                (true, _) => Some(Way::Open),
                (false, 1) => Some(Way::NoConnector),
                (false, _) => None,
            };
            Some((to, token(question)?, way))
        }
        _ => None,
    }
}

fn token() -> u32 {
    let mut token = [0; 4];
    // Without randomness a token can be guessed by services' connectors, which gains them little.
    let _ = aws_lc_rs::rand::fill(&mut token);
    u32::from_ne_bytes(token)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv6Addr, sync::Arc};

    use ztna_netstack::Counters;

    use super::*;
    use crate::{
        boundary::outbox::Outbox,
        icmp::{self, IcmpError},
        tunnel::TunnelId,
    };

    const SOURCE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

    fn asked() -> (Reach, Bytes, Ipv4Addr, u32) {
        let tx_queue = Rc::new(TxQueue::new(Arc::new(Counters::default())));
        let outbox = Arc::new(Outbox::new(9, Arc::default()).unwrap());
        let reach = Reach::new(tx_queue, Notices::new(outbox, TunnelId(1)), Some(SOURCE));
        let name = Bytes::from_static(b"pg");
        reach.acknowledge(std::slice::from_ref(&name));
        let (to, token) = {
            let mut services = reach.services.borrow_mut();
            let service = services.get_mut(&name).unwrap();
            service.unanswered = 1;
            (service.to, service.token)
        };
        (reach, name, to, token)
    }

    fn echo(from: Ipv4Addr, to: Ipv4Addr, token: u32, kind: u8) -> Vec<u8> {
        let mut out = PacketBuilder::default();
        out.echo_request(&[], from.into(), to.into(), token);
        let mut packet = out.take().next().unwrap().datagram.to_vec();
        packet[20] = kind;
        packet
    }

    fn unreachable(question: &[u8], from: Ipv4Addr, kind: IcmpError) -> Vec<u8> {
        let mut answer = Vec::new();
        icmp::error(kind, question, from, Ipv6Addr::UNSPECIFIED, &mut answer).unwrap();
        answer
    }

    #[tokio::test]
    async fn the_relay_says_that_there_is_no_connector_and_a_connector_that_there_is() {
        let (reach, name, to, token) = asked();
        let relay = Ipv4Addr::new(192, 0, 0, 8);
        let question = echo(SOURCE, to, token, 8);
        let answer = unreachable(&question, relay, IcmpError::HostUnreachable);
        assert_eq!(reach.way(&name), Some(Way::Asked));
        assert_eq!(reach.take(&answer), Some(true));
        assert_eq!(reach.way(&name), Some(Way::NoConnector));
        assert_eq!(reach.take(&answer), None, "a question is answered once");
        let token = {
            let mut services = reach.services.borrow_mut();
            let service = services.get_mut(&name).unwrap();
            service.unanswered = 1;
            service.token
        };
        assert_eq!(reach.take(&echo(to, SOURCE, token, 0)), Some(true));
        assert_eq!(reach.way(&name), Some(Way::Open));
    }

    #[tokio::test]
    async fn nothing_else_is_an_answer() {
        let (reach, name, to, token) = asked();
        let relay = Ipv4Addr::new(192, 0, 0, 8);
        let question = echo(SOURCE, to, token, 8);
        let other = echo(SOURCE, Ipv4Addr::new(198, 18, 9, 9), token, 8);
        for packet in [
            echo(to, SOURCE, token ^ 1, 0),
            echo(relay, SOURCE, token, 0),
            unreachable(&echo(SOURCE, to, token ^ 1, 8), relay, IcmpError::HostUnreachable),
            unreachable(&other, relay, IcmpError::HostUnreachable),
            question.clone(),
            question[..24].to_vec(),
            vec![0x45],
            Vec::new(),
        ] {
            assert_eq!(reach.take(&packet), None);
        }
        let prohibited = unreachable(&question, relay, IcmpError::AdministrativelyProhibited);
        for len in 0..prohibited.len() - 1 {
            reach.take(&prohibited[..len]);
        }
        assert_eq!(reach.take(&prohibited), Some(false), "it is ours, and tells nothing");
        assert_eq!(reach.way(&name), Some(Way::Asked));
    }
}
