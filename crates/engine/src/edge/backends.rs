//! The connector's side: flows from agents end in sockets to the named applications.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};
use ztna_edge::{Arrival, Backend, EdgeDrop, FlowId, Refusal, Transport};

use super::{
    carry::carry,
    user::{Target, UdpFlow, User},
};

/// Time for one address of a backend, where there are others to try.
const EACH: Duration = Duration::from_secs(3);
/// Time for all of them: shorter than a client's own patience with a SYN.
const TOTAL: Duration = Duration::from_secs(10);
/// The largest UDP payload.
const MAX_PAYLOAD: usize = 65_507;

/// The applications of a connector.
#[derive(Debug)]
pub(super) struct Backends {
    pub(super) user: Rc<User>,
    services: RefCell<Vec<Backend>>,
}

impl Backends {
    pub(super) fn new(user: Rc<User>, services: Vec<Backend>) -> Self {
        let backends = Self { user, services: RefCell::default() };
        backends.replace(services);
        backends
    }

    /// Replaces the services; flows to applications that are no longer named end.
    pub(super) fn replace(&self, services: Vec<Backend>) {
        self.user.stack.borrow_mut().set_services(services.clone());
        self.user.retain(|target| {
            services.iter().any(|s| {
                s.service == target.service
                    && s.transport == target.transport
                    && s.addresses.contains(&target.address)
            })
        });
        *self.services.borrow_mut() = services;
        self.user.send_out();
    }

    pub(super) fn receive<'a>(&self, datagrams: impl Iterator<Item = &'a Bytes>) {
        let user = &self.user;
        user.receive(datagrams, |arrival| match arrival {
            Arrival::Wanted(id, backend) => {
                let carrying = user.carry(id, None);
                user.spawn(async move {
                    if let Some(stream) = connect(&carrying, &backend).await {
                        carry(carrying, stream).await;
                    }
                });
            }
            Arrival::Udp(id, first, payload) => {
                if let Some(backend) = first
                    && open_udp(user, id, &backend, 0).is_err()
                {
                    user.stack.borrow_mut().refuse_udp(id, std::time::Instant::now());
                }
                send_udp(user, id, payload);
            }
            Arrival::Done | Arrival::Tcp(_) => {}
        });
    }
}

/// Connects to the application and answers the flow's SYN.
async fn connect(carrying: &super::user::Carrying, backend: &Backend) -> Option<TcpStream> {
    let super::user::Carrying { user, id, wake } = carrying;
    let gone = async {
        loop {
            wake.notified().await;
            if !user.stack.borrow().contains(*id) {
                return;
            }
        }
    };
    let connected = tokio::select! {
        connected = first_of(backend) => connected,
        // Who asked has given up.
        () = gone => return None,
    };
    let now = std::time::Instant::now();
    match connected {
        Ok((stream, address)) => {
            let Backend { service, transport, .. } = backend.clone();
            carrying.set_target(Target { service, transport, address });
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

/// The first address that takes the connection. One that refuses is an answer, silence is none.
async fn first_of(backend: &Backend) -> Result<(TcpStream, SocketAddr), Refusal> {
    let end = Instant::now() + TOTAL;
    let mut refusal = Refusal::Unreachable;
    for (index, address) in backend.addresses.iter().enumerate() {
        let last = index + 1 == backend.addresses.len();
        let limit = if last { end } else { end.min(Instant::now() + EACH) };
        match timeout_at(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => {
                refusal = Refusal::Refused;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Err(refusal)
}

/// Gives a UDP flow a socket to the first address from `from` on that takes one.
fn open_udp(user: &Rc<User>, id: FlowId, backend: &Backend, from: usize) -> io::Result<()> {
    let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
    for (index, address) in backend.addresses.iter().enumerate().skip(from) {
        match connected(*address) {
            Ok(socket) => {
                let socket = Rc::new(socket);
                let target = Target {
                    service: backend.service.clone(),
                    transport: Transport::Udp,
                    address: *address,
                };
                let task = read_udp(user.clone(), id, socket.clone(), backend.clone(), index + 1);
                let reader = user.spawn(task);
                let flow = UdpFlow::Backend { socket, target, reader };
                user.udp.borrow_mut().insert(id, flow);
                return Ok(());
            }
            Err(e) => result = Err(e),
        }
    }
    result
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

fn send_udp(user: &User, id: FlowId, payload: &[u8]) {
    let flows = user.udp.borrow();
    let Some(UdpFlow::Backend { socket, .. }) = flows.get(&id) else {
        return;
    };
    // An error of an earlier send is reported here: the reader sees it as well.
    if socket2::SockRef::from(&**socket).send(payload).is_err() {
        user.counters.dropped(EdgeDrop::LocalFull, 1);
    }
}

/// Brings the application's answers back; where it refuses, turns to the next address.
async fn read_udp(
    user: Rc<User>,
    id: FlowId,
    socket: Rc<UdpSocket>,
    backend: Backend,
    next: usize,
) {
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        let received = socket.recv(&mut buffer).await;
        let now = std::time::Instant::now();
        match received {
            Ok(len) => {
                user.stack.borrow_mut().send_udp(id, &buffer[..len], now);
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                user.udp.borrow_mut().remove(&id);
                if open_udp(&user, id, &backend, next).is_err() {
                    user.stack.borrow_mut().refuse_udp(id, now);
                }
                user.send_out();
                return;
            }
            Err(_) => {}
        }
        user.send_out();
    }
}
