//! One TCP flow: a smoltcp socket with an interface of its own.
//!
//! With an interface for each flow, our own hash table finds the flow of a packet; smoltcp would
//! search its sockets one after the other.

use std::{
    net::SocketAddr,
    time::{Duration, Instant as Clock},
};

use bytes::Bytes;
use smoltcp::{
    iface::{Config, Interface, PollResult, SocketHandle, SocketSet},
    socket::tcp,
    time::Instant,
    wire::{HardwareAddress, IpCidr, IpListenEndpoint},
};

use crate::{
    device::{Pipe, instant, shrunk, stretched},
    packet_builder::PacketBuilder,
    paths::MIN_MTU,
};

/// Silence of the other side, in answer to data or keep-alives, that ends a flow. It is longer than
/// a relay's restart or a change of network.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How long the handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// Interval of the keep-alives of a silent flow.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// The longest time between two looks at a flow.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The longest life of a flow whose other side is silent.
pub const LONGEST_IDLE: Duration =
    Duration::from_secs(KEEP_ALIVE.as_secs() + TIMEOUT.as_secs() + MAX_WAIT.as_secs());
/// The MTU of every path: a QUIC packet of 1200 bytes without its headers and a service's wrapper.
const BASE_MTU: usize = 1100;
/// Vain sends after which a larger packet may be too large for the path.
const TRIES: u32 = 3;

/// A TCP flow. It moves no bytes by itself: see [`TcpFlow::send`] and [`TcpFlow::receive`].
pub struct TcpFlow {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    start: Clock,
    local: SocketAddr,
    seed: u64,
    wrapper: Bytes,
    mtu: usize,
    connected: bool,
    finished: bool,
    /// Lowered by "packet too big" (RFC 1191) and by [`TcpFlow::suspect`], for this flow only.
    path_mtu: usize,
    /// The first sequence number of the last packet, and how often it was sent as a large one.
    tried: (u32, u32),
    unreachable: Option<Unreachable>,
}

/// The sender of the news that the other side of a flow cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// The far end, without anything behind it.
    FarEnd,
    /// A host on the way to it.
    OnTheWay,
}

/// The stage of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// The handshake is under way.
    Opening,
    /// Bytes may flow at least one way.
    Open,
    /// Both directions have ended in order. Late packets may still be answered.
    Done,
    /// Reset by the other side, timed out, or given up here.
    Aborted,
}

/// The parameters of a new flow.
pub(crate) struct Terms {
    pub(crate) start: Clock,
    pub(crate) seed: u64,
    pub(crate) wrapper: Bytes,
    pub(crate) mtu: usize,
    pub(crate) buffer: usize,
}

impl std::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpFlow").field("local", &self.local).finish_non_exhaustive()
    }
}

impl TcpFlow {
    /// A flow that waits for a SYN to `local`.
    pub(crate) fn listen(terms: Terms, local: SocketAddr, now: Clock) -> Option<Self> {
        let mut flow = Self::new(terms, local, now);
        let endpoint = IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() };
        flow.socket().listen(endpoint).ok()?;
        Some(flow)
    }

    /// A flow that connects from `local` to `remote`.
    pub(crate) fn connect(
        terms: Terms,
        local: SocketAddr,
        remote: SocketAddr,
        now: Clock,
    ) -> Option<Self> {
        let mut flow = Self::new(terms, local, now);
        let socket = flow.sockets.get_mut::<tcp::Socket<'_>>(flow.handle);
        let remote = (smoltcp::wire::IpAddress::from(remote.ip()), remote.port());
        let local = (smoltcp::wire::IpAddress::from(local.ip()), local.port());
        socket.connect(flow.interface.context(), remote, local).ok()?;
        Some(flow)
    }

    fn new(terms: Terms, local: SocketAddr, now: Clock) -> Self {
        let buffer = || tcp::SocketBuffer::new(vec![0; terms.buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_timeout(Some(stretched(HANDSHAKE)));
        // A batch of packets is received before an acknowledgment is looked for: that is delay
        // enough. The sender's window must not wait for more.
        socket.set_ack_delay(None);
        // An application's socket has done its own waiting before these writes.
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let mtu = terms.mtu;
        let at = instant(terms.start, now);
        Self {
            interface: interface(local, mtu, terms.seed, at),
            sockets,
            handle,
            start: terms.start,
            local,
            seed: terms.seed,
            wrapper: terms.wrapper,
            mtu,
            connected: false,
            finished: false,
            path_mtu: usize::MAX,
            tried: (0, 0),
            unreachable: None,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn look(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// Takes in one packet of this flow.
    pub(crate) fn input(&mut self, packet: &[u8], now: Clock, out: &mut PacketBuilder) {
        let at = instant(self.start, now);
        let mut pipe =
            Pipe { incoming: Some(packet), out, wrapper: &self.wrapper, mtu: self.mtu, budget: 0 };
        self.interface.poll_ingress_single(at, &mut pipe, &mut self.sockets);
        self.settle();
    }

    /// Writes up to `budget` packets; true if more are left.
    pub(crate) fn output(
        &mut self,
        mtu: usize,
        budget: usize,
        now: Clock,
        out: &mut PacketBuilder,
    ) -> bool {
        let at = instant(self.start, now);
        let mtu = mtu.min(self.path_mtu);
        if mtu != self.mtu {
            // An interface gets its MTU when it is made, and holds no other state of the flow.
            self.mtu = mtu;
            self.interface = interface(self.local, mtu, self.seed, at);
        }
        let before = out.len();
        let mut pipe = Pipe { incoming: None, out, wrapper: &self.wrapper, mtu, budget };
        // One packet at a time, and none without room for it: smoltcp takes a fast retransmission
        // that finds the device exhausted for sent, and sets no timer.
        while pipe.budget > 0 {
            if self.interface.poll_egress(at, &mut pipe, &mut self.sockets) == PollResult::None {
                break;
            }
        }
        let exhausted = pipe.budget == 0;
        if let Some(first) = out.written().get(before) {
            self.suspect(first.packet());
        }
        self.settle();
        exhausted && self.interface.poll_at(at, &self.sockets).is_some_and(|due| due <= at)
    }

    /// Makes packets smaller when a large one has been sent over and over: the path may have become
    /// narrower silently (RFC 4821 section 7.7).
    fn suspect(&mut self, packet: &[u8]) {
        let transport = if self.local.is_ipv4() { 20 } else { 40 };
        let sequence = packet.get(transport + 4..transport + 8).and_then(|s| s.try_into().ok());
        let Some(sequence) = sequence.map(u32::from_be_bytes) else {
            return;
        };
        let tries = if sequence == self.tried.0 { self.tried.1 } else { 0 };
        self.tried = (sequence, tries + u32::from(packet.len() > BASE_MTU));
        if self.tried.1 == TRIES {
            self.lower_mtu(BASE_MTU);
        }
    }

    /// The moment of the next [`TcpFlow::output`], unless an event comes before.
    pub(crate) fn deadline(&mut self, now: Clock) -> Option<Clock> {
        let at = instant(self.start, now);
        let due = self.interface.poll_at(at, &self.sockets)?;
        Some(now + if due > at { shrunk(due - at).min(MAX_WAIT) } else { Duration::ZERO })
    }

    /// Notices the end of the handshake, and that of the stream.
    fn settle(&mut self) {
        use tcp::State;
        let state = self.look().state();
        if !self.connected
            && !matches!(state, State::Listen | State::SynSent | State::SynReceived | State::Closed)
        {
            self.connected = true;
            let socket = self.socket();
            socket.set_timeout(Some(stretched(TIMEOUT)));
            socket.set_keep_alive(Some(stretched(KEEP_ALIVE)));
        }
        // Both FINs are in before the state is one of these; without them, closed means reset.
        if matches!(state, State::TimeWait | State::LastAck | State::Closing) {
            self.finished = true;
        }
    }

    /// How far the flow has come.
    pub fn state(&self) -> TcpState {
        use tcp::State;
        match self.look().state() {
            // A reset during the handshake takes smoltcp back to where it waits for a SYN, for ever.
            State::Listen => TcpState::Aborted,
            State::SynSent | State::SynReceived => TcpState::Opening,
            State::TimeWait if self.look().recv_queue() == 0 => TcpState::Done,
            State::Closed if self.finished && self.look().recv_queue() == 0 => TcpState::Done,
            State::Closed if !self.finished => TcpState::Aborted,
            _ => TcpState::Open,
        }
    }

    /// Whether the incoming stream is finished and was taken completely.
    pub fn at_end(&self) -> bool {
        self.connected && !self.look().may_recv() && self.look().recv_queue() == 0
    }

    /// Bytes that wait to be received.
    pub fn readable(&self) -> usize {
        self.look().recv_queue()
    }

    /// Room for bytes to send.
    pub fn writable(&self) -> usize {
        let socket = self.look();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    /// Bytes sent and not yet acknowledged, or waiting to be sent.
    pub fn unsent(&self) -> usize {
        self.look().send_queue()
    }

    /// Gives received bytes to `take`, which returns the number it took.
    pub fn receive(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let taken = self.socket().recv(|bytes| {
            let n = take(bytes).min(bytes.len());
            (n, n)
        });
        taken.unwrap_or(0)
    }

    /// Lets `fill` write bytes to send, and return their number.
    pub fn send(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let sent = self.socket().send(|room| {
            let n = fill(room).min(room.len());
            (n, n)
        });
        sent.unwrap_or(0)
    }

    /// Ends the outgoing stream after the bytes given so far; bytes of the other side are still
    /// taken.
    pub fn finish(&mut self) {
        self.socket().close();
    }

    /// Ends the flow at once, with a reset for the other side.
    pub fn abort(&mut self) {
        self.finished = false;
        self.socket().abort();
    }

    /// Ends a flow on its way, since the other side cannot be reached.
    pub(crate) fn give_up(&mut self, said: Unreachable) {
        self.unreachable = Some(said);
        self.abort();
    }

    /// The sender of the news that the other side cannot be reached, if that ended the flow.
    pub fn unreachable(&self) -> Option<Unreachable> {
        self.unreachable
    }

    /// Whether the handshake was completed.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// The largest packet of this flow where datagrams are at most `datagram` bytes.
    pub(crate) fn mtu_of(&self, datagram: usize) -> usize {
        datagram.saturating_sub(self.wrapper.len()).max(MIN_MTU)
    }

    /// Whether the flow still answers late packets.
    pub(crate) fn lingers(&self) -> bool {
        self.look().state() == tcp::State::TimeWait
    }

    /// Notes that a packet larger than `mtu` does not pass (RFC 1191); never below what IPv4
    /// guarantees.
    pub(crate) fn lower_mtu(&mut self, mtu: usize) {
        self.path_mtu = self.path_mtu.min(mtu.max(MIN_MTU));
    }
}

fn interface(local: SocketAddr, mtu: usize, seed: u64, at: Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut out = PacketBuilder::default();
    let mut pipe = Pipe { incoming: None, out: &mut out, wrapper: &[], mtu, budget: 0 };
    let mut interface = Interface::new(config, &mut pipe, at);
    interface.update_ip_addrs(|addresses| {
        // With a prefix of length 0 every host is a neighbour, and no route is needed. The list has
        // room for one.
        let _ = addresses.push(IpCidr::new(local.ip().into(), 0));
    });
    interface
}

/// Writes the reset that answers a TCP packet of no flow (RFC 9293 section 3.10.7.1).
pub(crate) fn reset(packet: &[u8], local: SocketAddr, wrapper: &[u8], out: &mut PacketBuilder) {
    let at = Instant::from_micros(0);
    let mut interface = interface(local, MIN_MTU, 0, at);
    let mut nobody = SocketSet::new(Vec::new());
    let mut pipe = Pipe { incoming: Some(packet), out, wrapper, mtu: MIN_MTU, budget: 0 };
    interface.poll_ingress_single(at, &mut pipe, &mut nobody);
}
