//! All flows of one edge: which packet belongs to which, and how many there may be.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ztna_packet::{
    bucket::Bucket,
    checksum,
    icmp::{self, IcmpError},
    packet::{Fragment, PacketInfo, protocol, source_ok},
};

use crate::{
    config::{Backend, Transport},
    counters::{Counters, EdgeDrop},
    echo,
    flow::{FlowId, FlowKey, FlowTable},
    outlet::{Outgoing, Outlet, pseudo_header},
    services::Services,
    sources::{Denied, Sources},
    tcp::{self, TcpFlow, TcpState, Terms},
};

/// Flows that have ended in order and wait for late packets (RFC 9293 section 3.6.1); of more, the
/// oldest goes, and a late packet of it is answered with a reset that changes nothing.
const MAX_LINGERING: usize = 64;
/// First of the ports that flows are connected from (RFC 6335 section 6).
const FIRST_PORT: u16 = 49_152;
/// Largest packet until the connection's limit is known.
const FIRST_MTU: usize = 1200;

/// Bits of the TCP flags.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const SYN_ACK_RST_FIN: u8 = 0x17;

/// Bounds of a stack.
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP flows at once, those that wait for a backend included.
    pub tcp_flows: usize,
    /// UDP flows at once.
    pub udp_flows: usize,
    /// Flows at once of one inner source.
    pub flows_per_source: usize,
    /// New flows a second of one inner source, and as many more in a burst.
    pub starts_per_source: u32,
    /// ICMP errors, resets to nobody and echo answers a second.
    pub answers: u32,
    /// A UDP flow without a packet for so long ends.
    pub udp_idle: Duration,
    /// The same for port 53.
    pub dns_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_flows: 4096,
            udp_flows: 2048,
            flows_per_source: 1024,
            starts_per_source: 500,
            answers: 200,
            udp_idle: Duration::from_secs(60),
            dns_idle: Duration::from_secs(10),
        }
    }
}

/// What a packet from the relay leads to.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// Nothing more.
    Done,
    /// A TCP flow may have bytes, room or an end: look at it, and flush it.
    Tcp(FlowId),
    /// Somebody wants a TCP connection to this backend: accept or refuse it.
    Wanted(FlowId, Backend),
    /// A UDP payload; with the backend where it is the first of its flow.
    Udp(FlowId, Option<Backend>, &'a [u8]),
}

/// Why a TCP connection is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The application refused it: answered with a reset.
    Refused,
    /// The application could not be reached: answered "host unreachable".
    Unreachable,
}

/// What a flush left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// There are more packets to send than there was room for.
    pub blocked: bool,
    /// Flush again then, unless something happens before.
    pub deadline: Option<Instant>,
}

#[derive(Debug)]
enum Flow {
    /// A SYN that waits for its backend.
    Wanted(Bytes),
    Tcp(Box<TcpFlow>),
    Udp {
        used: Instant,
        wrapper: Bytes,
    },
}

/// The userspace stack of one edge.
#[derive(Debug)]
pub struct Stack {
    limits: Limits,
    counters: Arc<Counters>,
    services: Services,
    /// What packets to these ends are wrapped in; of flows connected from here.
    wrappers: HashMap<SocketAddr, Bytes>,
    flows: FlowTable<Flow>,
    tcp: usize,
    udp: usize,
    sources: Sources,
    lingering: VecDeque<FlowId>,
    out: Outlet,
    answers: Bucket,
    answer: Vec<u8>,
    start: Instant,
    random: u64,
    datagram: usize,
}

impl Stack {
    /// A stack without services. `seed` is from a good source of randomness: what it gives out as
    /// initial sequence numbers and ports must not be guessed (RFC 9293 section 3.4.1).
    pub fn new(limits: Limits, counters: Arc<Counters>, seed: u64, now: Instant) -> Self {
        let starts = limits.starts_per_source;
        Self {
            sources: Sources::new(limits.flows_per_source, starts, starts),
            answers: Bucket::new(limits.answers, limits.answers),
            limits,
            counters,
            services: Services::default(),
            wrappers: HashMap::new(),
            flows: FlowTable::default(),
            tcp: 0,
            udp: 0,
            lingering: VecDeque::new(),
            out: Outlet::default(),
            answer: Vec::new(),
            start: now,
            random: seed,
            datagram: FIRST_MTU,
        }
    }

    /// Replaces the services; flows that are open stay.
    pub fn set_services(&mut self, services: Vec<Backend>) {
        self.services = Services(services);
    }

    /// Says what packets to `destination` are wrapped in.
    pub fn set_wrapper(&mut self, destination: SocketAddr, service: &[u8]) {
        self.wrappers.insert(destination, crate::wrapper(service).into());
    }

    /// Sets the largest datagram that the connection carries, in bytes, wrapper included.
    pub fn set_datagram_limit(&mut self, limit: usize) {
        self.datagram = limit.min(usize::from(u16::MAX));
    }

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

    fn judge<'a>(&mut self, packet: &'a [u8], now: Instant) -> Result<Arrival<'a>, EdgeDrop> {
        let info = PacketInfo::parse(packet).map_err(|_| EdgeDrop::Malformed)?;
        if info.fragment != Fragment::Whole {
            return Err(EdgeDrop::Fragment);
        }
        // Both become addresses that this stack or its answers use.
        source_ok(info.source).or(Err(EdgeDrop::Malformed))?;
        source_ok(info.destination).or(Err(EdgeDrop::Malformed))?;
        let packet = &packet[..info.total_len];
        match info.protocol {
            protocol::TCP => self.judge_tcp(packet, &info, now),
            protocol::UDP => self.judge_udp(packet, &info, now),
            _ if info.is_icmp_error(packet) => self.judge_error(packet, &info),
            _ if echo::is_request(packet, &info) => {
                if !self.services.echoes(info.destination) {
                    return Err(EdgeDrop::NoService);
                }
                if !self.answers.take(now) {
                    return Err(EdgeDrop::EchoRate);
                }
                echo::answer(packet, &info, &mut self.out);
                self.counters.echo_answered.add(1);
                Ok(Arrival::Done)
            }
            _ => Err(EdgeDrop::Protocol),
        }
    }

    fn judge_tcp<'a>(
        &mut self,
        packet: &'a [u8],
        info: &PacketInfo,
        now: Instant,
    ) -> Result<Arrival<'a>, EdgeDrop> {
        let segment = info.transport_bytes(packet);
        let (key, header) = ends::<20>(Transport::Tcp, segment, info)?;
        // smoltcp follows extension headers by rules of its own.
        if info.is_v6() && info.transport != 40 {
            return Err(EdgeDrop::Protocol);
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
        // A checksum that is wrong must not lead to a connection.
        let pseudo =
            pseudo_header(info.source, info.destination, protocol::TCP, segment.len() as u16);
        if checksum::finish(checksum::sum(segment) + pseudo) != 0 {
            return Err(EdgeDrop::Malformed);
        }
        if !syn {
            if self.answers.take(now) {
                self.reset(packet, &key);
            }
            return Err(EdgeDrop::NoFlow);
        }
        let backend = self.serves(&key, packet, now)?;
        self.room(Transport::Tcp, key.remote.ip(), now).inspect_err(|_| {
            self.counters.tcp_refused.add(1);
        })?;
        let id = self.insert(key, Flow::Wanted(Bytes::copy_from_slice(packet)));
        Ok(Arrival::Wanted(id, backend))
    }

    /// A packet of a connection that waits for its backend: only a reset says something new.
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
    ) -> Result<Arrival<'a>, EdgeDrop> {
        let segment = info.transport_bytes(packet);
        let (key, header) = ends::<8>(Transport::Udp, segment, info)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let sum = u16::from_be_bytes([header[6], header[7]]);
        let segment = segment.get(..length).filter(|s| s.len() >= 8).ok_or(EdgeDrop::Malformed)?;
        let pseudo = pseudo_header(info.source, info.destination, protocol::UDP, length as u16);
        let good = checksum::finish(checksum::sum(segment) + pseudo) == 0;
        // IPv4 may leave the checksum out (RFC 768), IPv6 may not (RFC 8200 section 8.1).
        if !good && (sum != 0 || info.is_v6()) {
            return Err(EdgeDrop::Malformed);
        }
        let payload = &segment[8..];
        if let Some(id) = self.flows.find(&key) {
            if let Some((_, Flow::Udp { used, .. })) = self.flows.get_mut(id) {
                *used = now;
            }
            return Ok(Arrival::Udp(id, None, payload));
        }
        let backend = self.serves(&key, packet, now)?;
        self.room(Transport::Udp, key.remote.ip(), now)?;
        let id = self.insert(key, Flow::Udp { used: now, wrapper: Bytes::new() });
        Ok(Arrival::Udp(id, Some(backend), payload))
    }

    /// An ICMP error about a packet of ours: a connection on its way fails at once, "too big" is
    /// heeded, all else a flow that stands survives (RFC 1122 section 4.2.3.9).
    fn judge_error<'a>(
        &mut self,
        packet: &[u8],
        info: &PacketInfo,
    ) -> Result<Arrival<'a>, EdgeDrop> {
        let message = info.transport_bytes(packet);
        let head: &[u8; 8] = message.first_chunk().ok_or(EdgeDrop::Malformed)?;
        let (key, protocol) = quoted(message).ok_or(EdgeDrop::NoFlow)?;
        let too_big = match (info.is_v6(), head[0], head[1]) {
            (false, 3, 4) => Some(usize::from(u16::from_be_bytes([head[6], head[7]]))),
            (true, 2, _) => {
                u32::from_be_bytes([head[4], head[5], head[6], head[7]]).try_into().ok()
            }
            _ => None,
        };
        let dead = matches!((info.is_v6(), head[0]), (false, 3) | (true, 1)) && too_big.is_none();
        let id =
            self.flows.find(&key).filter(|_| protocol == protocol::TCP).ok_or(EdgeDrop::NoFlow)?;
        let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id) else {
            return Err(EdgeDrop::NoFlow);
        };
        if let Some(mtu) = too_big {
            flow.lower_mtu(mtu);
        } else if dead && flow.state() == TcpState::Opening {
            flow.abort();
        }
        Ok(Arrival::Tcp(id))
    }

    /// The backend for a new flow; answers a packet for none.
    fn serves(&mut self, key: &FlowKey, packet: &[u8], now: Instant) -> Result<Backend, EdgeDrop> {
        match self.services.select(key.transport, key.local) {
            Some(backend) => Ok(backend.clone()),
            None => {
                self.error(IcmpError::AdministrativelyProhibited, packet, now);
                Err(EdgeDrop::NoService)
            }
        }
    }

    /// Counts a new flow in, where there is room for it.
    fn room(&mut self, transport: Transport, source: IpAddr, now: Instant) -> Result<(), EdgeDrop> {
        let full = match transport {
            Transport::Tcp => self.tcp >= self.limits.tcp_flows,
            Transport::Udp => self.udp >= self.limits.udp_flows,
        };
        if full {
            return Err(EdgeDrop::FlowLimit);
        }
        self.sources.begin(source, now).map_err(|denied| match denied {
            Denied::Flows => EdgeDrop::FlowLimit,
            Denied::Rate => EdgeDrop::FlowRate,
        })
    }

    fn insert(&mut self, key: FlowKey, flow: Flow) -> FlowId {
        match key.transport {
            Transport::Tcp => {
                self.tcp += 1;
                self.counters.tcp_opened.add(1);
            }
            Transport::Udp => {
                self.udp += 1;
                self.counters.udp_opened.add(1);
            }
        }
        let id = self.flows.insert(key, flow);
        self.gauge();
        id
    }

    /// Forgets a flow, without a word to the other side.
    pub fn remove(&mut self, id: FlowId) {
        let Some((key, _)) = self.flows.remove(id) else {
            return;
        };
        match key.transport {
            Transport::Tcp => self.tcp -= 1,
            Transport::Udp => self.udp -= 1,
        }
        // A flow from here was counted for the end it was opened to.
        self.sources.end(key.remote.ip());
        self.gauge();
    }

    fn gauge(&self) {
        self.counters.tcp_flows.set(self.tcp as u64);
        self.counters.udp_flows.set(self.udp as u64);
    }

    /// The backend has taken the connection: answers the SYN. False if nobody wants it any more.
    pub fn accept(&mut self, id: FlowId, now: Instant) -> bool {
        let buffer = buffer(self.tcp);
        let terms = self.terms(Bytes::new(), buffer);
        let Some((key, entry)) = self.flows.get_mut(id) else {
            return false;
        };
        let Flow::Wanted(syn) = entry else {
            return false;
        };
        let Some(mut flow) = TcpFlow::listen(terms, key.local, now) else {
            return false;
        };
        flow.input(syn, now, &mut self.out);
        *entry = Flow::Tcp(Box::new(flow));
        true
    }

    /// The backend has not taken the connection: tells who asked, and forgets it.
    pub fn refuse(&mut self, id: FlowId, refusal: Refusal, now: Instant) {
        let Some((key, Flow::Wanted(syn))) = self.flows.get_mut(id) else {
            return;
        };
        let (key, syn) = (*key, syn.clone());
        self.remove(id);
        self.counters.tcp_refused.add(1);
        match refusal {
            Refusal::Refused => self.reset(&syn, &key),
            Refusal::Unreachable => self.error(IcmpError::HostUnreachable, &syn, now),
        }
    }

    /// Opens a flow from `source` to `destination`, whose wrapper has been set. `None`: there is no
    /// room for it.
    pub fn open(
        &mut self,
        transport: Transport,
        source: IpAddr,
        destination: SocketAddr,
        now: Instant,
    ) -> Option<FlowId> {
        let wrapper = self.wrappers.get(&destination)?.clone();
        let local = self.free_port(transport, source, destination)?;
        if let Err(reason) = self.room(transport, destination.ip(), now) {
            self.counters.dropped(reason, 1);
            return None;
        }
        let flow = match transport {
            Transport::Udp => Flow::Udp { used: now, wrapper },
            Transport::Tcp => {
                let buffer = buffer(self.tcp);
                let terms = self.terms(wrapper, buffer);
                match TcpFlow::connect(terms, local, destination, now) {
                    Some(flow) => Flow::Tcp(Box::new(flow)),
                    None => {
                        self.sources.end(destination.ip());
                        return None;
                    }
                }
            }
        };
        Some(self.insert(FlowKey { transport, local, remote: destination }, flow))
    }

    /// A port from which no flow to `remote` is open, looked for from a random one on.
    fn free_port(
        &mut self,
        transport: Transport,
        source: IpAddr,
        remote: SocketAddr,
    ) -> Option<SocketAddr> {
        let range = u16::MAX - FIRST_PORT;
        let first = (self.random() % u64::from(range)) as u16;
        (0..range).map(|i| FIRST_PORT + (first + i) % range).find_map(|port| {
            let local = SocketAddr::new(source, port);
            self.flows.find(&FlowKey { transport, local, remote }).is_none().then_some(local)
        })
    }

    /// Lets a relay that has just been reached know whom `source` belongs to: what comes back to
    /// flows that only listen would have no way otherwise.
    pub fn announce(&mut self, source: IpAddr, destination: SocketAddr) {
        if let Some(wrapper) = self.wrappers.get(&destination) {
            self.out.echo_request(wrapper, source, destination.ip());
        }
    }

    /// The TCP flow of this name.
    pub fn tcp(&mut self, id: FlowId) -> Option<&mut TcpFlow> {
        match self.flows.get_mut(id)? {
            (_, Flow::Tcp(flow)) => Some(flow),
            _ => None,
        }
    }

    /// Writes up to `budget` packets of a TCP flow.
    pub fn flush(&mut self, id: FlowId, budget: usize, now: Instant) -> Flush {
        let datagram = self.datagram;
        let Some((_, Flow::Tcp(flow))) = self.flows.get_mut(id) else {
            return Flush { blocked: false, deadline: None };
        };
        let mtu = flow.mtu_of(datagram);
        let blocked = flow.output(mtu, budget, now, &mut self.out);
        let deadline = if blocked { None } else { flow.deadline(now) };
        Flush { blocked, deadline }
    }

    /// The caller is done with a TCP flow: forgets it, or keeps it a while for late packets.
    pub fn release(&mut self, id: FlowId) {
        let Some(flow) = self.tcp(id) else {
            return self.remove(id);
        };
        match flow.state() {
            TcpState::Done => {
                self.lingering.push_back(id);
                if self.lingering.len() > MAX_LINGERING
                    && let Some(oldest) = self.lingering.pop_front()
                {
                    self.remove(oldest);
                }
            }
            _ => {
                self.counters.tcp_aborted.add(1);
                self.remove(id);
            }
        }
    }

    /// Writes a UDP packet of a flow. False, and counted, if it cannot be sent.
    pub fn send_udp(&mut self, id: FlowId, payload: &[u8], now: Instant) -> bool {
        let datagram = self.datagram;
        let Some((key, Flow::Udp { used, wrapper })) = self.flows.get_mut(id) else {
            return false;
        };
        *used = now;
        let mtu = datagram.saturating_sub(wrapper.len());
        let sent = self.out.udp(wrapper, key.local, key.remote, payload, mtu);
        if !sent {
            self.counters.dropped(EdgeDrop::TooLarge, 1);
        }
        sent
    }

    /// No backend takes a UDP flow's packets: says so, and forgets it.
    pub fn refuse_udp(&mut self, id: FlowId, now: Instant) {
        let Some((key, Flow::Udp { .. })) = self.flows.get_mut(id) else {
            return;
        };
        let mut lost = Outlet::default();
        lost.udp(&[], key.remote, key.local, &[], usize::MAX);
        self.remove(id);
        let lost = lost.take().next();
        if let Some(lost) = lost {
            self.error(IcmpError::PortUnreachable, lost.packet(), now);
        }
    }

    /// Ends what has been idle too long; the caller closes the sockets of the flows returned.
    pub fn expire(&mut self, now: Instant) -> Vec<FlowId> {
        self.sources.expire(now);
        let limits = &self.limits;
        let idle = |key: &FlowKey, used: &Instant| {
            let dns = key.local.port() == 53 || key.remote.port() == 53;
            let limit = if dns { limits.dns_idle } else { limits.udp_idle };
            now.saturating_duration_since(*used) >= limit
        };
        let ended: Vec<FlowId> = self
            .flows
            .iter()
            .filter(|(_, key, flow)| matches!(flow, Flow::Udp { used, .. } if idle(key, used)))
            .map(|(id, ..)| id)
            .collect();
        for id in &ended {
            self.remove(*id);
        }
        // smoltcp ends a flow in TIME-WAIT after 10 s, when it is looked at.
        let lingering = std::mem::take(&mut self.lingering);
        for id in lingering {
            self.flush(id, 4, now);
            match self.tcp(id).map(|flow| flow.lingers()) {
                Some(true) => self.lingering.push_back(id),
                _ => self.remove(id),
            }
        }
        ended
    }

    /// Takes the datagrams written, oldest first.
    pub fn take(&mut self) -> impl Iterator<Item = Outgoing> + '_ {
        self.out.take()
    }

    /// Datagrams written and not yet taken.
    pub fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Whether this flow is open.
    pub fn contains(&self, id: FlowId) -> bool {
        self.flows.contains(id)
    }

    /// Flows open.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether no flow is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn terms(&mut self, wrapper: Bytes, buffer: usize) -> Terms {
        let mtu = self.datagram.saturating_sub(wrapper.len()).max(MIN_MTU);
        Terms { start: self.start, seed: self.random(), wrapper, mtu, buffer }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn reset(&mut self, packet: &[u8], key: &FlowKey) {
        let wrapper = self.wrappers.get(&key.remote).cloned().unwrap_or_default();
        tcp::reset(packet, key.local, &wrapper, &mut self.out);
    }

    fn error(&mut self, kind: IcmpError, packet: &[u8], now: Instant) {
        let Ok(info) = PacketInfo::parse(packet) else {
            return;
        };
        let (v4, v6) = match info.destination {
            IpAddr::V4(v4) => (v4, std::net::Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(v6) => (std::net::Ipv4Addr::UNSPECIFIED, v6),
        };
        if icmp::error(kind, packet, v4, v6, &mut self.answer).is_some() && self.answers.take(now) {
            let answer = std::mem::take(&mut self.answer);
            self.out.copy(&[], &answer);
            self.answer = answer;
            self.counters.icmp_sent.add(1);
        }
    }
}

/// The least that a packet may have to fit into; connections always carry more.
pub(crate) const MIN_MTU: usize = 576;

/// Bytes of buffer each way for one flow more: large ones while flows are few, so that all together
/// stay below half a gigabyte however many there are and however slow their readers.
fn buffer(flows: usize) -> usize {
    match flows {
        0..16 => 1 << 20,
        16..64 => 1 << 19,
        64..256 => 1 << 17,
        256..1024 => 1 << 16,
        _ => 1 << 15,
    }
}

/// The ends of a packet with a transport header of `N` bytes, and that header.
fn ends<'a, const N: usize>(
    transport: Transport,
    segment: &'a [u8],
    info: &PacketInfo,
) -> Result<(FlowKey, &'a [u8; N]), EdgeDrop> {
    let header: &[u8; N] = segment.first_chunk().ok_or(EdgeDrop::Malformed)?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (from, to) = (port(0), port(2));
    if from == 0 || to == 0 {
        return Err(EdgeDrop::Malformed);
    }
    let local = SocketAddr::new(info.destination, to);
    let remote = SocketAddr::new(info.source, from);
    Ok((FlowKey { transport, local, remote }, header))
}

/// The flow of the packet that an ICMP error quotes, which this stack sent, and its protocol.
fn quoted(message: &[u8]) -> Option<(FlowKey, u8)> {
    let quote = message.get(8..)?;
    let (source, destination, transport, protocol) = match quote.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = quote.first_chunk()?;
            let at = usize::from(header[0] & 0x0F) * 4;
            let address = |at: usize| ztna_packet::packet::address_v4(quote, at).map(IpAddr::V4);
            (address(12)?, address(16)?, quote.get(at..)?, header[9])
        }
        6 => {
            let header: &[u8; 40] = quote.first_chunk()?;
            let address = |at: usize| ztna_packet::packet::address_v6(quote, at).map(IpAddr::V6);
            (address(8)?, address(24)?, quote.get(40..)?, header[6])
        }
        _ => return None,
    };
    let ports: &[u8; 4] = transport.first_chunk()?;
    let local = SocketAddr::new(source, u16::from_be_bytes([ports[0], ports[1]]));
    let remote = SocketAddr::new(destination, u16::from_be_bytes([ports[2], ports[3]]));
    Some((FlowKey { transport: Transport::Tcp, local, remote }, protocol))
}
