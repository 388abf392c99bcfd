//! The sockets of an agent that probes as the macOS app does: one for each address, and yet another for QUIC.

use std::{io::Error, net::SocketAddr};

use mio::{Interest, Registry, Token, net::UdpSocket};

/// What is opened for one try; the sockets of the one before are closed.
pub struct OwnSockets {
    registry: Registry,
    local: SocketAddr,
    probing: Vec<UdpSocket>,
    connecting: Option<UdpSocket>,
}

impl OwnSockets {
    /// Nothing of them is open at first. All are bound to the address of `local`, on ports of their own.
    pub fn new(registry: Registry, local: SocketAddr) -> Self {
        Self {
            registry,
            local: SocketAddr::new(local.ip(), 0),
            probing: Vec::new(),
            connecting: None,
        }
    }

    /// Opens sockets for probes to `count` addresses.
    pub fn begin(&mut self, count: usize) -> Result<(), Error> {
        self.connecting = None;
        self.probing = (0..count).map(|_| self.open()).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Opens the one for QUIC, and says where it is.
    pub fn connect(&mut self) -> Result<SocketAddr, Error> {
        let socket = self.open()?;
        let local = socket.local_addr();
        self.connecting = Some(socket);
        local
    }

    /// The one for probes to the address at this place among the candidates, or for QUIC.
    pub fn get(&self, target: Option<usize>) -> Option<&UdpSocket> {
        target.map_or(self.connecting.as_ref(), |at| self.probing.get(at))
    }

    /// What has come, and the place of the socket that it came to.
    pub fn receive(&self, buffer: &mut [u8]) -> Vec<(Option<usize>, SocketAddr, Vec<u8>)> {
        let mut packets = Vec::new();
        for target in (0..self.probing.len()).map(Some).chain([None]) {
            while let Some(Ok((length, from))) =
                self.get(target).map(|socket| socket.recv_from(buffer))
            {
                packets.push((target, from, buffer[..length].to_vec()));
            }
        }
        packets
    }

    /// Tokens tell nothing: all sockets are read at each turn.
    fn open(&self) -> Result<UdpSocket, Error> {
        let mut socket = UdpSocket::bind(self.local)?;
        self.registry.register(&mut socket, Token(usize::MAX), Interest::READABLE)?;
        Ok(socket)
    }
}
