//! The agent's side: what connects to local ports becomes flows to services.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashSet;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Notify,
    task::coop::consume_budget,
};
use ztna_edge::{Arrival, EdgeDrop, FlowId, Forward, Transport};

use super::{
    carry::carry,
    user::{UdpFlow, User},
};
use crate::error::EngineError;

/// Pause after the system could not give a connection, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// The local ports of an agent.
#[derive(Debug)]
pub(super) struct Forwards {
    pub(super) user: Rc<User>,
    sources: (Ipv4Addr, Ipv6Addr),
    destinations: Vec<(Bytes, SocketAddr)>,
    acknowledged: RefCell<FxHashSet<Bytes>>,
    /// The UDP ports, their services, and whether the system refuses what comes for them.
    ports: RefCell<Vec<(Rc<UdpSocket>, Bytes, bool)>>,
    /// The flow of each peer of each UDP port.
    peers: RefCell<HashMap<(usize, SocketAddr), FlowId>>,
}

enum Bound {
    Tcp(TcpListener),
    Udp(Rc<UdpSocket>),
}

impl Forwards {
    /// Binds all ports, or none; returns their addresses.
    pub(super) fn open(
        user: Rc<User>,
        forwards: Vec<Forward>,
        sources: (Ipv4Addr, Ipv6Addr),
    ) -> Result<(Rc<Self>, Vec<SocketAddr>), EngineError> {
        let destinations = forwards.iter().map(|f| (f.service.clone(), f.destination)).collect();
        let this = Rc::new(Self {
            user,
            sources,
            destinations,
            acknowledged: RefCell::default(),
            ports: RefCell::default(),
            peers: RefCell::default(),
        });
        let mut bound = Vec::new();
        let mut addresses = Vec::new();
        for forward in &forwards {
            let named = |e| EngineError(format!("{}: {e}", forward.bind));
            let (socket, address) = bind(forward).map_err(named)?;
            bound.push(socket);
            addresses.push(address);
        }
        for (index, (forward, socket)) in forwards.into_iter().zip(bound).enumerate() {
            let mut stack = this.user.stack.borrow_mut();
            stack.set_wrapper(forward.destination, &forward.service);
            drop(stack);
            let run = this.clone();
            match socket {
                Bound::Tcp(listener) => {
                    this.user.spawn(async move { run.accept(&forward, &listener).await })
                }
                Bound::Udp(socket) => {
                    let port = (socket.clone(), forward.service.clone(), false);
                    this.ports.borrow_mut().push(port);
                    this.user.spawn(async move { run.read(index, &forward, &socket).await })
                }
            };
        }
        this.refuse_or_take();
        Ok((this, addresses))
    }

    pub(super) fn set_services(&self, services: Vec<Bytes>) {
        *self.acknowledged.borrow_mut() = services.into_iter().collect();
        self.announce();
    }

    /// Lets the system refuse what comes for UDP ports whose service cannot be reached, and take
    /// what comes for the others: before anybody is told which they are.
    pub(super) fn refuse_or_take(&self) {
        for (socket, service, refusing) in &mut *self.ports.borrow_mut() {
            if self.closed(service).is_some() != *refusing {
                *refusing = !*refusing;
                refuse(socket, *refusing);
            }
        }
    }

    /// Makes the inner addresses known to the relay, for flows that wait for the other side.
    pub(super) fn announce(&self) {
        self.refuse_or_take();
        let mut known = FxHashSet::default();
        for (service, destination) in &self.destinations {
            if self.closed(service).is_none() && known.insert((service, destination.ip())) {
                let source = self.source(*destination);
                self.user.stack.borrow_mut().announce(source, *destination);
            }
        }
        self.user.send_out();
    }

    pub(super) fn receive<'a>(&self, datagrams: impl Iterator<Item = &'a Bytes>) {
        let user = &self.user;
        user.receive(datagrams, |arrival| {
            let Arrival::Udp(id, _, payload) = arrival else {
                return;
            };
            if let Some(UdpFlow::Forward { socket, peer, .. }) = user.udp.borrow().get(&id)
                && socket2::SockRef::from(&**socket).send_to(&payload, &(*peer).into()).is_err()
            {
                user.counters.dropped(EdgeDrop::LocalFull, 1);
            }
        });
    }

    /// Why traffic to this service cannot go out now, if it cannot.
    fn closed(&self, service: &Bytes) -> Option<EdgeDrop> {
        if self.user.link.conn().is_none() {
            Some(EdgeDrop::Detached)
        } else if !self.acknowledged.borrow().contains(service) {
            Some(EdgeDrop::NotAcknowledged)
        } else {
            None
        }
    }

    fn source(&self, destination: SocketAddr) -> IpAddr {
        match destination {
            SocketAddr::V4(_) => self.sources.0.into(),
            SocketAddr::V6(_) => self.sources.1.into(),
        }
    }

    async fn accept(&self, forward: &Forward, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.begin(forward, stream),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Opens a flow for a connection, or refuses it at once.
    fn begin(&self, forward: &Forward, stream: TcpStream) {
        let user = &self.user;
        let opened = match self.closed(&forward.service) {
            Some(reason) => {
                user.counters.dropped(reason, 1);
                None
            }
            None => {
                user.learn_limit();
                let source = self.source(forward.destination);
                let now = Instant::now();
                user.stack.borrow_mut().open(Transport::Tcp, source, forward.destination, now)
            }
        };
        match opened {
            Some(id) => {
                let carrying = user.carry(id, None);
                user.spawn(carry(carrying, stream));
            }
            None => {
                user.counters.tcp_refused.add(1);
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        }
    }

    async fn read(&self, index: usize, forward: &Forward, socket: &Rc<UdpSocket>) {
        let room = Rc::new(Notify::new());
        loop {
            consume_budget().await;
            let _ = socket.readable().await;
            if self.closed(&forward.service).is_none() {
                self.user.link.has_room(&room).await;
            }
            let buffer = &mut *self.user.buffer.borrow_mut();
            let Ok((len, peer)) = socket.try_recv_from(buffer) else {
                // Nothing there, or an ICMP error about an answer: its peer is gone.
                continue;
            };
            if let Some(reason) = self.closed(&forward.service) {
                self.user.counters.dropped(reason, 1);
                continue;
            }
            let now = Instant::now();
            if let Some(id) = self.udp_flow(index, forward, socket, peer, now) {
                self.user.stack.borrow_mut().send_udp(id, &buffer[..len], now);
                self.user.send_out();
            }
        }
    }

    /// The flow of this peer, which is opened where there is none.
    fn udp_flow(
        &self,
        index: usize,
        forward: &Forward,
        socket: &Rc<UdpSocket>,
        peer: SocketAddr,
        now: Instant,
    ) -> Option<FlowId> {
        let user = &self.user;
        let mut peers = self.peers.borrow_mut();
        if let Some(id) = peers.get(&(index, peer)).copied()
            && user.stack.borrow().contains(id)
        {
            return Some(id);
        }
        // Flows that have ended are gone from the one and not yet from the other.
        let open = user.udp.borrow().len();
        if peers.len() > 2 * open + 16 {
            peers.retain(|_, id| user.stack.borrow().contains(*id));
        }
        let source = self.source(forward.destination);
        let opened = user.stack.borrow_mut().open(Transport::Udp, source, forward.destination, now);
        let id = opened?;
        user.add_udp(id, UdpFlow::Forward { socket: socket.clone(), peer });
        peers.insert((index, peer), id);
        Some(id)
    }
}

/// Lets the system refuse what comes for a port (ICMP "port unreachable"), or take it again: a
/// socket that is connected hears its peer alone, and the peer of this one is itself.
fn refuse(socket: &UdpSocket, refusing: bool) {
    let socket = socket2::SockRef::from(socket);
    if !refusing {
        let _ = rustix::net::connect_unspec(&*socket);
    } else if let Some(mut own) = socket.local_addr().ok().and_then(|own| own.as_socket()) {
        match own.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => own.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => own.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        // Where that fails, what comes is dropped and counted.
        let _ = socket.connect(&own.into());
    }
}

fn bind(forward: &Forward) -> io::Result<(Bound, SocketAddr)> {
    use socket2::{Domain, Protocol, Socket, Type};
    let domain = Domain::for_address(forward.bind);
    match forward.transport {
        Transport::Tcp => {
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&forward.bind.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            let listener = TcpListener::from_std(socket.into())?;
            let address = listener.local_addr()?;
            Ok((Bound::Tcp(listener), address))
        }
        Transport::Udp => {
            let open = || Socket::new(domain, Type::DGRAM, Some(Protocol::UDP));
            let mut socket = open()?;
            socket.set_reuse_address(forward.bind.port() == 0)?;
            socket.bind(&forward.bind.into())?;
            if forward.bind.port() == 0 {
                // A port that the system chose is lost when a socket ends its connection: bind it
                // by its number, before the first socket lets go of it.
                let again = open()?;
                again.set_reuse_address(true)?;
                again.bind(&socket.local_addr()?)?;
                again.set_reuse_address(false)?;
                socket = again;
            }
            socket.set_nonblocking(true)?;
            let socket = UdpSocket::from_std(socket.into())?;
            let address = socket.local_addr()?;
            Ok((Bound::Udp(Rc::new(socket)), address))
        }
    }
}
