//! The connection to the relay: one socket, one quiche connection, one poll loop.

mod orders;

use std::{
    error::Error,
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker, net::UdpSocket};
use quiche::{Connection, ConnectionId, RecvInfo};
use ring::rand::{SecureRandom, SystemRandom};

use crate::{
    backend::Backend,
    control::{self, CloseError, Command, Event, ServerParams, emit, to_hex},
    direct::{self, Direct, Received},
    echo,
    options::{Options, Profile},
};
use orders::Sending;

/// What may fail for a reason that ends the process.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const SOCKET: Token = Token(0);
const COMMAND: Token = Token(1);
/// The first token of the sockets to an application.
const BACKEND: usize = 2;
const CONNECTOR_PING: Duration = Duration::from_secs(10);

/// A running client.
pub struct Peer {
    connection: Connection,
    profile: Profile,
    poll: Poll,
    socket: UdpSocket,
    bind: SocketAddr,
    /// What quiche believes its address to be; a NAT rebinding does not change it.
    believed_local: SocketAddr,
    commands: Receiver<Result<Command, String>>,
    sending: Option<Sending>,
    next_ping: Option<Instant>,
    retired: usize,
    echo: bool,
    backend: Option<Backend>,
    connected: bool,
    draining: bool,
    server: SocketAddr,
    direct: Direct,
}

impl Peer {
    /// Binds the socket and starts the handshake.
    pub fn start(options: &Options) -> Outcome<Self> {
        let poll = Poll::new()?;
        let mut socket = UdpSocket::bind(options.bind)?;
        poll.registry().register(&mut socket, SOCKET, Interest::READABLE)?;
        let commands = control::read_commands(Arc::new(Waker::new(poll.registry(), COMMAND)?));
        let local = socket.local_addr()?;
        let cid = random(options.profile.cid_length())?;
        let connection = quiche::connect(
            options.profile.server_name(),
            &ConnectionId::from_ref(&cid),
            local,
            options.server,
            &mut options.config()?,
        )?;
        let direct = Direct::new(options, local, poll.registry())?;
        emit(&Event::Started { local: local.to_string() })?;
        Ok(Self {
            connection,
            profile: options.profile,
            poll,
            socket,
            bind: SocketAddr::new(options.bind.ip(), 0),
            believed_local: local,
            commands,
            sending: None,
            next_ping: None,
            retired: 0,
            echo: false,
            backend: None,
            connected: false,
            draining: false,
            server: options.server,
            direct,
        })
    }

    /// Runs until the connection is closed or stdin ends.
    pub fn run(&mut self) -> Outcome {
        let mut events = Events::with_capacity(16);
        let mut buffer = vec![0; 65_535];
        loop {
            if !self.obey()? {
                return Ok(());
            }
            self.direct.read(&mut self.connection, &mut buffer)?;
            let held = self.sending.is_some();
            self.flush(&mut buffer)?;
            if self.report()? {
                return Ok(());
            }
            // Commands that waited for a send command do not ring again.
            let next = (held && self.sending.is_none()).then_some(Duration::ZERO);
            let ping = self.next_ping.map(|at| at.saturating_duration_since(Instant::now()));
            let direct = self.direct.timeout();
            let timeout =
                self.connection.timeout().into_iter().chain(direct).chain(ping).chain(next).min();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            if self.connection.timeout().is_some_and(|left| left.is_zero()) {
                self.connection.on_timeout();
            }
            if self.next_ping.is_some_and(|at| at <= Instant::now()) {
                self.ping()?;
            }
            self.receive(&mut buffer)?;
            self.answer(&mut buffer)?;
        }
    }

    /// Brings back what the application has answered.
    fn answer(&mut self, buffer: &mut [u8]) -> Outcome {
        let Some(backend) = &mut self.backend else {
            return Ok(());
        };
        for packet in backend.answers(buffer)? {
            if let Err(error) = self.connection.dgram_send_vec(packet) {
                eprintln!("quiche-peer: answer: {error}");
            }
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Outcome {
        self.direct.receive_own(buffer)?;
        self.take_direct_packets()?;
        loop {
            let (length, from) = match self.socket.recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let packet = &mut buffer[..length];
            if from != self.server {
                let received = self.direct.receive(packet, from)?;
                if let Received::Asked(answer) = &received {
                    direct::send_to(&self.socket, from, answer);
                }
                if !matches!(received, Received::Foreign) {
                    self.take_direct_packets()?;
                    continue;
                }
            }
            let info = RecvInfo { from, to: self.believed_local };
            if let Err(error) = self.connection.recv(packet, info) {
                eprintln!("quiche-peer: packet of {length} bytes: {error}");
            }
            // Taken after each packet: the receive queue of quiche is bounded and drops when full.
            self.read_datagrams()?;
        }
    }

    fn take_direct_packets(&mut self) -> Outcome {
        for packet in self.direct.packets()? {
            if let Some(backend) = &mut self.backend {
                backend.forward(&packet, self.poll.registry())?;
            }
        }
        Ok(())
    }

    fn read_datagrams(&mut self) -> Outcome {
        while let Ok(data) = self.connection.dgram_recv_vec() {
            emit(&Event::Datagram { hex: to_hex(&data) })?;
            self.direct.observe(&data);
            if let Some(reply) = self.echo.then(|| echo::answer(&data)).flatten()
                && let Err(error) = self.connection.dgram_send_vec(reply)
            {
                eprintln!("quiche-peer: echo: {error}");
            }
            if let Some(backend) = &mut self.backend {
                backend.forward(&data, self.poll.registry())?;
            }
        }
        Ok(())
    }

    /// Writes what quiche has to send, refilling its DATAGRAM queue from the running send command.
    fn flush(&mut self, buffer: &mut [u8]) -> Outcome {
        self.direct.flush(&self.socket, buffer)?;
        loop {
            self.fill()?;
            self.direct.streams().write(&mut self.connection)?;
            let mut written = false;
            loop {
                let (length, info) = match self.connection.send(buffer) {
                    Ok(packet) => packet,
                    Err(quiche::Error::Done) => break,
                    Err(error) => {
                        eprintln!("quiche-peer: send: {error}");
                        self.connection.close(false, 1, b"fail").ok();
                        break;
                    }
                };
                written = true;
                match self.socket.send_to(&buffer[..length], info.to) {
                    Ok(_) => {}
                    // Lost like any other packet; quiche recovers.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if self.sending.is_none() || !written {
                return Ok(());
            }
        }
    }

    /// Tells what changed; true when the connection is over.
    fn report(&mut self) -> Outcome<bool> {
        if !self.connected && self.connection.is_established() {
            self.connected = true;
            if self.profile == Profile::Connector {
                self.next_ping = Some(Instant::now() + CONNECTOR_PING);
            }
            emit(&Event::Connected {
                server_params: ServerParams::of(&self.connection)
                    .ok_or("no transport parameters")?,
                alpn: String::from_utf8_lossy(self.connection.application_proto()).into_owned(),
                certificate: self.connection.peer_cert().map(to_hex),
                max_writable: self.connection.dgram_max_writable_len(),
            })?;
        }
        while self.connection.retired_scid_next().is_some() {
            self.retired += 1;
        }
        if !self.draining
            && let Some(error) = self.connection.peer_error()
        {
            self.draining = true;
            emit(&Event::Draining { error: CloseError::of("peer", error) })?;
        }
        if !self.connection.is_closed() {
            return Ok(false);
        }
        let timeout = || CloseError {
            by: "timeout",
            application: false,
            code: 0,
            reason: "idle timeout".into(),
        };
        let error = match (self.connection.peer_error(), self.connection.local_error()) {
            (Some(error), _) => Some(CloseError::of("peer", error)),
            (None, Some(error)) => Some(CloseError::of("local", error)),
            (None, None) => self.connection.is_timed_out().then(timeout),
        };
        emit(&Event::Closed { error })?;
        Ok(true)
    }
}

/// Random bytes of the system.
pub fn random(length: usize) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0; length];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random bytes")?;
    Ok(bytes)
}
