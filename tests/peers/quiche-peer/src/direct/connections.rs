//! QUIC between agent and connector, on the socket that each has to the relay.

use std::{net::SocketAddr, time::Duration};

use mio::net::UdpSocket;
use quiche::{Config, Connection, ConnectionId, Header, RecvInfo, Type};

use crate::{
    control::Step,
    peer::{Outcome, random},
};

/// The direct connections of one end: those it opened and those it accepted.
pub struct Connections {
    cid_length: usize,
    /// Of a connector only; without it nothing is accepted.
    accepting: Option<Config>,
    open: Vec<Direct>,
}

struct Direct {
    connection: Connection,
    /// What quiche is told as the address of the socket.
    local: SocketAddr,
    remote: SocketAddr,
    /// What its packets may be addressed to.
    ids: Vec<Vec<u8>>,
    established: bool,
}

impl Connections {
    /// With none open.
    pub fn new(cid_length: usize, accepting: Option<Config>) -> Self {
        Self { cid_length, accepting, open: Vec::new() }
    }

    /// Opens one as the agent does.
    pub fn open(&mut self, local: SocketAddr, remote: SocketAddr, config: &mut Config) -> Outcome {
        let id = random(self.cid_length)?;
        let scid = ConnectionId::from_ref(&id);
        let connection = quiche::connect(Some("ztna-connector"), &scid, local, remote, config)?;
        self.open.push(Direct { connection, local, remote, ids: vec![id], established: false });
        Ok(())
    }

    /// Takes a packet if it belongs to one of them, or begins one on the socket `local`; false otherwise.
    pub fn receive(
        &mut self,
        packet: &mut [u8],
        from: SocketAddr,
        local: SocketAddr,
    ) -> Outcome<bool> {
        let Ok(header) = Header::from_slice(packet, self.cid_length) else {
            return Ok(false);
        };
        let id = header.dcid.to_vec();
        let known = self.open.iter().position(|direct| direct.ids.contains(&id));
        let at = match (known, &mut self.accepting) {
            (Some(at), _) => at,
            (None, Some(config)) if header.ty == Type::Initial => {
                let own = random(self.cid_length)?;
                let scid = ConnectionId::from_ref(&own);
                let connection = quiche::accept(&scid, None, local, from, config)?;
                let ids = vec![id, own];
                let accepted = Direct { connection, local, remote: from, ids, established: false };
                self.open.push(accepted);
                self.open.len() - 1
            }
            _ => return Ok(false),
        };
        let direct = &mut self.open[at];
        let info = RecvInfo { from, to: direct.local };
        if let Err(error) = direct.connection.recv(packet, info) {
            eprintln!("quiche-peer: direct packet of {} bytes: {error}", packet.len());
        }
        Ok(true)
    }

    /// The DATAGRAMs that have come.
    pub fn datagrams(&mut self) -> Vec<Vec<u8>> {
        let each = |direct: &mut Direct| -> Vec<Vec<u8>> {
            std::iter::from_fn(|| direct.connection.dgram_recv_vec().ok()).collect()
        };
        self.open.iter_mut().flat_map(each).collect()
    }

    /// Sends a DATAGRAM to `remote`; `None` where no connection to it is usable.
    pub fn send(&mut self, remote: SocketAddr, data: &[u8]) -> Option<quiche::Result<()>> {
        let direct = self.open.iter_mut().find(|direct| direct.remote == remote)?;
        (direct.established && !direct.connection.is_closed())
            .then(|| direct.connection.dgram_send(data))
    }

    /// Closes all with application code 0.
    pub fn close(&mut self) {
        for direct in &mut self.open {
            // Done is the only error, and it says that it is closing already.
            let _ = direct.connection.close(true, 0, b"");
        }
    }

    /// Writes what quiche has to send; returns what became of which.
    pub fn flush(&mut self, socket: &UdpSocket, buffer: &mut [u8]) -> Vec<(Step, SocketAddr)> {
        let mut steps = Vec::new();
        for direct in &mut self.open {
            while let Ok((length, info)) = direct.connection.send(buffer) {
                // Lost like any other packet; quiche recovers.
                let _ = socket.send_to(&buffer[..length], info.to);
            }
            if !direct.established && direct.connection.is_established() {
                direct.established = true;
                steps.push((Step::Connected, direct.remote));
            }
        }
        let over = self.open.extract_if(.., |direct| direct.connection.is_closed());
        steps.extend(over.map(|direct| (Step::Closed, direct.remote)));
        steps
    }

    /// When the first of their timers ends.
    pub fn timeout(&self) -> Option<Duration> {
        self.open.iter().filter_map(|direct| direct.connection.timeout()).min()
    }

    /// Handles the timers that have ended.
    pub fn on_timeout(&mut self) {
        for direct in &mut self.open {
            if direct.connection.timeout().is_some_and(|left| left.is_zero()) {
                direct.connection.on_timeout();
            }
        }
    }
}
