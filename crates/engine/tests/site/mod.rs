//! A relay and its clients as two engines in one process, for tests of what is between them.
#![allow(dead_code)]

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use ztna_engine::{
    Command, ConnId, ConnectConfig, Engine, Event, ListenConfig, Target,
    tls::{ClientAuth, ClientTls, ServerTls, ServerTrust},
};

/// Made for these tests and good for a hundred years; it protects nothing.
pub const CERTIFICATE: &[u8] = include_bytes!("certificate.pem");
pub const KEY: &[u8] = include_bytes!("key.pem");
const OUTBOX: usize = 65_536;
/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine, and its events that nobody has asked for yet.
pub struct Side {
    pub engine: Engine,
    events: VecDeque<Event>,
}

impl Side {
    fn new(outbox: usize) -> Self {
        Self { engine: Engine::start(outbox).unwrap(), events: VecDeque::new() }
    }

    /// Applies one batch and returns once it is in force.
    ///
    /// The two engines of a site share no clock, so a packet could otherwise reach the relay before a
    /// route does. A second `listen` waits its turn behind the batch, and the relay refuses it.
    pub fn apply(&self, commands: Vec<Command>) {
        self.engine.apply(commands).unwrap();
        self.engine.listen(config()).unwrap_err();
    }

    /// Waits for the first event that `wanted` takes; the others wait on in their order.
    pub fn wait<T>(&mut self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.events.iter().position(|event| wanted(event).is_some()) {
                return self.events.remove(at).and_then(|event| wanted(&event)).unwrap();
            }
            self.events.extend(self.engine.outbox().drain(512));
            assert!(begun.elapsed() < PATIENCE, "did not come; there is {:?}", self.events);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until `done` holds of the engine.
    pub fn until(&self, done: impl Fn(&Engine) -> bool) {
        let begun = Instant::now();
        while !done(&self.engine) {
            assert!(begun.elapsed() < PATIENCE, "it never was so");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether such an event has come so far.
    pub fn has(&mut self, is: impl Fn(&Event) -> bool) -> bool {
        self.events.extend(self.engine.outbox().drain(512));
        self.events.iter().any(is)
    }

    /// Takes the requests to join that have come so far.
    pub fn requests(&mut self) -> Vec<u64> {
        self.events.extend(self.engine.outbox().drain(512));
        let request = |event: &Event| match event {
            Event::JoinRequest { request, .. } => Some(*request),
            _ => None,
        };
        let requests = self.events.iter().filter_map(request).collect();
        self.events.retain(|event| request(event).is_none());
        requests
    }

    /// Events of ends that have come so far.
    pub fn closed(&mut self) -> Vec<ConnId> {
        self.events.extend(self.engine.outbox().drain(512));
        let closed = |event: &Event| match event {
            Event::Closed { conn, .. } => Some(*conn),
            _ => None,
        };
        self.events.iter().filter_map(closed).collect()
    }

    pub fn dropped(&self, reason: &str) -> u64 {
        let drops = self.engine.counters().drops.snapshot();
        drops.into_iter().find(|(known, _)| *known == reason).unwrap().1
    }
}

/// A client's connection as each side calls it.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub relay: ConnId,
    pub client: ConnId,
}

pub struct Site {
    pub relay: Side,
    pub clients: Side,
    pub address: SocketAddr,
    request: u64,
}

impl Site {
    pub fn new(change: impl FnOnce(&mut ListenConfig)) -> Self {
        Self::with_outbox(OUTBOX, change)
    }

    /// A site whose relay lets so many events of peers wait for the control plane.
    pub fn with_outbox(capacity: usize, change: impl FnOnce(&mut ListenConfig)) -> Self {
        let relay = Side::new(capacity);
        let mut config = config();
        change(&mut config);
        let (bound, _) = relay.engine.listen(config).unwrap();
        Self { relay, clients: Side::new(OUTBOX), address: bound[0], request: 0 }
    }

    pub fn connect(&mut self) -> Ends {
        self.connect_taking(1350)
    }

    /// Connects a client that takes UDP payloads of up to `max_udp_payload` bytes.
    pub fn connect_taking(&mut self, max_udp_payload: u16) -> Ends {
        self.begin(|config| config.max_udp_payload = max_udp_payload);
        let connected = |event: &Event| match event {
            Event::Connected { conn, .. } => Some(*conn),
            _ => None,
        };
        Ends { client: self.clients.wait(connected), relay: self.relay.wait(connected) }
    }

    /// Begins to connect; returns the request.
    pub fn begin(&mut self, change: impl FnOnce(&mut ConnectConfig)) -> u64 {
        self.ready(|request, config| Command::Connect { request, config }, change)
    }

    /// Begins to ask; returns the request.
    pub fn ask(&mut self, data: &[u8], change: impl FnOnce(&mut ConnectConfig)) -> u64 {
        let data = Bytes::copy_from_slice(data);
        self.ready(|request, config| Command::Ask { request, config, data }, change)
    }

    fn ready(
        &mut self,
        command: impl FnOnce(u64, Box<ConnectConfig>) -> Command,
        change: impl FnOnce(&mut ConnectConfig),
    ) -> u64 {
        self.request += 1;
        let tls = ClientTls::new(None, None, ServerTrust::Anyone).unwrap();
        let mut config = ConnectConfig {
            bind: (Ipv4Addr::LOCALHOST, 0).into(),
            handshake_timeout_ms: 30_000,
            keep_alive_ms: 1000,
            max_udp_payload: 1350,
            send_queue: 256 * 1024,
            observe_address: false,
            ..ConnectConfig::new(self.address, "relay.test".into(), Arc::new(tls))
        };
        change(&mut config);
        self.clients.engine.apply(vec![command(self.request, Box::new(config))]).unwrap();
        self.request
    }

    /// Makes `agent` an agent of a service that `connector` serves.
    pub fn route(&self, service: &'static str, agent: Ends, connector: Ends) {
        let service = Bytes::from(service);
        let target = Target { conn: connector.relay, rank: 0, key: 0 };
        self.relay.apply(vec![
            Command::SetService { service: service.clone(), targets: vec![target] },
            Command::SetAgent { conn: agent.relay, services: vec![service], identity: None },
        ]);
    }

    pub fn send(&self, from: Ends, data: impl Into<Bytes>) {
        let send = Command::SendDatagram { conn: from.client, data: data.into() };
        self.clients.engine.apply(vec![send]).unwrap();
    }

    /// The next batch of datagrams that `to` is sent.
    pub fn received(&mut self, to: Ends) -> Vec<Bytes> {
        self.clients.wait(|event| match event {
            Event::Datagrams { conn, data } if *conn == to.client => Some(data.clone()),
            _ => None,
        })
    }
}

/// SHA-256 of the relay's certificate.
pub fn fingerprint() -> [u8; 32] {
    let der = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
    digest(&SHA256, &der).as_ref().try_into().unwrap()
}

/// The relay's certificate, and `join_chain` behind it for those who join.
pub fn server_tls(join_chain: Option<&[u8]>) -> Arc<ServerTls> {
    Arc::new(ServerTls::new(CERTIFICATE, KEY, None, ClientAuth::Off, join_chain).unwrap())
}

fn config() -> ListenConfig {
    let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    ListenConfig {
        retry: false,
        handshake_timeout: Duration::from_secs(30),
        max_connections: 100,
        max_half_open: 100,
        handshakes_per_source: 1000,
        handshake_burst_per_source: 1000,
        cid_lifetime: Duration::from_secs(3600),
        receive_queue: 256 * 1024,
        socket_buffer: 256 * 1024,
        ..ListenConfig::new(bind, server_tls(None), vec![1; 32], vec![2; 32])
    }
}
