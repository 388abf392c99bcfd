//! Packets from the relay, judged one by one; each may be hostile.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use bytes::Bytes;
use ztna_packet::{
    checksum,
    icmp::{self, IcmpError},
    packet::{Fragment, PacketInfo, address_v4, address_v6, protocol, source_ok},
};

use super::{Arrival, Flow, Refusal, Stack, udp::DNS};
use crate::{
    config::{Backend, Transport},
    counters::TunnelDrop,
    echo,
    flow::{FlowId, FlowKey},
    packet_builder::{FRAGMENT, pseudo_header},
    tcp::{TcpState, Unreachable},
};

/// The largest SYN that is accepted; no system sends a larger one.
const MAX_SYN: usize = 1500;
/// Bits of the TCP flags.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const SYN_ACK_RST_FIN: u8 = 0x17;

impl Stack {
    /// Takes in one packet from the relay.
    pub fn receive<'a>(&mut self, packet: &'a [u8], now: Instant) -> Arrival<'a> {
        self.counters.packets_in.add(1);
        self.counters.bytes_in.add(packet.len() as u64);
        let arrival = self.judge(packet, now);
        arrival.unwrap_or_else(|reason| {
            self.counters.dropped(reason, 1);
            Arrival::Done
        })
    }

    fn judge<'a>(&mut self, packet: &'a [u8], now: Instant) -> Result<Arrival<'a>, TunnelDrop> {
        let info = PacketInfo::parse(packet).map_err(|_| TunnelDrop::Malformed)?;
        // Both become addresses that this stack or its answers use.
        source_ok(info.source).or(Err(TunnelDrop::Malformed))?;
        source_ok(info.destination).or(Err(TunnelDrop::Malformed))?;
        let packet = &packet[..info.total_len];
        if info.fragment == Fragment::Whole {
            return self.judge_whole(packet, &info, now);
        }
        let whole = self.fragments.insert(packet, &info, now, &self.counters);
        self.gauge();
        let Some(whole) = whole? else {
            return Ok(Arrival::Done);
        };
        let info = PacketInfo::parse(&whole).map_err(|_| TunnelDrop::Malformed)?;
        if info.fragment != Fragment::Whole {
            return Err(TunnelDrop::Fragment);
        }
        self.judge_whole(&whole, &info, now).map(Arrival::into_owned)
    }

    fn judge_whole<'a>(
        &mut self,
        packet: &'a [u8],
        info: &PacketInfo,
        now: Instant,
    ) -> Result<Arrival<'a>, TunnelDrop> {
        match info.protocol {
            protocol::TCP => self.judge_tcp(packet, info, now),
            protocol::UDP => self.judge_udp(packet, info, now),
            _ if info.is_icmp_error(packet) => self.judge_error(packet, info, now),
            _ if echo::is_request(packet, info) => {
                if !self.services.echoes(info.destination) {
                    return Err(TunnelDrop::NoService);
                }
                if !self.answers.take(now) {
                    return Err(TunnelDrop::EchoRate);
                }
                echo::turn_around(packet, info, &mut self.answer);
                let mtu = self.paths.mtu(info.source, self.datagram);
                if !self.out.packet(&[], &self.answer, mtu) {
                    return Err(TunnelDrop::TooLarge);
                }
                self.counters.echo_answered.add(1);
                Ok(Arrival::Done)
            }
            _ => Err(TunnelDrop::Protocol),
        }
    }

    fn judge_tcp<'a>(
        &mut self,
        packet: &'a [u8],
        info: &PacketInfo,
        now: Instant,
    ) -> Result<Arrival<'a>, TunnelDrop> {
        let segment = info.transport_bytes(packet);
        let (key, header) = ends::<20>(Transport::Tcp, segment, info)?;
        // smoltcp follows extension headers by rules of its own.
        if info.is_v6() && info.transport != 40 {
            return Err(TunnelDrop::Protocol);
        }
        let syn = header[13] & SYN_ACK_RST_FIN == SYN;
        if let Some(id) = self.flows.find(&key) {
            match self.flows.get_mut(id) {
                // Its ports are used again before their time: RFC 9293 section 3.6.1 allows it.
                Some((_, Flow::Tcp(flow))) if syn && flow.lingers() => self.remove(id),
                Some((_, Flow::Tcp(flow))) => {
                    flow.input(packet, now, &mut self.out);
                    return Ok(Arrival::Tcp(id));
                }
                _ => return Ok(self.judge_wanted(id, header)),
            }
        }
        // A wrong checksum must not lead to a connection.
        let pseudo =
            pseudo_header(info.source, info.destination, protocol::TCP, segment.len() as u16);
        if checksum::finish(checksum::sum(segment) + pseudo) != 0 {
            return Err(TunnelDrop::Malformed);
        }
        if !syn {
            if self.answers.take(now) {
                self.reset(packet, &key);
            }
            return Err(TunnelDrop::NoFlow);
        }
        // It waits for its backend as it is; no system sends a large one.
        if packet.len() > MAX_SYN {
            return Err(TunnelDrop::TooLarge);
        }
        let backend = self.serves(&key, packet, now)?;
        self.room(Transport::Tcp, key.remote.ip(), now).inspect_err(|_| {
            self.counters.tcp_refused.add(1);
        })?;
        let id = self.insert(key, Flow::Wanted(Bytes::copy_from_slice(packet)));
        Ok(Arrival::Wanted(id, backend))
    }

    /// A packet of a connection that waits for its backend: only a reset matters.
    fn judge_wanted<'a>(&mut self, id: FlowId, header: &[u8; 20]) -> Arrival<'a> {
        if header[13] & RST == 0 {
            return Arrival::Done;
        }
        self.counters.tcp_aborted.add(1);
        self.remove(id);
        Arrival::Tcp(id)
    }

    fn judge_udp<'a>(
        &mut self,
        packet: &'a [u8],
        info: &PacketInfo,
        now: Instant,
    ) -> Result<Arrival<'a>, TunnelDrop> {
        let segment = info.transport_bytes(packet);
        let (key, header) = ends::<8>(Transport::Udp, segment, info)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let sum = u16::from_be_bytes([header[6], header[7]]);
        let segment =
            segment.get(..length).filter(|s| s.len() >= 8).ok_or(TunnelDrop::Malformed)?;
        let pseudo = pseudo_header(info.source, info.destination, protocol::UDP, length as u16);
        let good = checksum::finish(checksum::sum(segment) + pseudo) == 0;
        // IPv4 may leave the checksum out (RFC 768), IPv6 may not (RFC 8200 section 8.1).
        if !good && (sum != 0 || info.is_v6()) {
            return Err(TunnelDrop::Malformed);
        }
        let payload = &segment[8..];
        if let Some(id) = self.flows.find(&key) {
            if let Some((_, Flow::Udp { used, .. })) = self.flows.get_mut(id) {
                *used = now;
            }
            return Ok(Arrival::Udp(id, None, payload.into()));
        }
        let backend = self.serves(&key, packet, now)?;
        self.room(Transport::Udp, key.remote.ip(), now)?;
        // The agent's end may have any port, so the application's decides.
        let dns = backend.addresses.iter().any(|address| address.port() == DNS);
        let flow = self.udp_flow(&key, dns, Bytes::new(), now);
        let id = self.insert(key, flow);
        Ok(Arrival::Udp(id, Some(backend), payload.into()))
    }

    /// An ICMP error about a packet of ours: a connection under way fails at once, "too big" is
    /// heeded, and an established connection survives all others (RFC 1122 section 4.2.3.9). For
    /// UDP, which has no connection, each error is reported (section 4.1.3.3).
    fn judge_error<'a>(
        &mut self,
        packet: &[u8],
        info: &PacketInfo,
        now: Instant,
    ) -> Result<Arrival<'a>, TunnelDrop> {
        let message = info.transport_bytes(packet);
        let head: &[u8; 8] = message.first_chunk().ok_or(TunnelDrop::Malformed)?;
        let key = quoted(message).ok_or(TunnelDrop::NoFlow)?;
        let too_big = match (info.is_v6(), head[0], head[1]) {
            (false, 3, 4) => Some(usize::from(u16::from_be_bytes([head[6], head[7]]))),
            (true, 2, _) => {
                u32::from_be_bytes([head[4], head[5], head[6], head[7]]).try_into().ok()
            }
            _ => None,
        };
        let dead = matches!((info.is_v6(), head[0]), (false, 3) | (true, 1)) && too_big.is_none();
        let id = self.flows.find(&key).ok_or(TunnelDrop::NoFlow)?;
        match self.flows.get_mut(id) {
            Some((_, Flow::Tcp(flow))) => {
                if let Some(mtu) = too_big {
                    flow.lower_mtu(mtu);
                } else if dead && flow.state() == TcpState::Opening {
                    let far = info.source == key.remote.ip();
                    flow.give_up(if far { Unreachable::FarEnd } else { Unreachable::OnTheWay });
                }
                Ok(Arrival::Tcp(id))
            }
            Some((_, Flow::Udp { .. })) => {
                if let Some(mtu) = too_big {
                    self.paths.lower(key.remote.ip(), mtu, now);
                }
                // Port or protocol unreachable, or forbidden: the host is there and refuses.
                let refused = match head[1] {
                    2 | 3 | 9 | 10 | 13 if !info.is_v6() => Refusal::Refused,
                    1 | 4 if info.is_v6() => Refusal::Refused,
                    _ => Refusal::Unreachable,
                };
                Ok(if dead { Arrival::Refused(id, refused) } else { Arrival::Done })
            }
            _ => Err(TunnelDrop::NoFlow),
        }
    }

    /// The backend for a new flow; answers a packet for none.
    fn serves(
        &mut self,
        key: &FlowKey,
        packet: &[u8],
        now: Instant,
    ) -> Result<Backend, TunnelDrop> {
        match self.services.select(key.transport, key.local) {
            Some(backend) => Ok(backend.clone()),
            None => {
                self.error(IcmpError::AdministrativelyProhibited, packet, key, now);
                Err(TunnelDrop::NoService)
            }
        }
    }

    /// Counts a new flow, if there is room for it.
    ///
    /// A source may have as many flows of a transport as the table has places left: `n` sources
    /// that take all they can leave one part in `n + 1` free. An agent has several inner addresses.
    pub(super) fn room(
        &mut self,
        transport: Transport,
        source: IpAddr,
        now: Instant,
    ) -> Result<(), TunnelDrop> {
        if !self.sources.may_start(source, now) {
            return Err(TunnelDrop::FlowRate);
        }
        let left = match transport {
            Transport::Tcp => self.limits.tcp_flows.saturating_sub(self.tcp),
            Transport::Udp => self.limits.udp_flows.saturating_sub(self.udp),
        };
        let crowded = self.sources.held(source, transport) >= left;
        // A UDP flow that ends makes room for its source, and for another transport only there.
        let hopeless = crowded && transport == Transport::Tcp;
        let full = crowded || self.sources.is_full(source);
        if hopeless || full && !self.displace(source) {
            return Err(TunnelDrop::FlowLimit);
        }
        self.sources.begin(source, transport);
        Ok(())
    }

    pub(super) fn error(&mut self, kind: IcmpError, packet: &[u8], key: &FlowKey, now: Instant) {
        let Ok(info) = PacketInfo::parse(packet) else {
            return;
        };
        let (v4, v6) = match info.destination {
            IpAddr::V4(v4) => (v4, std::net::Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(v6) => (std::net::Ipv4Addr::UNSPECIFIED, v6),
        };
        if icmp::error(kind, packet, v4, v6, &mut self.answer).is_some() && self.answers.take(now) {
            let answer = std::mem::take(&mut self.answer);
            let wrapper = self.wrapper(key);
            self.out.packet(&wrapper, &answer, self.datagram.saturating_sub(wrapper.len()));
            self.answer = answer;
            self.counters.icmp_sent.add(1);
        }
    }
}

/// The ends of a packet with a transport header of `N` bytes, and that header.
fn ends<'a, const N: usize>(
    transport: Transport,
    segment: &'a [u8],
    info: &PacketInfo,
) -> Result<(FlowKey, &'a [u8; N]), TunnelDrop> {
    let header: &[u8; N] = segment.first_chunk().ok_or(TunnelDrop::Malformed)?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (from, to) = (port(0), port(2));
    if from == 0 || to == 0 {
        return Err(TunnelDrop::Malformed);
    }
    let local = SocketAddr::new(info.destination, to);
    let remote = SocketAddr::new(info.source, from);
    Ok((FlowKey { transport, local, remote }, header))
}

/// The flow of the packet that an ICMP error quotes, which this stack sent, whole or in fragments.
fn quoted(message: &[u8]) -> Option<FlowKey> {
    let quote = message.get(8..)?;
    let (source, destination, transport, protocol) = match quote.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = quote.first_chunk()?;
            let at = usize::from(header[0] & 0x0F) * 4;
            let first = u16::from_be_bytes([header[6], header[7]]) & 0x1FFF == 0;
            let address = |at: usize| address_v4(quote, at).map(IpAddr::V4);
            (address(12)?, address(16)?, quote.get(at..).filter(|_| first)?, header[9])
        }
        6 => {
            let header: &[u8; 40] = quote.first_chunk()?;
            let address = |at: usize| address_v6(quote, at).map(IpAddr::V6);
            let (at, protocol) = match (header[6], quote.get(40..).and_then(|b| b.first_chunk())) {
                (FRAGMENT, Some([next, _, 0, 0..=7])) => (48, *next),
                (protocol, _) => (40, protocol),
            };
            (address(8)?, address(24)?, quote.get(at..)?, protocol)
        }
        _ => return None,
    };
    let transport_kind = match protocol {
        protocol::TCP => Transport::Tcp,
        protocol::UDP => Transport::Udp,
        _ => return None,
    };
    let ports: &[u8; 4] = transport.first_chunk()?;
    let local = SocketAddr::new(source, u16::from_be_bytes([ports[0], ports[1]]));
    let remote = SocketAddr::new(destination, u16::from_be_bytes([ports[2], ports[3]]));
    Some(FlowKey { transport: transport_kind, local, remote })
}
