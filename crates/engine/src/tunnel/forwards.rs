//! The agent's side: connections to local ports become flows to services.

mod errors;
mod udp;

use std::{
    cell::{Cell, RefCell},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashSet;
use tokio::net::{TcpListener, TcpStream};
use ztna_netstack::{Arrival, Forward, Transport, TunnelDrop};

use self::errors::Errors;
use super::{
    netstack::Netstack,
    notices::{Notices, Told},
    ports::TcpPort,
    reach::{Reach, Way},
    splice::{self, Refused},
    udp_port::UdpPort,
};
use crate::{
    boundary::event::{Notice, Subject},
    error::EngineError,
};

/// Pause after the system could not give a connection, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The local ports of an agent.
#[derive(Debug)]
pub(super) struct Forwards {
    pub(super) netstack: Rc<Netstack>,
    sources: (Ipv4Addr, Ipv6Addr),
    destinations: Vec<(Bytes, SocketAddr)>,
    reach: Reach,
    notices: Notices,
    /// The reported refusals of connections and packets by services.
    refusals: Told<Bytes>,
    listeners: RefCell<Vec<Rc<TcpPort>>>,
    udp_ports: RefCell<Vec<Rc<UdpPort>>>,
    errors: Errors,
}

enum Bound {
    Tcp(TcpPort),
    Udp(UdpPort),
}

impl Forwards {
    /// Binds all ports, or none; returns their addresses.
    pub(super) fn open(
        netstack: Rc<Netstack>,
        forwards: Vec<Forward>,
        sources: (Ipv4Addr, Ipv6Addr),
        notices: Notices,
    ) -> Result<(Rc<Self>, Vec<SocketAddr>), EngineError> {
        let destinations = forwards.iter().map(|f| (f.service.clone(), f.destination)).collect();
        let this = Rc::new(Self {
            reach: Reach::new(netstack.tx_queue.clone(), notices.clone(), Some(sources.0)),
            netstack,
            sources,
            destinations,
            notices,
            refusals: Told::default(),
            listeners: RefCell::default(),
            udp_ports: RefCell::default(),
            errors: Errors::default(),
        });
        let mut bound = Vec::new();
        let mut addresses = Vec::new();
        for forward in forwards {
            let bind_to = forward.bind;
            let named = |e| EngineError(format!("{bind_to}: {e}"));
            let (socket, address) = bind(forward).map_err(named)?;
            bound.push(socket);
            addresses.push(address);
        }
        for socket in bound {
            match socket {
                Bound::Tcp(port) => {
                    this.set_wrapper(&port.forward);
                    this.listeners.borrow_mut().push(Rc::new(port));
                }
                Bound::Udp(port) => {
                    this.set_wrapper(&port.forward);
                    let port = Rc::new(port);
                    this.udp_ports.borrow_mut().push(port.clone());
                    let run = this.clone();
                    this.netstack.spawn(async move { run.read(&port).await });
                }
            }
        }
        this.refuse_or_take();
        let run = this.clone();
        this.netstack.spawn(async move { run.look_after().await });
        Ok((this, addresses))
    }

    fn set_wrapper(&self, forward: &Forward) {
        self.netstack.stack.borrow_mut().set_wrapper(forward.destination, &forward.service);
    }

    /// Asks services for their connectors, and opens and closes ports by the answers.
    async fn look_after(self: Rc<Self>) {
        loop {
            self.reach.wait().await;
            let changed = self.reach.ask();
            if changed || self.listeners.borrow().iter().any(|port| port.failed.get()) {
                self.refuse_or_take();
            }
        }
    }

    pub(super) fn set_services(self: &Rc<Self>, services: &[Bytes]) {
        self.reach.acknowledge(services);
        self.announce();
        self.refuse_or_take();
    }

    /// The tunnel is on another connection.
    pub(super) fn attached(self: &Rc<Self>) {
        self.reach.attached();
        self.announce();
        self.refuse_or_take();
    }

    /// Closes ports whose service cannot be reached, so that the system refuses for them, and opens
    /// the others; this comes before any notice of it.
    pub(super) fn refuse_or_take(self: &Rc<Self>) {
        for port in &*self.udp_ports.borrow() {
            port.refuse(self.closed(&port.forward.service).is_some() || port.is_held());
        }
        for port in &*self.listeners.borrow() {
            match (self.closed(&port.forward.service).is_some(), port.is_open()) {
                (true, true) => port.close(),
                (false, false) => self.open_port(port),
                (true, false) | (false, true) => {}
            }
        }
    }

    fn open_port(self: &Rc<Self>, port: &Rc<TcpPort>) {
        let run = self.clone();
        let taking = port.clone();
        let opened = port.open(|listener| {
            let accepting = async move { run.accept(&taking.forward, &listener).await };
            self.netstack.spawn(accepting)
        });
        // Reported once; it is tried again until the port is free.
        if opened.is_err() != port.failed.get() {
            let notice = Notice {
                subject: Subject::Port,
                service: port.forward.service.clone(),
                address: Some(port.address),
                error: opened.err().map(|e| format!("cannot be opened: {e}")),
            };
            let failed = notice.error.is_some();
            if self.notices.tell(notice) {
                port.failed.set(failed);
            }
        }
    }

    /// Makes the inner IPv6 address known to the relay, for flows that wait for the other side; a
    /// question for a connector does so for the IPv4 address.
    fn announce(&self) {
        let mut known = FxHashSet::default();
        for (service, destination) in &self.destinations {
            if destination.is_ipv6()
                && self.netstack.tx_queue.conn().is_some()
                && self.reach.is_acknowledged(service)
                && known.insert((service, destination.ip()))
            {
                let source = self.source(*destination);
                self.netstack.stack.borrow_mut().announce(source, *destination);
            }
        }
        self.netstack.send_out();
    }

    pub(super) fn receive<'a>(self: &Rc<Self>, datagrams: impl Iterator<Item = &'a Bytes>) {
        let netstack = &self.netstack;
        let changed = Cell::new(false);
        let others = datagrams.filter(|datagram| match self.reach.take(datagram) {
            None => true,
            Some(change) => {
                changed.set(changed.get() | change);
                false
            }
        });
        netstack.receive(others, |arrival| match arrival {
            Arrival::Udp(id, _, payload) => self.answer(id, &payload),
            Arrival::Refused(id, refusal) => self.refused(id, refusal),
            Arrival::Done | Arrival::Tcp(_) | Arrival::Wanted(..) => {}
        });
        if changed.get() {
            self.refuse_or_take();
        }
    }

    /// The reason for which traffic to this service cannot go out now, if any.
    fn closed(&self, service: &Bytes) -> Option<TunnelDrop> {
        if self.netstack.tx_queue.conn().is_none() {
            Some(TunnelDrop::Detached)
        } else {
            match self.reach.way(service) {
                None | Some(Way::Asked) => Some(TunnelDrop::NotAcknowledged),
                Some(Way::NoConnector) => Some(TunnelDrop::NoConnector),
                Some(Way::Open) => None,
            }
        }
    }

    fn source(&self, destination: SocketAddr) -> IpAddr {
        match destination {
            SocketAddr::V4(_) => self.sources.0.into(),
            SocketAddr::V6(_) => self.sources.1.into(),
        }
    }

    async fn accept(self: &Rc<Self>, forward: &Forward, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.begin(forward, stream),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Opens a flow for a connection, or refuses it at once.
    fn begin(self: &Rc<Self>, forward: &Forward, stream: TcpStream) {
        let netstack = &self.netstack;
        let opened = match self.closed(&forward.service) {
            Some(reason) => {
                netstack.counters.dropped(reason, 1);
                None
            }
            None => {
                netstack.learn_limit();
                let source = self.source(forward.destination);
                let now = Instant::now();
                netstack.stack.borrow_mut().open(Transport::Tcp, source, forward.destination, now)
            }
        };
        match opened {
            Some(id) => {
                let flow = netstack.begin_splice(id, None);
                let (run, service) = (self.clone(), forward.service.clone());
                netstack.spawn(async move {
                    if let Some(refused) = splice::run(flow, stream).await {
                        run.was_refused(service, refused);
                    }
                });
            }
            None => {
                netstack.counters.tcp_refused.add(1);
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        }
    }

    /// A service has refused a connection: reports that, and asks whether it still has a connector.
    fn was_refused(&self, service: Bytes, refused: Refused) {
        self.reach.doubt(&service);
        let error = match refused {
            Refused::NoWay => return,
            Refused::Reset => "the connection was refused behind its connector",
            Refused::Unreachable => "its connector cannot reach the application",
        };
        let (subject, address) = (Subject::Flow, None);
        let name = service.clone();
        self.refusals.tell(service, Some(error.into()), Instant::now(), |error| {
            self.notices.tell(Notice { subject, service: name, address, error })
        });
    }
}

fn bind(forward: Forward) -> io::Result<(Bound, SocketAddr)> {
    match forward.transport {
        Transport::Tcp => {
            let port = TcpPort::bind(forward)?;
            let address = port.address;
            Ok((Bound::Tcp(port), address))
        }
        Transport::Udp => {
            let port = UdpPort::bind(forward)?;
            let address = port.address;
            Ok((Bound::Udp(port), address))
        }
    }
}
