//! UDP flows of a connector: each has a socket of its own to the application.

use std::{io, net::SocketAddr, rc::Rc, time::Instant};

use rustix::io::Errno;
use socket2::SockRef;
use tokio::{io::Interest, net::UdpSocket, sync::Notify, task::coop::consume_budget};
use ztna_netstack::{Backend, FlowId, Refusal, TunnelDrop};

use crate::tunnel::{
    connect::{Health, reason, sentence},
    netstack::{Netstack, UdpFlow},
    udp_backend::{First, UdpBackend},
};

/// A refused packet makes the socket an error and not readable.
const WATCHED: Interest = Interest::READABLE.add(Interest::ERROR);
/// Bytes asked of the system for answers that wait, for each flow; it may give less.
const BUFFER: usize = 256 << 10;

/// Gives a new flow a socket to the first address of its backend that takes one.
pub(super) fn open(netstack: &Rc<Netstack>, id: FlowId, backend: Backend, health: Rc<Health>) {
    let first = First::new(netstack.first_bytes.clone());
    open_from(netstack, id, backend, 0, Refusal::Unreachable, first, health);
}

/// The same from the address number `from` on, with the first packets repeated. Without a usable
/// address the flow ends, for the reason of the last one, or else for `refusal`.
fn open_from(
    netstack: &Rc<Netstack>,
    id: FlowId,
    backend: Backend,
    from: usize,
    mut refusal: Refusal,
    mut first: First,
    health: Rc<Health>,
) {
    for (index, address) in backend.addresses.iter().enumerate().skip(from) {
        match connected(*address) {
            Ok(socket) => {
                let socket = Rc::new(socket);
                let again = if first.is_over() { Vec::new() } else { first.packets.clone() };
                if index + 1 == backend.addresses.len() {
                    first.forget();
                }
                let reader = netstack.spawn(read(netstack.clone(), id, socket.clone()));
                let flow = UdpBackend {
                    backend,
                    socket,
                    reader,
                    next: index + 1,
                    first,
                    answered: false,
                    health,
                };
                netstack.add_udp(id, UdpFlow::Backend(flow));
                repeat(netstack, id, &again);
                return;
            }
            Err(e) => {
                refusal = reason(&e);
                health.tell(&backend, *address, Some(sentence(&e)));
            }
        }
    }
    netstack.stack.borrow_mut().refuse_udp(id, refusal, Instant::now());
}

fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    let _ = SockRef::from(&socket).set_recv_buffer_size(BUFFER);
    UdpSocket::from_std(socket)
}

/// Sends a packet of a flow to its application.
pub(super) fn send(netstack: &Rc<Netstack>, id: FlowId, payload: &[u8]) {
    loop {
        match try_send(netstack, id, payload) {
            Ok(()) => break,
            // The error may be an earlier packet's, reported here and not to the reader: another
            // address is tried, if one is left.
            Err(e) if failed(netstack, id, &e) => {}
            Err(_) => return netstack.counters.dropped(TunnelDrop::LocalFull, 1),
        }
    }
    if let Some(UdpFlow::Backend(flow)) = netstack.udp.borrow_mut().get_mut(&id)
        && flow.next < flow.backend.addresses.len()
    {
        flow.first.keep(payload);
    }
}

/// Sends the first packets of a flow to another address than before.
fn repeat(netstack: &Rc<Netstack>, id: FlowId, packets: &[Vec<u8>]) {
    for payload in packets {
        match try_send(netstack, id, payload) {
            Ok(()) => {}
            // They have been repeated to the next one by now.
            Err(e) if failed(netstack, id, &e) => return,
            Err(_) => netstack.counters.dropped(TunnelDrop::LocalFull, 1),
        }
    }
}

fn try_send(netstack: &Netstack, id: FlowId, payload: &[u8]) -> io::Result<()> {
    match netstack.udp.borrow().get(&id) {
        Some(UdpFlow::Backend(flow)) => SockRef::from(&*flow.socket).send(payload).map(drop),
        // No address was left to take it.
        _ => Err(Errno::NOBUFS.into()),
    }
}

/// Brings the application's answers back.
async fn read(netstack: Rc<Netstack>, id: FlowId, socket: Rc<UdpSocket>) {
    let room = Rc::new(Notify::new());
    loop {
        consume_budget().await;
        let received = match socket.ready(WATCHED).await {
            Ok(ready) if ready.is_error() => refused(&socket),
            Ok(_) => {
                netstack.tx_queue.has_room(&room).await;
                let buffer = &mut *netstack.buffer.borrow_mut();
                socket.try_recv(buffer).map(|len| {
                    netstack.stack.borrow_mut().send_udp(id, &buffer[..len], Instant::now());
                    if let Some(UdpFlow::Backend(flow)) = netstack.udp.borrow_mut().get_mut(&id)
                        && !std::mem::replace(&mut flow.answered, true)
                    {
                        flow.first.forget();
                        flow.tell(None);
                    }
                })
            }
            Err(e) => Err(e),
        };
        let over = received.is_err_and(|e| failed(&netstack, id, &e));
        netstack.send_out();
        if over {
            return;
        }
    }
}

/// The system's error about an earlier packet, which it reports once.
fn refused(socket: &UdpSocket) -> io::Result<()> {
    let nothing = || io::ErrorKind::WouldBlock.into();
    socket.try_io(Interest::ERROR, || Err(socket.take_error()?.unwrap_or_else(nothing)))
}

/// The agent refuses the answers of a flow: its socket is closed, so that the system refuses
/// further ones to the application.
pub(super) fn unwanted(netstack: &Netstack, id: FlowId) {
    netstack.stack.borrow_mut().remove(id);
    netstack.udp.borrow_mut().remove(&id);
}

/// Whether an error ends the socket of a flow; then turns to the backend's next address.
fn failed(netstack: &Rc<Netstack>, id: FlowId, error: &io::Error) -> bool {
    if passes(error) {
        return false;
    }
    if let Some(UdpFlow::Backend(mut flow)) = netstack.drop_udp(id) {
        let all = flow.first.all.clone();
        let first = std::mem::replace(&mut flow.first, First::new(all));
        let refusal = reason(error);
        flow.tell(Some(match refusal {
            Refusal::Refused => "refused a packet".into(),
            Refusal::Unreachable => sentence(error),
        }));
        let (backend, health) = (flow.backend.clone(), flow.health.clone());
        open_from(netstack, id, backend, flow.next, refusal, first, health);
    }
    true
}

/// Whether an error does not concern further packets: no packet to read, no room to write, or a
/// packet larger than its path carries, which the system heeds from then on.
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
