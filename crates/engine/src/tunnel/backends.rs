//! The connector's side: flows from agents end in sockets to the named applications.

mod udp;

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use bytes::Bytes;
use tokio::net::TcpStream;
use ztna_netstack::{Arrival, Backend, FlowKey, Refusal, Transport};

use super::{
    connect::Health,
    netstack::{Netstack, Splice},
    proxy_protocol, splice,
};

/// The applications of a connector.
#[derive(Debug)]
pub(super) struct Backends {
    pub(super) netstack: Rc<Netstack>,
    services: RefCell<Vec<Backend>>,
    health: Rc<Health>,
}

impl Backends {
    pub(super) fn new(
        netstack: Rc<Netstack>,
        services: Vec<Backend>,
        try_new: bool,
        health: Rc<Health>,
    ) -> Self {
        let backends = Self { netstack, services: RefCell::default(), health };
        backends.replace(services, try_new);
        backends
    }

    /// Replaces the services; flows of removed services end. With a changed address only, flows go
    /// on: a new look-up of a name does not concern existing connections. With `try_new` the new
    /// TCP addresses are tried once.
    pub(super) fn replace(&self, services: Vec<Backend>, try_new: bool) {
        self.netstack.stack.borrow_mut().set_services(services.clone());
        self.netstack.retain(|service, transport| {
            services.iter().any(|s| s.service == service && s.transport == transport)
        });
        self.health.retain(&services);
        if try_new {
            let before = self.services.borrow();
            for mut new in services.iter().filter(|s| s.transport == Transport::Tcp).cloned() {
                let known = |address: &SocketAddr| {
                    let same = |old: &Backend| {
                        old.service == new.service && old.transport == Transport::Tcp
                    };
                    before.iter().any(|old| same(old) && old.addresses.contains(address))
                };
                let addresses = new.addresses.iter().copied().filter(|a| !known(a)).collect();
                new.addresses = addresses;
                let health = self.health.clone();
                self.netstack.spawn(async move { health.try_each(&new).await });
            }
        }
        *self.services.borrow_mut() = services;
        self.netstack.send_out();
    }

    pub(super) fn receive<'a>(&self, datagrams: impl Iterator<Item = &'a Bytes>) {
        let netstack = &self.netstack;
        netstack.receive(datagrams, |arrival| match arrival {
            Arrival::Wanted(id, backend) => {
                let flow = netstack.begin_splice(id, Some(backend.service.clone()));
                let health = self.health.clone();
                netstack.spawn(async move {
                    if let Some(stream) = connect(&flow, &backend, &health).await {
                        splice::run(flow, stream).await;
                    }
                });
            }
            Arrival::Udp(id, first, payload) => {
                if let Some(backend) = first {
                    udp::open(netstack, id, backend, self.health.clone());
                }
                udp::send(netstack, id, &payload);
            }
            Arrival::Refused(id, Refusal::Refused) => udp::unwanted(netstack, id),
            // An agent that is away may come back.
            Arrival::Refused(_, Refusal::Unreachable) | Arrival::Done | Arrival::Tcp(_) => {}
        });
    }
}

/// Connects to the application and answers the flow's SYN.
async fn connect(splice: &Splice, backend: &Backend, health: &Rc<Health>) -> Option<TcpStream> {
    let Splice { netstack, id, wake } = splice;
    let gone = async {
        loop {
            wake.notified().await;
            if !netstack.stack.borrow().contains(*id) {
                return;
            }
        }
    };
    let ends = if backend.proxy_protocol { netstack.stack.borrow().key(*id) } else { None };
    let connecting = async {
        let stream = health.connect(backend).await?;
        if let Some(FlowKey { local, remote, .. }) = ends {
            // Before the flow is accepted: no byte of it can come first.
            let header = proxy_protocol::header(remote, local);
            proxy_protocol::send(&stream, &header).await.map_err(|_| Refusal::Unreachable)?;
        }
        Ok(stream)
    };
    let connected = tokio::select! {
        connected = connecting => connected,
        // The agent has given up.
        () = gone => return None,
    };
    let now = std::time::Instant::now();
    match connected {
        Ok(stream) => {
            let accepted = netstack.stack.borrow_mut().accept(*id, now);
            accepted.then_some(stream)
        }
        Err(refusal) => {
            netstack.stack.borrow_mut().refuse(*id, refusal, now);
            netstack.send_out();
            None
        }
    }
}
