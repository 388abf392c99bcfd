//! (source, datagram) -> decision. Pure: no socket, no clock, no QUIC.

use std::{net::IpAddr, time::Instant};

use bytes::{Bytes, BytesMut};

use crate::{
    boundary::{counters::DropReason, event::ConnId},
    config::RelayConfig,
    error::EngineError,
    icmp::IcmpError,
    packet::{BadSource, PacketInfo, source_ok, source_unicast},
    relay::{
        classify::{Class, Ignored, classify},
        nat::{LeaseError, Nat, NatConfig, Owner, flows::Flows},
        routes::{Routes, ServiceIndex},
        service_address::is_service_address,
    },
    translate::{rewrite_destination, rewrite_source},
};

mod direct;

/// Bytes reserved at once for translated packets.
const ARENA: usize = 64 * 1024;

/// The forwarding rules and their state.
#[derive(Debug)]
pub struct Forwarder {
    /// The services that each connection may reach.
    pub routes: Routes,
    way_back: WayBack,
    /// Translated packets are written here one behind the other, so that an allocation serves
    /// about fifty of them.
    arena: BytesMut,
    translated: u64,
}

/// The way of a connector's packet to its agent.
#[derive(Debug)]
enum WayBack {
    Leases(Box<Nat>),
    Flows(Flows),
}

/// The decision about a datagram.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It goes to another connection.
    Deliver(Delivery),
    /// It is for the control plane.
    Control,
    /// It is dropped.
    Drop(Refusal),
}

/// A packet to be relayed.
#[derive(Debug, PartialEq)]
pub struct Delivery {
    /// The connection it goes to.
    pub to: ConnId,
    /// The packet as the target gets it.
    pub packet: Bytes,
    /// The offset in the datagram of the packet as its sender wrote it.
    pub packet_at: usize,
    /// The service that counts it.
    pub service: ServiceIndex,
    /// Whether it goes from connector to agent.
    pub to_agent: bool,
}

/// A packet that is not relayed.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    /// Why.
    pub reason: DropReason,
    /// Its service, if known.
    pub service: Option<ServiceIndex>,
    /// The answer to its sender, and the offset of the packet in the datagram.
    pub answer: Option<(IcmpError, usize)>,
}

impl Refusal {
    fn silent(reason: DropReason) -> Self {
        Self { reason, service: None, answer: None }
    }
}

impl Forwarder {
    /// The rules under `config` with an empty route table.
    ///
    /// # Errors
    /// When a pool of inner addresses is unusable.
    pub fn new(config: &RelayConfig, routes: Routes) -> Result<Self, EngineError> {
        let way_back = if config.translate {
            let nat = Nat::new(NatConfig {
                pool_v4: config.pool_v4,
                pool_v6: config.pool_v6,
                per_agent: config.addresses_per_agent,
                grace: config.lease_grace,
                reserved: vec![config.icmp_source_v4.into(), config.icmp_source_v6.into()],
                known: config.known_addresses.clone(),
                known_in_part: config.known_in_part,
            });
            WayBack::Leases(Box::new(nat.map_err(EngineError)?))
        } else {
            WayBack::Flows(Flows::default())
        };
        Ok(Self { routes, way_back, arena: BytesMut::new(), translated: 0 })
    }

    /// Replaces the services that an agent may reach, and gives it inner addresses or takes them
    /// back. Agents of one `quota` share the bounds of one agent. Returns the reserved addresses of
    /// an identity that has just come.
    pub fn set_agent(
        &mut self,
        conn: ConnId,
        services: &[Bytes],
        identity: Option<[u8; 32]>,
        quota: u64,
        now: Instant,
    ) -> Vec<IpAddr> {
        let key = match identity {
            Some([a, b, c, d, e, f, g, h, ..]) => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            None => conn.0,
        };
        self.reroute(conn, now, |routes| routes.set_agent(conn, services, key));
        if services.is_empty() {
            self.detach(conn, now);
            return Vec::new();
        }
        match &mut self.way_back {
            WayBack::Leases(nat) => {
                let owner = identity.map_or(Owner::Anonymous, Owner::Identity);
                let new = nat.attach(conn, owner, quota, now);
                let reserved = identity.filter(|_| new).map(|key| nat.reserved(&key));
                reserved.into_iter().flatten().flatten().collect()
            }
            WayBack::Flows(flows) => {
                flows.attach(conn, identity, quota);
                Vec::new()
            }
        }
    }

    /// Takes a closed connection out of everything.
    pub fn remove(&mut self, conn: ConnId, now: Instant) {
        self.reroute(conn, now, |routes| routes.remove(conn));
        self.detach(conn, now);
        if let WayBack::Leases(nat) = &mut self.way_back {
            nat.remove_connector(conn);
        }
    }

    fn detach(&mut self, conn: ConnId, now: Instant) {
        match &mut self.way_back {
            WayBack::Leases(nat) => nat.detach(conn, now),
            WayBack::Flows(flows) => flows.detach(conn),
        }
    }

    /// Ends expired leases and flows; call about once a second.
    pub fn expire(&mut self, now: Instant) {
        match &mut self.way_back {
            WayBack::Leases(nat) => nat.expire(now),
            WayBack::Flows(flows) => flows.expire(now),
        }
    }

    /// Inner addresses leased, or flows learned.
    pub fn leases(&self) -> usize {
        match &self.way_back {
            WayBack::Leases(nat) => nat.leases(),
            WayBack::Flows(flows) => flows.len(),
        }
    }

    /// Packets translated since the last call.
    pub fn take_translated(&mut self) -> u64 {
        std::mem::take(&mut self.translated)
    }

    /// Decides about one datagram.
    #[inline]
    pub fn forward(&mut self, from: ConnId, datagram: &Bytes, now: Instant) -> Verdict {
        let decided = match classify(datagram) {
            Class::Packet => self.bare(from, datagram, now),
            Class::ServiceRouted { service, packet_offset } => {
                self.onward(from, datagram, packet_offset, Some(service), now)
            }
            Class::Control => return Verdict::Control,
            Class::Ignored(ignored) => Err(Refusal::silent(ignored.into())),
        };
        match decided {
            Ok(delivery) => Verdict::Deliver(delivery),
            Err(refusal) => Verdict::Drop(refusal),
        }
    }

    /// A bare packet of a connector goes back to the agent that owns its destination. If no agent
    /// owns it and the sender is an agent too, it may be meant for a service; not with learned
    /// flows, whose agents choose these addresses themselves.
    fn bare(&mut self, from: ConnId, datagram: &Bytes, now: Instant) -> Result<Delivery, Refusal> {
        if !self.routes.is_connector(from) {
            return self.onward(from, datagram, 0, None, now);
        }
        match self.back(from, datagram, now) {
            Err(refusal) => self.not_back(from, datagram, refusal, now),
            delivered => delivered,
        }
    }

    fn back(&mut self, from: ConnId, datagram: &Bytes, now: Instant) -> Result<Delivery, Refusal> {
        let mut info = checked(datagram, source_unicast)?;
        let refuse = |reason, error| Refusal { reason, service: None, answer: Some((error, 0)) };
        let (agent, inner) = match &mut self.way_back {
            WayBack::Leases(nat) => nat.inbound(info.destination),
            WayBack::Flows(flows) => {
                flows.inbound(from, datagram, &info, now).map(|agent| (agent, info.destination))
            }
        }
        .ok_or(refuse(DropReason::NoAgent, IcmpError::HostUnreachable))?;
        let (agent, service) = self
            .shared_service(from, agent, info.source, now)
            .ok_or(refuse(DropReason::NotAllowed, IcmpError::AdministrativelyProhibited))?;
        let packet = if inner == info.destination {
            datagram.slice(..info.total_len)
        } else {
            self.translate(datagram, &mut info, inner, rewrite_destination)?
        };
        Ok(Delivery { to: agent, packet, packet_at: 0, service, to_agent: true })
    }

    /// The service by which a connector may send to an agent, and the agent's connection: the older
    /// one while the newer has not registered all of what that one has.
    #[inline]
    fn shared_service(
        &self,
        connector: ConnId,
        agent: ConnId,
        source: IpAddr,
        now: Instant,
    ) -> Option<(ConnId, ServiceIndex)> {
        if let Some(service) = self.routes.shared_service(connector, agent, source) {
            return Some((agent, service));
        }
        let WayBack::Leases(nat) = &self.way_back else {
            return None;
        };
        let older = nat.predecessor(agent, now)?;
        Some((older, self.routes.shared_service(connector, older, source)?))
    }

    fn onward(
        &mut self,
        from: ConnId,
        datagram: &Bytes,
        packet_at: usize,
        service: Option<&[u8]>,
        now: Instant,
    ) -> Result<Delivery, Refusal> {
        let packet = &datagram[packet_at..];
        let mut info = checked(packet, source_ok)?;
        let refuse =
            |reason, service, error| Refusal { reason, service, answer: Some((error, packet_at)) };
        let route = self.routes.from_agent(from, service).map_err(|is_agent| {
            let reason = match is_agent {
                true => DropReason::NotRegisteredForService,
                false => DropReason::Unregistered,
            };
            refuse(reason, None, IcmpError::AdministrativelyProhibited)
        })?;
        let service = route.service;
        if !self.routes.may_use(service, info.destination) {
            let error = IcmpError::AdministrativelyProhibited;
            return Err(refuse(DropReason::NotAllowed, Some(service), error));
        }
        let to = route.connector.ok_or_else(|| {
            refuse(DropReason::NoConnector, Some(service), IcmpError::HostUnreachable)
        })?;
        let source = match &mut self.way_back {
            WayBack::Leases(nat) => nat.outbound(from, info.source, now).map_err(|e| {
                refuse(e.into(), Some(service), IcmpError::AdministrativelyProhibited)
            })?,
            // A connector that is an agent as well would send its packets for that service there.
            WayBack::Flows(_) if is_service_address(info.source) => {
                let error = IcmpError::AdministrativelyProhibited;
                return Err(refuse(DropReason::BadSource, Some(service), error));
            }
            WayBack::Flows(flows) => {
                if !flows.outbound(from, to, packet, &info, now) {
                    let error = IcmpError::AdministrativelyProhibited;
                    return Err(refuse(DropReason::FlowConflict, Some(service), error));
                }
                info.source
            }
        };
        let packet = if source == info.source {
            datagram.slice(packet_at..packet_at + info.total_len)
        } else {
            self.translate(packet, &mut info, source, rewrite_source)?
        };
        Ok(Delivery { to, packet, packet_at, service, to_agent: false })
    }

    fn translate(
        &mut self,
        packet: &[u8],
        info: &mut PacketInfo,
        address: IpAddr,
        rewrite: fn(&mut [u8], &mut PacketInfo, IpAddr) -> bool,
    ) -> Result<Bytes, Refusal> {
        if self.arena.capacity() < info.total_len {
            self.arena = BytesMut::with_capacity(ARENA.max(info.total_len));
        }
        self.arena.extend_from_slice(&packet[..info.total_len]);
        let mut copy = self.arena.split();
        if !rewrite(&mut copy, info, address) {
            return Err(Refusal::silent(DropReason::Malformed));
        }
        self.translated += 1;
        Ok(copy.freeze())
    }
}

/// The headers of a packet that may be relayed, judged by its source too.
#[inline]
fn checked(
    packet: &[u8],
    source: fn(IpAddr) -> Result<(), BadSource>,
) -> Result<PacketInfo, Refusal> {
    let info = PacketInfo::parse(packet).map_err(|_| Refusal::silent(DropReason::Malformed))?;
    source(info.source).map_err(|_| Refusal::silent(DropReason::BadSource))?;
    Ok(info)
}

impl From<Ignored> for DropReason {
    fn from(ignored: Ignored) -> Self {
        match ignored {
            Ignored::Empty => Self::Empty,
            Ignored::TooShort | Ignored::BadLength => Self::BadMessage,
            Ignored::HolePunch => Self::HolePunch,
            Ignored::AddressReport => Self::UnexpectedMessage,
            Ignored::TooSmallForIp => Self::Malformed,
        }
    }
}

impl From<LeaseError> for DropReason {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::BadSource(_) => Self::BadSource,
            _ => Self::NoLease,
        }
    }
}
