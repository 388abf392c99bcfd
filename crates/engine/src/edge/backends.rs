//! The connector's side: flows from agents end in sockets to the named applications.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::Notify,
    task::coop::consume_budget,
};
use ztna_edge::{Arrival, Backend, EdgeDrop, FlowId, Refusal, Transport};

use super::{
    carry::carry,
    connect::{Health, reason},
    user::{Carrying, UdpFlow, User},
};

/// The applications of a connector.
#[derive(Debug)]
pub(super) struct Backends {
    pub(super) user: Rc<User>,
    services: RefCell<Vec<Backend>>,
    health: Rc<Health>,
}

impl Backends {
    pub(super) fn new(
        user: Rc<User>,
        services: Vec<Backend>,
        try_new: bool,
        health: Rc<Health>,
    ) -> Self {
        let backends = Self { user, services: RefCell::default(), health };
        backends.replace(services, try_new);
        backends
    }

    /// Replaces the services; flows of those that are no longer served end. Where only an address
    /// has changed they go on: a name that was looked up again says nothing of connections made.
    /// With `try_new` the TCP addresses that were not there before are tried once.
    pub(super) fn replace(&self, services: Vec<Backend>, try_new: bool) {
        self.user.stack.borrow_mut().set_services(services.clone());
        self.user.retain(|service, transport| {
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
                self.user.spawn(async move { health.try_each(&new).await });
            }
        }
        *self.services.borrow_mut() = services;
        self.user.send_out();
    }

    pub(super) fn receive<'a>(&self, datagrams: impl Iterator<Item = &'a Bytes>) {
        let user = &self.user;
        user.receive(datagrams, |arrival| match arrival {
            Arrival::Wanted(id, backend) => {
                let carrying = user.carry(id, Some(backend.service.clone()));
                let health = self.health.clone();
                user.spawn(async move {
                    if let Some(stream) = connect(&carrying, &backend, &health).await {
                        carry(carrying, stream).await;
                    }
                });
            }
            Arrival::Udp(id, first, payload) => {
                if let Some(backend) = first {
                    open_udp(user, id, backend, 0, Refusal::Unreachable);
                }
                send_udp(user, id, &payload);
            }
            Arrival::Done | Arrival::Tcp(_) | Arrival::Refused(..) => {}
        });
    }
}

/// Connects to the application and answers the flow's SYN.
async fn connect(carrying: &Carrying, backend: &Backend, health: &Rc<Health>) -> Option<TcpStream> {
    let Carrying { user, id, wake } = carrying;
    let gone = async {
        loop {
            wake.notified().await;
            if !user.stack.borrow().contains(*id) {
                return;
            }
        }
    };
    let connected = tokio::select! {
        connected = health.connect(backend) => connected,
        // Who asked has given up.
        () = gone => return None,
    };
    let now = std::time::Instant::now();
    match connected {
        Ok(stream) => {
            let accepted = user.stack.borrow_mut().accept(*id, now);
            accepted.then_some(stream)
        }
        Err(refusal) => {
            user.stack.borrow_mut().refuse(*id, refusal, now);
            user.send_out();
            None
        }
    }
}

/// Gives a UDP flow a socket to the first address from `from` on that takes one; where none does,
/// ends it for the reason of the last that did not, or else for `refusal`.
fn open_udp(user: &Rc<User>, id: FlowId, backend: Backend, from: usize, mut refusal: Refusal) {
    for (index, address) in backend.addresses.iter().enumerate().skip(from) {
        match connected(*address) {
            Ok(socket) => {
                let socket = Rc::new(socket);
                let reader = user.spawn(read_udp(user.clone(), id, socket.clone()));
                user.add_udp(id, UdpFlow::Backend { socket, reader, backend, next: index + 1 });
                return;
            }
            Err(e) => refusal = reason(&e),
        }
    }
    user.stack.borrow_mut().refuse_udp(id, refusal, std::time::Instant::now());
}

fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn send_udp(user: &Rc<User>, id: FlowId, payload: &[u8]) {
    let sent = match user.udp.borrow().get(&id) {
        Some(UdpFlow::Backend { socket, .. }) => socket2::SockRef::from(&**socket).send(payload),
        // No address was left to take it.
        _ => Err(Errno::NOBUFS.into()),
    };
    match sent {
        Ok(_) => {}
        // The error may be an earlier packet's, told here and not to the reader: there is another
        // address, or none any more.
        Err(e) if failed(user, id, &e) => send_udp(user, id, payload),
        Err(_) => user.counters.dropped(EdgeDrop::LocalFull, 1),
    }
}

/// Brings the application's answers back.
async fn read_udp(user: Rc<User>, id: FlowId, socket: Rc<UdpSocket>) {
    let room = Rc::new(Notify::new());
    loop {
        consume_budget().await;
        let mut received = socket.readable().await;
        user.link.has_room(&room).await;
        if received.is_ok() {
            let buffer = &mut *user.buffer.borrow_mut();
            received = socket.try_recv(buffer).map(|len| {
                let now = std::time::Instant::now();
                user.stack.borrow_mut().send_udp(id, &buffer[..len], now);
            });
        }
        let over = received.is_err_and(|e| failed(&user, id, &e));
        user.send_out();
        if over {
            return;
        }
    }
}

/// Whether an error ends the socket of a flow; then turns to the backend's next address.
fn failed(user: &Rc<User>, id: FlowId, error: &io::Error) -> bool {
    if passes(error) {
        return false;
    }
    if let Some(UdpFlow::Backend { backend, next, .. }) = user.drop_udp(id) {
        open_udp(user, id, backend, next, reason(error));
    }
    true
}

/// Whether an error says nothing of the packets to come: no packet is there, no room for it, or it
/// was larger than its path carries, which the system heeds the next time.
fn passes(error: &io::Error) -> bool {
    // tokio's own "nothing there" has a kind and no number.
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || matches!(
            Errno::from_io_error(error),
            Some(Errno::MSGSIZE | Errno::NOBUFS | Errno::NOMEM)
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_stays_ends_a_flow_and_says_why() {
        for (errno, passing, said) in [
            (Errno::CONNREFUSED, false, Refusal::Refused),
            (Errno::HOSTUNREACH, false, Refusal::Unreachable),
            (Errno::NETUNREACH, false, Refusal::Unreachable),
            (Errno::PERM, false, Refusal::Unreachable),
            (Errno::AGAIN, true, Refusal::Unreachable),
            (Errno::MSGSIZE, true, Refusal::Unreachable),
            (Errno::NOBUFS, true, Refusal::Unreachable),
        ] {
            let error = io::Error::from(errno);
            assert_eq!((passes(&error), reason(&error)), (passing, said), "{errno:?}");
        }
        assert!(passes(&io::ErrorKind::WouldBlock.into()));
    }
}
