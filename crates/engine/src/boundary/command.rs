//! Commands of the control plane to the engine.
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
#[allow(missing_docs, reason = "most fields are their names")]
#[derive(Debug)]
pub enum Command {
    /// Replaces the connectors of a service; an empty list removes the service.
    SetService {
        /// The service id as on the wire, at most 255 bytes.
        service: Bytes,
        targets: Vec<Target>,
    },
    /// Replaces the services that an agent may reach; an empty list takes all away.
    SetAgent {
        conn: ConnId,
        /// The services it may reach, in the order of registration: a bare IP packet goes to the
        /// first.
        services: Vec<Bytes>,
        /// SHA-256 of the public key it proved; `None` for an anonymous agent. Decides its inner
        /// address.
        identity: Option<[u8; 32]>,
    },
    /// Sets the rates of a connection's limiter, at once also when repeated.
    SetLimits {
        conn: ConnId,
        /// Its limiter: connections with the same one share rates and usage.
        limiter: u64,
        class: IdentityClass,
        /// Rates of all connections of the limiter together.
        rates: Rates,
    },
    /// Sends one DATAGRAM.
    SendDatagram { conn: ConnId, data: Bytes },
    /// Sends one signaling frame whole, or drops it whole and reports `SignalDropped`.
    SendSignal {
        conn: ConnId,
        /// At most 65,536 bytes.
        payload: Bytes,
        /// Whether it is for an agent: it goes on the stream that the agent has opened. A connector is
        /// sent to on its own stream if that was open at the first frame, else on one that this server
        /// opens.
        to_agent: bool,
    },
    /// Ends the stream that a client signals on; its connection goes on.
    EndSignaling { conn: ConnId },
    /// Asks for the connector that an agent's packets for a service go to, and keeps that choice;
    /// answered by `RouteFound`.
    LookUpRoute { request: u64, agent: ConnId, service: Bytes },
    /// Notes that an agent sends packets to a connector past this server: the answers come by it.
    Introduce { agent: ConnId, connector: ConnId },
    /// Takes an [`Command::Introduce`] back.
    Separate { agent: ConnId, connector: ConnId },
    /// Sends DATAGRAMs that the caller has packed itself, oldest first (clients).
    SendDatagrams { conn: ConnId, data: Vec<Bytes> },
    /// Closes a connection with an application code (RFC 9000 section 10.2).
    Close {
        conn: ConnId,
        /// The application error code, below 2^62.
        code: u64,
        /// The reason the peer is shown.
        reason: Bytes,
    },
    /// Uses another certificate, key and client CA for handshakes from now on.
    SetServerTls {
        /// The new settings; live connections keep theirs.
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
        config: Box<ConnectConfig>,
    },
    /// Replies to a [`JoinRequest`](crate::Event::JoinRequest).
    JoinReply {
        request: u64,
        /// At most [`MAX_JOIN`](crate::MAX_JOIN) bytes.
        data: Bytes,
        /// Whether it refuses the request: a source of too many such requests is blocked for a while.
        refused: bool,
    },
    /// Asks a server to join, on a connection of its own; answered by `Answered` or `ConnectFailed`.
    Ask {
        /// As that of a [`Command::Connect`].
        request: u64,
        /// Protocol and transport are those of joins, so that only the addresses, the name, `tls`,
        /// the time for the handshake and the largest UDP payload count.
        config: Box<ConnectConfig>,
        /// At most [`MAX_JOIN`](crate::MAX_JOIN) bytes.
        data: Bytes,
    },
    /// Gives a [`Command::Connect`] or [`Command::Ask`] up: no event answers it any more. If it was
    /// answered already, its connection stays until it is closed.
    CancelConnect { request: u64 },
    /// Moves a client connection to a new local port (RFC 9000 section 9).
    Rebind { conn: ConnId },
    /// Asks for a connection's transport state; answered by `Inspected`.
    Inspect { conn: ConnId },
    /// Opens a tunnel; answered by `TunnelOpened` or `TunnelFailed`.
    OpenTunnel {
        tunnel: TunnelId,
        /// The local end of the tunnel.
        config: TunnelConfig,
    },
    /// Replaces the acknowledged services of a tunnel's present connection: its traffic to any
    /// other is refused.
    SetTunnelServices { tunnel: TunnelId, services: Vec<Bytes> },
    /// Lets a client connection carry a tunnel: it receives for it, and with `sends` the tunnel
    /// sends on it from now. A closing connection releases its tunnel by itself.
    ///
    /// A connection that has received beside the one that sent takes over without a loss, and the
    /// other one goes on receiving. Any other is a new beginning, after an interruption.
    AttachTunnel { tunnel: TunnelId, conn: ConnId, sends: bool },
    /// Closes a tunnel and all its flows.
    CloseTunnel { tunnel: TunnelId },
}

/// The options of a client connection.
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
    /// Silence after which the connection is closed, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Time allowed for the handshake, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// PING after this much silence, in milliseconds; 0 sends none.
    pub keep_alive_ms: u64,
    /// Largest UDP payload we accept, in bytes, 1200 to 65527: the limit announced to the server.
    pub max_udp_payload: u16,
    /// Bytes of DATAGRAM payload in the send queue. A tunnel waits when the queue is full: in a
    /// small one a packet waits behind few others.
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

    /// The options by name.
    pub const SETTINGS: Settings<Self> = &[
        ("idle_timeout_ms", |c| U64(&mut c.idle_timeout_ms)),
        ("handshake_timeout_ms", |c| U64(&mut c.handshake_timeout_ms)),
        ("keep_alive_ms", |c| U64(&mut c.keep_alive_ms)),
        ("max_udp_payload", |c| U16(&mut c.max_udp_payload)),
        ("send_queue_bytes", |c| Size(&mut c.send_queue)),
        ("observe_address", |c| Flag(&mut c.observe_address)),
    ];
}
