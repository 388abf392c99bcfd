//! Agents that were introduced to a connector get its answers to what they sent past the relay, and
//! nobody else does.

mod oracle;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use oracle::udp::{answer, udp};
use ztna_engine::{
    ConnId, RelayConfig, Target,
    counters::DropReason,
    forward::{Forwarder, Verdict},
    nat::{Conflict, MAX_INTRODUCED, QUARANTINE},
    routes::Routes,
    service_address::ServiceAddresses,
};

const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What every agent on macOS uses.
const SAME: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 1));
const BEYOND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 100));

fn config(translate: bool) -> RelayConfig {
    RelayConfig { translate, addresses_per_agent: 2, ..RelayConfig::default() }
}

/// Agents 1 and up, of "web" and "dns", which connector 90 serves; connector 91 serves "ssh".
struct Site {
    forwarder: Forwarder,
    now: Instant,
}

const WEB: ConnId = id(90);
const SSH: ConnId = id(91);

const fn id(n: u64) -> ConnId {
    ConnId(n)
}

impl Site {
    fn new() -> Self {
        Self::with(config(true))
    }

    fn with(config: RelayConfig) -> Self {
        let forwarder = Forwarder::new(&config, Routes::new(Arc::default())).unwrap();
        let mut site = Self { forwarder, now: Instant::now() };
        site.serve("web", &[WEB]);
        site.serve("dns", &[WEB]);
        site.serve("ssh", &[SSH]);
        site
    }

    fn serve(&mut self, service: &'static str, connectors: &[ConnId]) {
        let target = |conn: &ConnId| Target { conn: *conn, rank: 0, key: conn.0 };
        let targets = connectors.iter().map(target).collect();
        self.forwarder.set_service(&service.into(), targets, self.now);
    }

    fn agent(&mut self, agent: u64, services: &[&'static str]) -> ConnId {
        let services: Vec<Bytes> = services.iter().map(|s| Bytes::from(*s)).collect();
        self.forwarder.set_agent(id(agent), &services, None, agent, self.now);
        id(agent)
    }

    fn introduce(&mut self, agent: ConnId, connector: ConnId) {
        assert_eq!(self.conflict(agent, connector), None);
        self.forwarder.introduce(agent, connector);
    }

    fn conflict(&mut self, agent: ConnId, connector: ConnId) -> Option<Conflict> {
        self.forwarder.conflict(agent, connector, self.now)
    }

    /// What the connector sees of an agent's packet that passes the relay.
    fn send(&mut self, agent: ConnId, source: IpAddr) -> IpAddr {
        let packet = udp(source, [10, 0, 0, 53].into(), 1).into();
        match self.forwarder.forward(agent, &packet, self.now) {
            Verdict::Deliver(delivery) => {
                ztna_engine::packet::PacketInfo::parse(&delivery.packet).unwrap().source
            }
            verdict => panic!("{verdict:?}"),
        }
    }

    /// Whom a connector's packet reaches.
    fn answer(&mut self, connector: ConnId, to: IpAddr) -> Result<ConnId, DropReason> {
        self.answer_from(BACKEND, connector, to)
    }

    fn answer_from(
        &mut self,
        source: IpAddr,
        connector: ConnId,
        to: IpAddr,
    ) -> Result<ConnId, DropReason> {
        let packet = answer(source, to, 1);
        match self.forwarder.forward(connector, &packet, self.now) {
            Verdict::Deliver(delivery) => {
                assert!(delivery.to_agent && delivery.packet_at == 0);
                assert_eq!(delivery.packet, packet);
                Ok(delivery.to)
            }
            Verdict::Drop(refusal) => Err(refusal.reason),
            Verdict::Control => panic!("not a packet"),
        }
    }
}

#[test]
fn an_introduced_agent_gets_answers_to_the_address_that_it_uses_itself() {
    let mut site = Site::new();
    let agent = site.agent(1, &["web"]);
    for address in [SAME, BEYOND] {
        assert_eq!(site.answer(WEB, address), Err(DropReason::NoAgent));
    }
    site.introduce(agent, WEB);
    for address in [SAME, BEYOND] {
        assert_eq!(site.answer(WEB, address), Ok(agent));
        assert_eq!(site.answer(WEB, address), Ok(agent));
        assert_eq!(site.answer(SSH, address), Err(DropReason::NoAgent), "another connector");
    }
    let more = IpAddr::from([100, 64, 0, 3]);
    assert_eq!(site.answer(WEB, more), Err(DropReason::NoAgent), "two addresses an agent");
    assert_eq!(site.send(agent, SAME), SAME, "by the relay it may go on with its address");
    assert_eq!(site.answer(WEB, SAME), Ok(agent));

    site.forwarder.separate(agent, WEB, site.now);
    assert_eq!(site.answer(WEB, BEYOND), Err(DropReason::NoAgent));
    assert_eq!(site.answer(WEB, SAME), Ok(agent), "this it is leased");
}

#[test]
fn what_comes_back_passes_the_same_checks_as_any_answer() {
    let mut site = Site::new();
    let agent = site.agent(1, &["web"]);
    site.introduce(agent, WEB);
    let of = |service: &str| IpAddr::V4(ServiceAddresses::of(service.as_bytes()).v4);
    assert_eq!(site.answer_from(of("dns"), WEB, SAME), Err(DropReason::NotAllowed));
    assert_eq!(site.answer_from(of("web"), WEB, SAME), Ok(agent));
    let many = IpAddr::from([224, 0, 0, 1]);
    assert_eq!(site.answer_from(many, WEB, SAME), Err(DropReason::BadSource));
    site.agent(1, &["ssh"]);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NotAllowed), "registered elsewhere now");
    let nobody = IpAddr::from([127, 0, 0, 1]);
    assert_eq!(site.answer(WEB, nobody), Err(DropReason::NoAgent));
}

#[test]
fn a_second_agent_whose_addresses_are_unknown_is_not_introduced() {
    let mut site = Site::new();
    let (first, second) = (site.agent(1, &["web"]), site.agent(2, &["dns"]));
    assert_eq!(site.conflict(first, WEB), None);
    assert_eq!(site.conflict(second, WEB), Some(Conflict::Ambiguous), "the first has the place");
    site.now += Duration::from_secs(20);
    assert_eq!(site.conflict(second, WEB), None, "it was not introduced");
    site.forwarder.introduce(second, WEB);
    assert_eq!(site.conflict(first, WEB), Some(Conflict::Ambiguous));

    // Told to introduce it all the same, the relay gives answers to neither.
    assert_eq!(site.answer(WEB, SAME), Ok(second));
    site.forwarder.introduce(first, WEB);
    for _ in 0..2 {
        assert_eq!(site.answer(WEB, SAME), Err(DropReason::DirectAmbiguous));
    }
    site.forwarder.remove(first, site.now);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::DirectAmbiguous), "late for the first");
    site.now += QUARANTINE;
    assert_eq!(site.answer(WEB, SAME), Ok(second));
}

#[test]
fn one_that_is_translated_is_not_introduced() {
    let mut site = Site::new();
    let (first, second) = (site.agent(1, &["web"]), site.agent(2, &["web"]));
    assert_eq!(site.send(first, SAME), SAME);
    assert_eq!(site.conflict(second, WEB), Some(Conflict::Ambiguous), "it may use the same one");
    assert_ne!(site.send(second, SAME), SAME);
    assert_eq!(site.conflict(second, WEB), Some(Conflict::Translated));
    assert_eq!(site.conflict(first, WEB), None);

    let mut site = Site::with(RelayConfig { known_in_part: true, ..config(true) });
    let agent = site.agent(1, &["web"]);
    assert_eq!(site.conflict(agent, WEB), Some(Conflict::Translated), "it would be");
    let mut site = Site::with(config(false));
    let agent = site.agent(1, &["web"]);
    assert_eq!(site.conflict(agent, WEB), Some(Conflict::Learned));
    site.forwarder.introduce(agent, WEB);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NoAgent));
}

#[test]
fn while_an_introduced_agent_has_no_lease_the_others_are_translated() {
    let mut site = Site::new();
    let (direct, other) = (site.agent(1, &["web"]), site.agent(2, &["web", "ssh"]));
    site.introduce(direct, WEB);
    let seen = site.send(other, SAME);
    assert_ne!(seen, SAME);
    assert_eq!(site.answer(WEB, SAME), Ok(direct));
    let third = site.agent(3, &["web"]);
    assert_eq!(site.send(direct, SAME), SAME);
    let free = IpAddr::from([100, 64, 0, 9]);
    assert_eq!(site.send(third, free), free, "the first has a lease now");
}

#[test]
fn an_address_of_an_agent_of_other_services_only_may_be_meant_for_an_introduced_one() {
    let mut site = Site::new();
    let (holder, direct) = (site.agent(1, &["ssh"]), site.agent(2, &["web"]));
    assert_eq!(site.send(holder, SAME), SAME);
    site.introduce(direct, WEB);
    assert_eq!(site.answer(WEB, SAME), Ok(direct));
    assert_eq!(site.answer(SSH, SAME), Ok(holder));
    assert_ne!(site.send(direct, SAME), SAME);
    assert_eq!(site.answer(WEB, SAME), Ok(direct));

    // Now both could be meant, so the one that is not direct gets another address.
    site.agent(1, &["ssh", "web"]);
    assert_eq!(site.answer(WEB, SAME), Ok(direct));
    assert_ne!(site.send(holder, SAME), SAME);
    site.forwarder.remove(direct, site.now);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NoAgent));
}

#[test]
fn a_connector_that_comes_to_serve_an_agent_does_not_take_its_address_for_another_ones() {
    let mut site = Site::new();
    let (holder, direct) = (site.agent(1, &["ssh"]), site.agent(2, &["web"]));
    assert_eq!(site.send(holder, SAME), SAME);
    site.introduce(direct, WEB);
    site.serve("ssh", &[SSH, WEB]);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NoAgent), "not that of the holder");
    assert_ne!(site.send(holder, SAME), SAME);
}

#[test]
fn an_address_that_the_connector_may_have_sent_to_before_is_not_bound() {
    let mut site = Site::new();
    let (holder, direct) = (site.agent(1, &["web"]), site.agent(2, &["web"]));
    assert_eq!(site.send(holder, SAME), SAME);
    // Still leased, and known to the connector.
    site.agent(1, &["ssh"]);
    assert_eq!(site.conflict(direct, WEB), Some(Conflict::Ambiguous), "it would get no answers");
    site.forwarder.introduce(direct, WEB);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NotAllowed));
    // Given up since the connector came, but before another one came.
    site.forwarder.remove(holder, site.now);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NoAgent));
    site.now += Duration::from_secs(1);
    let new = id(92);
    site.serve("dns", &[WEB, new]);
    site.agent(2, &["web", "dns"]);
    site.introduce(direct, new);
    assert_eq!(site.answer(new, SAME), Ok(direct));
    site.now += QUARANTINE;
    site.forwarder.expire(site.now);
    assert_eq!(site.answer(WEB, SAME), Ok(direct));
}

#[test]
fn an_identity_gets_what_is_sent_to_its_address_or_nobody_does() {
    let mut site = Site::new();
    let key = Some([7; 32]);
    let own = site.forwarder.set_agent(id(1), &["ssh".into()], key, 1, site.now)[0];
    let direct = site.agent(2, &["web"]);
    site.introduce(direct, WEB);
    assert_eq!(site.answer(WEB, own), Err(DropReason::NotAllowed), "it is there");
    site.forwarder.remove(id(1), site.now);
    assert_eq!(site.answer(WEB, own), Err(DropReason::NoAgent), "it is away");
    site.now += QUARANTINE;
    site.forwarder.expire(site.now);
    assert_eq!(site.answer(WEB, own), Err(DropReason::NoAgent), "it is its own for good");
    let shared = IpAddr::from([100, 124, 0, 9]);
    assert_eq!(site.answer(WEB, shared), Err(DropReason::NoAgent), "no agent's own");
    assert_eq!(site.answer(WEB, SAME), Ok(direct));
}

#[test]
fn answers_to_an_agent_that_lost_its_access_reach_no_other_one() {
    let mut site = Site::new();
    let (first, second) = (site.agent(1, &["web", "ssh"]), site.agent(2, &["web"]));
    site.introduce(first, WEB);
    // It stays connected, and nothing that it sent directly was answered yet.
    site.agent(1, &["ssh"]);
    site.forwarder.separate(first, WEB, site.now);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NoAgent));
    assert_eq!(site.conflict(second, WEB), Some(Conflict::Ambiguous), "late answers to the first");
    // Its direct path lives on as long as it likes.
    for _ in 0..2 {
        site.now += QUARANTINE / 2;
        assert_eq!(site.answer(WEB, SAME), Err(DropReason::NoAgent));
    }
    assert_eq!(site.conflict(second, WEB), Some(Conflict::Ambiguous), "it was answered just now");
    site.now += QUARANTINE;
    site.introduce(second, WEB);
    assert_eq!(site.answer(WEB, SAME), Ok(second));
}

#[test]
fn nothing_of_an_introduction_outlives_its_connections() {
    let mut site = Site::new();
    let first = site.agent(1, &["web"]);
    site.introduce(first, WEB);
    assert_eq!(site.answer(WEB, SAME), Ok(first));
    site.forwarder.remove(first, site.now);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NoAgent));
    // Commands that come late.
    site.forwarder.introduce(first, WEB);
    assert_eq!(site.answer(WEB, SAME), Err(DropReason::NoAgent));
    let second = site.agent(2, &["web"]);
    assert_eq!(site.conflict(second, WEB), Some(Conflict::Ambiguous), "late answers to the first");
    assert_ne!(site.send(second, SAME), SAME);

    site.now += QUARANTINE;
    site.forwarder.expire(site.now);
    let third = site.agent(3, &["web"]);
    site.forwarder.remove(second, site.now);
    site.introduce(third, WEB);
    assert_eq!(site.answer(WEB, SAME), Ok(third));
    site.forwarder.remove(WEB, site.now);
    site.forwarder.introduce(third, WEB);
    let again = id(93);
    site.serve("web", &[again]);
    assert_eq!(site.answer(again, SAME), Err(DropReason::NoAgent));
    assert_eq!(site.conflict(third, again), None);
    assert_eq!(site.conflict(third, WEB), Some(Conflict::Ambiguous), "it is gone");
}

#[test]
fn a_connector_has_so_many_introduced_agents() {
    let mut site = Site::new();
    for n in 1..=MAX_INTRODUCED as u64 {
        let agent = site.agent(n, &["web"]);
        let address = IpAddr::from([100, 64, 1, n as u8]);
        assert_eq!(site.send(agent, address), address);
        site.introduce(agent, WEB);
        assert_eq!(site.answer(WEB, address), Ok(agent));
    }
    let more = site.agent(1000, &["web"]);
    assert_eq!(site.send(more, SAME), SAME);
    assert_eq!(site.conflict(more, WEB), Some(Conflict::Ambiguous));
    site.forwarder.separate(id(1), WEB, site.now);
    assert_eq!(site.conflict(more, WEB), None);
}

#[test]
fn packets_that_a_connector_sends_as_an_agent_are_nobodys_answers() {
    let mut site = Site::new();
    let agent = site.agent(1, &["web"]);
    site.forwarder.set_agent(WEB, &["ssh".into()], None, 9, site.now);
    assert_eq!(site.conflict(agent, WEB), Some(Conflict::Ambiguous));
    site.forwarder.introduce(agent, WEB);
    let packet = udp([100, 64, 0, 5].into(), SAME, 1).into();
    let Verdict::Deliver(delivery) = site.forwarder.forward(WEB, &packet, site.now) else {
        panic!("not relayed")
    };
    assert_eq!(delivery.to, SSH);
}
