//! Signaling and the direct path, as the agents and connectors in the field have them.
//!
//! The connector answers offers and probes and sends none itself; what it is sent directly it answers through the
//! relay. The agent throws away what comes directly.

mod agent;
mod connections;
mod punch;
mod sockets;
mod streams;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mio::{Registry, net::UdpSocket};
use quiche::Connection;

use crate::{
    control::{Event, Step, emit, to_hex},
    options::{Options, Profile},
    peer::{Outcome, random},
    wire::{Candidate, KEEPALIVE, KEPT_ALIVE, Kind, Message, PROBE, Probe, frame},
};
use agent::Agent;
use connections::Connections;
use sockets::OwnSockets;
use streams::Streams;

/// Connectors take a packet whose second byte is above it for QUIC, even one that begins as a probe.
const LAST_OF_PROBES: u8 = 0x3f;

/// What became of a packet.
pub enum Received {
    /// It is none of a direct path.
    Foreign,
    /// It has been dealt with.
    Taken,
    /// It wants this answer.
    Asked(Vec<u8>),
}

/// All of one peer that is not its connection to the relay.
pub struct Direct {
    profile: Profile,
    server: SocketAddr,
    local: SocketAddr,
    /// What to connect with, as an agent.
    config: quiche::Config,
    streams: Streams,
    connections: Connections,
    agent: Agent,
    /// Of an agent that uses others than the one to the relay.
    own_sockets: Option<OwnSockets>,
    observed: Option<SocketAddr>,
    /// What to tell instead of the addresses it has.
    told: Option<Vec<Candidate>>,
}

impl Direct {
    /// `local` is the address of the socket to the relay.
    pub fn new(options: &Options, local: SocketAddr, registry: &Registry) -> Outcome<Self> {
        let profile = options.profile;
        let accepting = options.accept_config()?;
        Ok(Self {
            profile,
            server: options.server,
            local,
            config: options.direct_config()?,
            streams: Streams::new(profile == Profile::AgentCore),
            connections: Connections::new(profile.cid_length(), accepting),
            agent: Agent::new(options.keepalive, options.keepalive_timeout),
            own_sockets: options
                .own_sockets
                .then(|| registry.try_clone().map(|registry| OwnSockets::new(registry, local)))
                .transpose()?,
            observed: None,
            told: None,
        })
    }

    /// The streams to the relay.
    pub fn streams(&mut self) -> &mut Streams {
        &mut self.streams
    }

    /// Tells these candidates from now on.
    pub fn tell(&mut self, candidates: Vec<Candidate>) {
        self.told = Some(candidates);
    }

    /// Asks for a direct path to the connector of a service, as an agent.
    pub fn offer(&mut self, session: u64, service: String) -> Outcome {
        let candidates = self.candidates()?;
        let offer = Message::CandidateOffer { session, service, candidates };
        self.streams.queue(0, &frame(&offer)?, false);
        self.agent.offered(session, Instant::now());
        Ok(())
    }

    /// What this end tells of itself: its own address, the one the relay reported, and the relay.
    fn candidates(&self) -> Outcome<Vec<Candidate>> {
        if let Some(told) = &self.told {
            return Ok(told.clone());
        }
        let own = if self.profile == Profile::Connector {
            self.local
        } else {
            let route = std::net::UdpSocket::bind(SocketAddr::new(self.local.ip(), 0))?;
            route.connect(self.server)?;
            SocketAddr::new(route.local_addr()?.ip(), self.local.port())
        };
        let mut candidates = vec![Candidate::new(Kind::Host, own, None)];
        let seen = self.observed.iter().map(|seen| (Kind::ServerReflexive, *seen));
        let others = seen.chain([(Kind::Relay, self.server)]);
        candidates.extend(others.map(|(kind, at)| Candidate::new(kind, at, Some(own))));
        Ok(candidates)
    }

    /// Looks at a DATAGRAM of the relay for the address that this end is seen at.
    pub fn observe(&mut self, datagram: &[u8]) {
        if let [0x01, a, b, c, d, high, low, ..] = *datagram {
            let port = u16::from_be_bytes([high, low]);
            self.observed = Some(([a, b, c, d], port).into());
        }
    }

    /// Takes what has come on streams, and does as the clients in the field do.
    pub fn read(&mut self, relay: &mut Connection, buffer: &mut [u8]) -> Outcome {
        for message in self.streams.read(relay, buffer)? {
            match (message, self.profile) {
                (Message::CandidateOffer { session, .. }, Profile::Connector) => {
                    let candidates = self.candidates()?;
                    let answer = Message::CandidateAnswer { session, candidates };
                    self.streams.queue(0, &frame(&answer)?, false);
                }
                (
                    Message::StartPunching { session, start_delay_ms, peer_candidates },
                    Profile::AgentCore,
                ) => {
                    let at = Instant::now() + Duration::from_millis(start_delay_ms);
                    let count = peer_candidates.len();
                    if self.agent.start(session, peer_candidates, at, random_array) {
                        self.own_sockets.as_mut().map_or(Ok(()), |own| own.begin(count))?;
                        emit(&Event::direct(Step::Probing, None))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes what has come to other sockets than the one to the relay.
    pub fn receive_own(&mut self, buffer: &mut [u8]) -> Outcome {
        let received = self.own_sockets.as_ref().map(|own| own.receive(buffer));
        for (target, from, mut packet) in received.into_iter().flatten() {
            if let Received::Asked(answer) = self.receive(&mut packet, from)?
                && let Some(socket) = self.own_sockets.as_ref().and_then(|own| own.get(target))
            {
                send_to(socket, from, &answer);
            }
        }
        Ok(())
    }

    /// Takes a packet that did not come from the relay.
    pub fn receive(&mut self, packet: &mut [u8], from: SocketAddr) -> Outcome<Received> {
        match *packet {
            [PROBE, KEEPALIVE, ref nonce @ ..] if nonce.len() == 4 => {
                emit(&Event::direct(Step::KeptAlive, Some(from)))?;
                return Ok(Received::Asked([&[PROBE, KEPT_ALIVE], nonce].concat()));
            }
            [PROBE, KEPT_ALIVE, a, b, c, d] => self.agent.kept_alive([a, b, c, d]),
            [PROBE, second, ..] if second <= LAST_OF_PROBES => {
                match bincode::deserialize(&packet[1..]) {
                    Ok(Probe::Request { transaction, .. }) => {
                        let mapped = Some(from);
                        let response = Probe::Response { transaction, success: true, mapped };
                        emit(&Event::direct(Step::Probed, Some(from)))?;
                        return Ok(Received::Asked(response.encode()?));
                    }
                    Ok(Probe::Response { transaction, success: true, .. })
                        if self.agent.answered(transaction, from, Instant::now()) =>
                    {
                        emit(&Event::direct(Step::Punched, Some(from)))?;
                        let local = match &mut self.own_sockets {
                            Some(own) => own.connect()?,
                            None => self.local,
                        };
                        self.connections.open(local, from, &mut self.config)?;
                    }
                    _ => {}
                }
            }
            _ => {
                let taken = self.connections.receive(packet, from, self.local)?;
                return Ok(if taken { Received::Taken } else { Received::Foreign });
            }
        }
        Ok(Received::Taken)
    }

    /// The packets that came directly, for the application beside a connector.
    pub fn packets(&mut self) -> Outcome<Vec<Vec<u8>>> {
        let mut packets = self.connections.datagrams();
        for packet in &packets {
            emit(&Event::DirectDatagram { hex: to_hex(packet) })?;
        }
        if self.profile != Profile::Connector {
            packets.clear();
        }
        Ok(packets)
    }

    /// Sends an IP packet directly; `None` where there is no path.
    pub fn send(&mut self, packet: &[u8]) -> Option<quiche::Result<()>> {
        self.connections.send(self.agent.remote()?, packet)
    }

    /// Closes the direct connections.
    pub fn close(&mut self) {
        self.connections.close();
    }

    /// Does what is due, and writes what direct connections have to send.
    pub fn flush(&mut self, socket: &UdpSocket, buffer: &mut [u8]) -> Outcome {
        self.connections.on_timeout();
        let now = Instant::now();
        let turn = self.agent.turn(now, random_array);
        let from = |target: Option<usize>| match &self.own_sockets {
            Some(own) => own.get(target),
            None => Some(socket),
        };
        for (target, to, packet) in turn.packets {
            if let Some(socket) = from(target) {
                send_to(socket, to, &packet);
            }
        }
        if let Some((step, remote)) = turn.step {
            self.connections.close();
            emit(&Event::direct(step, remote))?;
        }
        let steps = from(None).map(|socket| self.connections.flush(socket, buffer));
        for (step, remote) in steps.into_iter().flatten() {
            match step {
                Step::Connected => self.agent.connected(remote, now),
                _ => self.agent.closed(remote),
            }
            emit(&Event::direct(step, Some(remote)))?;
        }
        Ok(())
    }

    /// How long until [`Self::flush`] has something to do.
    pub fn timeout(&self) -> Option<Duration> {
        let agent = self.agent.next().map(|at| at.saturating_duration_since(Instant::now()));
        agent.into_iter().chain(self.connections.timeout()).min()
    }
}

/// Sends a probe, or the answer to one; an address that cannot be reached does not matter.
pub fn send_to(socket: &UdpSocket, to: SocketAddr, packet: &[u8]) {
    let _ = socket.send_to(packet, to);
}

fn random_array<const N: usize>() -> [u8; N] {
    let bytes = random(N).expect("the system gives random bytes");
    bytes.try_into().expect("as many as asked for")
}
