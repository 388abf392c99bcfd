//! All flows of one tunnel: they are found by their packets, and bounded in number.

mod arrivals;
mod departures;
mod udp;

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ztna_packet::{bucket::Bucket, icmp::IcmpError};

use crate::{
    config::{Backend, Transport},
    counters::Counters,
    flow::{FlowId, FlowKey, FlowTable},
    fragments::Reassembler,
    packet_builder::{Outgoing, PacketBuilder},
    paths::{MIN_MTU, Paths},
    services::Services,
    sources::Sources,
    tcp::{self, TcpFlow, TcpState, Terms},
};

/// Flows that have ended in order and wait for late packets (RFC 9293 section 3.6.1); beyond that
/// the oldest is forgotten, and a late packet of it is answered with a harmless reset.
const MAX_LINGERING: usize = 64;
/// The largest packet until the limit of the connection is known.
const FIRST_MTU: usize = 1200;

/// Bounds of a stack.
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP flows at once, including the ones that wait for a backend. One inner source may have as
    /// many as there are places left, so that sources together always leave some to the next one.
    pub tcp_flows: usize,
    /// UDP flows at once, shared in the same way.
    pub udp_flows: usize,
    /// Flows at once of one inner source, TCP and UDP together.
    pub flows_per_source: usize,
    /// New flows a second of one inner source, and as many more in a burst.
    pub starts_per_source: u32,
    /// ICMP errors, resets without a flow and echo answers a second.
    pub answers: u32,
    /// A UDP flow without a packet for so long ends.
    pub udp_idle: Duration,
    /// The same where one end is port 53.
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

/// The result of a packet from the relay.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// Nothing to do.
    Done,
    /// A TCP flow may have bytes, room or an end: look at it, and flush it.
    Tcp(FlowId),
    /// A TCP connection to this backend is asked for: accept or refuse it.
    Wanted(FlowId, Backend),
    /// A UDP payload; with the backend if it is the first of its flow.
    Udp(FlowId, Option<Backend>, Cow<'a, [u8]>),
    /// The other side refuses the packets of a UDP flow, with this reason.
    Refused(FlowId, Refusal),
}

impl Arrival<'_> {
    /// The same arrival with a payload of its own, which outlives the packet.
    fn into_owned(self) -> Arrival<'static> {
        match self {
            Self::Done => Arrival::Done,
            Self::Tcp(id) => Arrival::Tcp(id),
            Self::Wanted(id, backend) => Arrival::Wanted(id, backend),
            Self::Udp(id, backend, payload) => {
                Arrival::Udp(id, backend, Cow::Owned(payload.into_owned()))
            }
            Self::Refused(id, refusal) => Arrival::Refused(id, refusal),
        }
    }
}

/// The reason to refuse a TCP connection or a UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The application refused it: answered with a reset, or with "port unreachable".
    Refused,
    /// The application could not be reached: answered with "host unreachable".
    Unreachable,
}

/// The work left by a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// More packets are to be sent than there was room for.
    pub blocked: bool,
    /// The moment of the next flush, unless an event comes before.
    pub deadline: Option<Instant>,
}

#[derive(Debug)]
enum Flow {
    /// A SYN that waits for its backend.
    Wanted(Bytes),
    Tcp(Box<TcpFlow>),
    Udp {
        used: Instant,
        /// The idle time after which it ends.
        idle: Duration,
        wrapper: Bytes,
    },
}

/// The userspace stack of one tunnel.
#[derive(Debug)]
pub struct Stack {
    limits: Limits,
    counters: Arc<Counters>,
    services: Services,
    /// The wrapper of packets to these ends, for flows connected from here.
    wrappers: HashMap<SocketAddr, Bytes>,
    flows: FlowTable<Flow>,
    tcp: usize,
    udp: usize,
    sources: Sources,
    lingering: VecDeque<FlowId>,
    /// UDP flows that made room for others, and whose sockets are still open.
    displaced: Vec<FlowId>,
    fragments: Reassembler,
    paths: Paths,
    out: PacketBuilder,
    answers: Bucket,
    answer: Vec<u8>,
    start: Instant,
    random: u64,
    datagram: usize,
}

impl Stack {
    /// A stack without services. `seed` is from a good source of randomness: initial sequence
    /// numbers and ports must not be guessable (RFC 9293 section 3.4.1).
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
            displaced: Vec::new(),
            fragments: Reassembler::default(),
            paths: Paths::default(),
            out: PacketBuilder::default(),
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

    /// Sets the largest datagram that the connection carries, in bytes, wrapper included.
    pub fn set_datagram_limit(&mut self, limit: usize) {
        self.datagram = limit.min(usize::from(u16::MAX));
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
        self.sources.end(key.remote.ip(), key.transport);
        self.gauge();
    }

    fn gauge(&self) {
        self.counters.tcp_flows.set(self.tcp as u64);
        self.counters.udp_flows.set(self.udp as u64);
        self.counters.fragment_bytes.set(self.fragments.bytes() as u64);
    }

    /// The backend has taken the connection: answers the SYN. False if the flow is gone.
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

    /// The backend has refused the connection: answers the SYN, and forgets the flow.
    pub fn refuse(&mut self, id: FlowId, refusal: Refusal, now: Instant) {
        let Some((key, Flow::Wanted(syn))) = self.flows.get_mut(id) else {
            return;
        };
        let (key, syn) = (*key, syn.clone());
        self.remove(id);
        self.counters.tcp_refused.add(1);
        match refusal {
            Refusal::Refused => self.reset(&syn, &key),
            Refusal::Unreachable => self.error(IcmpError::HostUnreachable, &syn, &key, now),
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

    /// Ends idle flows; the caller closes the sockets of the returned ones.
    pub fn expire(&mut self, now: Instant) -> Vec<FlowId> {
        self.sources.expire(now);
        self.paths.expire(now);
        self.fragments.expire(now, &self.counters);
        self.gauge();
        let ended = self.expire_udp(now);
        // smoltcp ends a flow in TIME-WAIT after 10 s of its clock, when it is looked at.
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

    /// The number of datagrams that were not taken yet.
    pub fn waiting(&self) -> usize {
        self.out.len()
    }

    /// The ends of an open flow.
    pub fn key(&self, id: FlowId) -> Option<FlowKey> {
        self.flows.key(id)
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
        tcp::reset(packet, key.local, &self.wrapper(key), &mut self.out);
    }

    /// The wrapper of an answer to a packet of no flow.
    fn wrapper(&self, key: &FlowKey) -> Bytes {
        self.wrappers.get(&key.remote).cloned().unwrap_or_default()
    }
}

/// Bytes of buffer each way for one flow more: large ones while flows are few. All together stay
/// below half a gigabyte for any number of flows and for slow readers.
fn buffer(flows: usize) -> usize {
    match flows {
        0..16 => 1 << 20,
        16..64 => 1 << 19,
        64..256 => 1 << 17,
        256..1024 => 1 << 16,
        _ => 1 << 15,
    }
}
