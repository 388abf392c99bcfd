//! A local TCP port of an agent: bound for as long as the tunnel is open, but listening only while
//! its service can be reached, so that the system refuses for it otherwise.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{Shutdown, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, task::AbortHandle};
use ztna_netstack::Forward;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A local TCP port.
#[derive(Debug)]
pub(super) struct TcpPort {
    pub(super) forward: Forward,
    pub(super) address: SocketAddr,
    socket: Socket,
    /// The task that accepts connections while it listens.
    accepting: RefCell<Option<AbortHandle>>,
    /// Whether the failure to open the port was reported.
    pub(super) failed: Cell<bool>,
}

impl TcpPort {
    /// Binds the port, which refuses until it is opened.
    pub(super) fn bind(forward: Forward) -> io::Result<Self> {
        let socket = reserve(forward.bind)?;
        let unexpected = || io::Error::from(io::ErrorKind::Unsupported);
        let address = socket.local_addr()?.as_socket().ok_or_else(unexpected)?;
        // A port that the system chose is lost when a socket stops listening: bind it by its
        // number, before the first socket lets go of it.
        let socket = if forward.bind.port() == 0 { reserve(address)? } else { socket };
        let (accepting, failed) = (RefCell::default(), Cell::default());
        Ok(Self { forward, address, socket, accepting, failed })
    }

    pub(super) fn is_open(&self) -> bool {
        self.accepting.borrow().is_some()
    }

    /// Listens; `accept` starts the task that accepts connections.
    ///
    /// # Errors
    /// When another program listens there meanwhile.
    pub(super) fn open(
        &self,
        accept: impl FnOnce(TcpListener) -> Option<AbortHandle>,
    ) -> io::Result<()> {
        self.socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(self.socket.try_clone()?.into())?;
        *self.accepting.borrow_mut() = accept(listener);
        Ok(())
    }

    /// Stops listening, and resets connections that were not accepted.
    pub(super) fn close(&self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = self.socket.shutdown(Shutdown::Read);
        }
    }
}

/// A socket bound to the address, which does not listen.
fn reserve(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // For connections of an earlier run that the system still remembers.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
