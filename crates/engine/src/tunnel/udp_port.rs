//! A local UDP port of an agent.
//!
//! While its service cannot be reached the system refuses what comes for the port (ICMP "port
//! unreachable"): a socket that is connected hears its peer alone, and the peer of this one is itself.
//! To take packets again, another socket is bound in its place: one that ends its connection would
//! go on hearing only its own address where that is IPv6.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, sync::Notify};
use ztna_netstack::{FlowId, Forward};

use super::pktinfo::{self, Local};

/// Bytes asked of the system for packets that wait; it may give less.
const BUFFER: usize = 1 << 20;
/// The time for which a port refuses after its service has refused a packet whose sender cannot be
/// answered alone. A resolver asks again before it is over.
const HOLD: Duration = Duration::from_secs(6);
/// A peer uses a port for so long after its last packet from there; the port is not closed to it
/// meanwhile.
const IN_USE: Duration = Duration::from_secs(10);

/// A peer of the port, and the address at which it knows the port.
pub(super) type Peer = (SocketAddr, Option<Local>);

/// A local UDP port.
#[derive(Debug)]
pub(super) struct UdpPort {
    pub(super) forward: Forward,
    pub(super) address: SocketAddr,
    socket: RefCell<Rc<UdpSocket>>,
    refuses: Cell<bool>,
    /// Another socket is in its place.
    replaced: Notify,
    /// The flow of each peer.
    peers: RefCell<HashMap<Peer, FlowId>>,
    /// The moment of the last packet back.
    answered: Cell<Option<Instant>>,
    held: Cell<Option<Instant>>,
}

impl UdpPort {
    pub(super) fn bind(forward: Forward) -> io::Result<Self> {
        let socket = bound(forward.bind, None)?;
        let address = socket.local_addr()?;
        Ok(Self {
            forward,
            address,
            socket: RefCell::new(Rc::new(socket)),
            refuses: Cell::default(),
            replaced: Notify::new(),
            peers: RefCell::default(),
            answered: Cell::default(),
            held: Cell::default(),
        })
    }

    /// Lets the system refuse packets, or take them again.
    pub(super) fn refuse(&self, refuses: bool) {
        if self.refuses.replace(refuses) == refuses {
            return;
        }
        let socket = &mut *self.socket.borrow_mut();
        if refuses {
            // If that fails, packets are dropped and counted.
            let _ = SockRef::from(&**socket).connect(&reachable(self.address).into());
        } else if let Ok(another) = bound(self.address, Some(socket)) {
            *socket = Rc::new(another);
            self.replaced.notify_one();
        } else {
            let _ = rustix::net::connect_unspec(&**socket);
        }
    }

    /// Waits until the socket is readable.
    pub(super) async fn readable(&self) {
        loop {
            let socket = self.socket.borrow().clone();
            tokio::select! {
                _ = socket.readable() => return,
                () = self.replaced.notified() => {}
            }
        }
    }

    /// Reads one packet, with its sender.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
        let socket = self.socket.borrow();
        let read = || pktinfo::receive(&**socket, buffer);
        let (len, peer, local) = socket.try_io(Interest::READABLE, read)?;
        Ok((len, (peer, local)))
    }

    /// Sends an answer from the address that was asked.
    pub(super) fn answer(&self, payload: &[u8], (peer, local): Peer) -> io::Result<()> {
        self.answered.set(Some(Instant::now()));
        self.held.set(None);
        pktinfo::send(&**self.socket.borrow(), payload, peer, local)
    }

    /// The flow of a peer, made by `open` if it has none that `is_open`.
    pub(super) fn flow(
        &self,
        peer: Peer,
        is_open: impl Fn(FlowId) -> bool,
        open: impl FnOnce() -> Option<FlowId>,
    ) -> Option<FlowId> {
        let peers = &mut *self.peers.borrow_mut();
        let known = peers.get(&peer).copied().filter(|id| is_open(*id));
        if known.is_some() {
            return known;
        }
        // Flows end without a word here: look for them before the memory for them grows.
        if peers.len() == peers.capacity() {
            peers.retain(|_, id| is_open(*id));
        }
        let id = open()?;
        peers.insert(peer, id);
        Some(id)
    }

    /// Whether the port refuses for a while since its service has refused a packet.
    pub(super) fn is_held(&self) -> bool {
        self.held.get().is_some_and(|until| Instant::now() < until)
    }

    /// Makes it refuse, unless others use it; returns for how long.
    pub(super) fn hold(&self) -> Option<Duration> {
        let in_use = self.answered.get().is_some_and(|answered| answered.elapsed() < IN_USE);
        if in_use || self.is_held() {
            return None;
        }
        self.held.set(Some(Instant::now() + HOLD));
        Some(HOLD)
    }
}

/// An address that a socket bound to this one has, and so can be connected to.
fn reachable(mut bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => bound.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => bound.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    bound
}

/// A socket bound to this address, in the place of `before` where there is one.
fn bound(address: SocketAddr, before: Option<&UdpSocket>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(before) = before {
        socket.set_reuse_address(true)?;
        SockRef::from(before).set_reuse_address(true)?;
    }
    // With it set, others could take the port as well.
    let result = socket.bind(&address.into()).and_then(|()| socket.set_reuse_address(false));
    if let Some(before) = before {
        SockRef::from(before).set_reuse_address(false)?;
    }
    result?;
    pktinfo::enable(&socket, address)?;
    let _ = socket.set_recv_buffer_size(BUFFER);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}
