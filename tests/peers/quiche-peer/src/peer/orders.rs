//! What a test orders, and the answers to it.

use std::{sync::mpsc::TryRecvError, time::Instant};

use mio::{Interest, net::UdpSocket};
use quiche::ConnectionId;

use crate::{
    backend::Backend,
    control::{Command, Event, emit, from_hex, to_hex},
};

use super::{BACKEND, CONNECTOR_PING, Outcome, Peer, SOCKET, random};

/// DATAGRAMs of one send command that the queue of quiche had no room for yet.
pub(super) struct Sending {
    data: Vec<u8>,
    left: usize,
    count: usize,
}

impl Peer {
    /// Carries out the commands that have come; false when stdin has ended.
    pub(super) fn obey(&mut self) -> Outcome<bool> {
        // One send command at a time keeps the answers in the order of the commands.
        while self.sending.is_none() {
            match self.commands.try_recv() {
                Ok(command) => self.carry_out(command?)?,
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => return Ok(false),
            }
            self.fill()?;
        }
        Ok(true)
    }

    fn carry_out(&mut self, command: Command) -> Outcome {
        match command {
            Command::SendHex(hex) => {
                self.sending = Some(Sending { data: from_hex(&hex)?, left: 1, count: 1 })
            }
            Command::SendMany { hex, count } => {
                self.sending = Some(Sending { data: from_hex(&hex)?, left: count, count });
            }
            Command::Ping(_) => {
                self.ping()?;
                done("ping")?;
            }
            Command::Close(_) => {
                let error =
                    self.connection.close(true, 0, b"").err().map(|error| error.to_string());
                emit(&Event::Done { command: "close", error })?;
            }
            Command::Rebind(_) => self.rebind()?,
            Command::Stats(_) => self.stats()?,
            Command::NewCid(_) => {
                let error = self.new_cid().err().map(|error| error.to_string());
                emit(&Event::Done { command: "new_cid", error })?;
            }
            Command::Forward(address) => {
                self.backend = Some(Backend::new(address, BACKEND));
                done("forward")?;
            }
            Command::Echo(on) => {
                self.echo = on;
                done("echo")?;
            }
            Command::Offer { session, service } => {
                self.direct.offer(session, service)?;
                done("offer")?;
            }
            Command::Candidates(candidates) => {
                self.direct.tell(candidates);
                done("candidates")?;
            }
            Command::Stream { id, hex, fin } => {
                self.direct.streams().queue(id, &from_hex(&hex)?, fin);
                done("stream")?;
            }
            Command::Reading(on) => {
                self.direct.streams().read_on(on);
                done("reading")?;
            }
            Command::SendPacket { service, hex } => self.send_packet(&service, &from_hex(&hex)?)?,
            Command::CloseDirect(_) => {
                self.direct.close();
                done("close_direct")?;
            }
        }
        Ok(())
    }

    fn send_packet(&mut self, service: &str, packet: &[u8]) -> Outcome {
        let (direct, sent) = match self.direct.send(packet) {
            Some(sent) => (true, sent),
            None => {
                let head = [0x2f, u8::try_from(service.len())?];
                let wrapped = [&head, service.as_bytes(), packet].concat();
                (false, self.connection.dgram_send(&wrapped))
            }
        };
        let error = sent.err().map(|error| error.to_string());
        emit(&Event::Routed { direct, error })?;
        Ok(())
    }

    /// Sends a PING frame, as the connector does from time to time.
    pub(super) fn ping(&mut self) -> Outcome {
        self.connection.send_ack_eliciting()?;
        self.next_ping = self.next_ping.map(|_| Instant::now() + CONNECTOR_PING);
        Ok(())
    }

    fn rebind(&mut self) -> Outcome {
        self.poll.registry().deregister(&mut self.socket)?;
        self.socket = UdpSocket::bind(self.bind)?;
        self.poll.registry().register(&mut self.socket, SOCKET, Interest::READABLE)?;
        emit(&Event::Rebound { local: self.socket.local_addr()?.to_string() })?;
        Ok(())
    }

    fn new_cid(&mut self) -> Outcome {
        let cid = random(self.profile.cid_length())?;
        let token = u128::from_be_bytes(random(16)?.as_slice().try_into()?);
        self.connection.new_scid(&ConnectionId::from_vec(cid), token, false)?;
        Ok(())
    }

    fn stats(&self) -> Outcome {
        let stats = self.connection.stats();
        emit(&Event::Stats {
            received: stats.recv,
            sent: stats.sent,
            lost: stats.lost,
            active_scids: self.connection.active_scids(),
            scids_left: self.connection.scids_left(),
            retired_scids: self.retired,
            available_dcids: self.connection.available_dcids(),
            dcid: to_hex(self.connection.destination_id().as_ref()),
            rtt_us: self.connection.path_stats().next().map_or(0, |path| path.rtt.as_micros()),
        })?;
        Ok(())
    }

    /// Gives the DATAGRAM queue of quiche as much of the running send command as it takes.
    pub(super) fn fill(&mut self) -> Outcome {
        let Some(sending) = self.sending.as_mut() else {
            return Ok(());
        };
        let mut failure = None;
        while sending.left > 0 {
            match self.connection.dgram_send(&sending.data) {
                Ok(()) => sending.left -= 1,
                Err(quiche::Error::Done) => return Ok(()),
                Err(error) => {
                    failure = Some(error.to_string());
                    break;
                }
            }
        }
        let count = sending.count - sending.left;
        self.sending = None;
        let max_writable = self.connection.dgram_max_writable_len();
        emit(&Event::Sent { ok: failure.is_none(), count, max_writable, error: failure })?;
        Ok(())
    }
}

fn done(command: &'static str) -> std::io::Result<()> {
    emit(&Event::Done { command, error: None })
}
