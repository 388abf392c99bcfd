//! Everything that travels from the control plane down to the engine.
//!
//! Commands are applied first in, first out. A batch is applied as a whole between two datagrams,
//! so `[SetAgent, SendDatagram(ACK)]` can never be seen in the other order.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    boundary::{
        event::ConnId,
        limits::{IdentityClass, Rates},
    },
    config::ALPN,
    quic::tls,
    relay::routes::Target,
    settings::{Setting::*, Settings},
    tunnel::config::{TunnelConfig, TunnelId},
};

/// One instruction to the engine. A command for a connection that is gone does nothing.
#[derive(Debug)]
pub enum Command {
    /// Replaces the connectors of a service; an empty list removes the service.
    SetService {
        /// The service id as on the wire, at most 255 bytes.
        service: Bytes,
        /// Its connectors.
        targets: Vec<Target>,
    },
    /// Replaces what an agent may reach; an empty list takes everything away.
    SetAgent {
        /// The agent's connection.
        conn: ConnId,
        /// The services it may reach, in the order of registration: a bare IP packet goes to the
        /// first.
        services: Vec<Bytes>,
        /// SHA-256 of the public key it proved; `None` for an anonymous agent. Decides its inner
        /// address.
        identity: Option<[u8; 32]>,
    },
    /// Sets what a connection may use; repeated, it changes that at once.
    SetLimits {
        /// The connection.
        conn: ConnId,
        /// Its limiter: connections with the same one share rates and usage.
        limiter: u64,
        /// What kind of identity it has.
        class: IdentityClass,
        /// What all connections of the limiter may use together.
        rates: Rates,
    },
    /// Sends one DATAGRAM.
    SendDatagram {
        /// The receiver.
        conn: ConnId,
        /// The payload.
        data: Bytes,
    },
    /// Sends DATAGRAMs that the caller has packed itself, oldest first (clients).
    SendDatagrams {
        /// The connection.
        conn: ConnId,
        /// The payloads.
        data: Vec<Bytes>,
    },
    /// Closes a connection with an application code (RFC 9000 section 10.2).
    Close {
        /// The connection.
        conn: ConnId,
        /// The application error code, below 2^62.
        code: u64,
        /// The reason the peer is shown.
        reason: Bytes,
    },
    /// Uses another certificate, key and client CA for handshakes from now on.
    SetServerTls {
        /// The new settings; connections that live keep theirs.
        tls: Arc<tls::ServerTls>,
    },
    /// Takes new connections or refuses them.
    SetAccepting {
        /// `false` refuses every new connection.
        accepting: bool,
    },
    /// Opens a client connection; answered by `Connected` or `ConnectFailed`.
    Connect {
        /// Chosen by the caller, given back in the answer.
        request: u64,
        /// Where to.
        config: Box<ConnectConfig>,
    },
    /// Gives a [`Command::Connect`] up: nothing answers it any more. One that was answered is not
    /// touched; its connection is there to be closed.
    CancelConnect {
        /// The `request` of the command.
        request: u64,
    },
    /// Moves a client connection to a new local port (RFC 9000 section 9).
    Rebind {
        /// The connection.
        conn: ConnId,
    },
    /// Asks for a connection's transport state; answered by `Inspected`.
    Inspect {
        /// The connection.
        conn: ConnId,
    },
    /// Opens a tunnel; answered by `TunnelOpened` or `TunnelFailed`.
    OpenTunnel {
        /// The new tunnel.
        tunnel: TunnelId,
        /// What its packets come from and go to.
        config: TunnelConfig,
    },
    /// Replaces the services acknowledged on a tunnel's present connection: its traffic to any
    /// other is refused.
    SetTunnelServices {
        /// The tunnel.
        tunnel: TunnelId,
        /// The service ids.
        services: Vec<Bytes>,
    },
    /// Moves a tunnel to a client connection, away from the one it had. A connection that closes
    /// lets its tunnel go by itself.
    AttachTunnel {
        /// The tunnel.
        tunnel: TunnelId,
        /// The connection.
        conn: ConnId,
    },
    /// Closes a tunnel and everything that flows through it.
    CloseTunnel {
        /// The tunnel.
        tunnel: TunnelId,
    },
}

/// Where and how a client connects.
#[derive(Clone, Debug)]
pub struct ConnectConfig {
    /// The server.
    pub remote: SocketAddr,
    /// The local address; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The name to send (SNI) and to verify.
    pub server_name: String,
    /// Certificates and trust.
    pub tls: Arc<tls::ClientTls>,
    /// Application protocols offered (ALPN).
    pub alpn: Vec<Vec<u8>>,
    /// Silence after which the connection is given up, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Time allowed for the handshake, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// PING after this much silence, in milliseconds; 0 sends none.
    pub keep_alive_ms: u64,
    /// Largest UDP payload we accept, in bytes, 1200 to 65527: the limit announced to the server.
    pub max_udp_payload: u16,
    /// Bytes of DATAGRAM payload queued to be sent. A tunnel waits when it is full: the smaller, the
    /// less a packet waits behind others.
    pub send_queue: usize,
    /// Whether to ask for OBSERVED_ADDRESS frames.
    pub observe_address: bool,
}

impl ConnectConfig {
    /// A client with every setting at its default, from any port of any local address.
    pub fn new(remote: SocketAddr, server_name: String, tls: Arc<tls::ClientTls>) -> Self {
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self {
            remote,
            bind: (any, 0).into(),
            server_name,
            tls,
            alpn: vec![ALPN.to_vec()],
            idle_timeout_ms: 30_000,
            handshake_timeout_ms: 10_000,
            keep_alive_ms: 10_000,
            max_udp_payload: 1472,
            send_queue: 1024 * 1024,
            observe_address: true,
        }
    }

    /// What can be set by name.
    pub const SETTINGS: Settings<Self> = &[
        ("idle_timeout_ms", |c| U64(&mut c.idle_timeout_ms)),
        ("handshake_timeout_ms", |c| U64(&mut c.handshake_timeout_ms)),
        ("keep_alive_ms", |c| U64(&mut c.keep_alive_ms)),
        ("max_udp_payload", |c| U16(&mut c.max_udp_payload)),
        ("send_queue_bytes", |c| Size(&mut c.send_queue)),
        ("observe_address", |c| Flag(&mut c.observe_address)),
    ];
}
