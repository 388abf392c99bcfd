//! Settings of a listener and its relay.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use crate::{
    quic::tls::ServerTls,
    settings::{Setting::*, Settings},
};

/// The application protocol (ALPN) of ztna-v1.
pub const ALPN: &[u8] = b"ztna-v1";
/// The application protocol (ALPN) of joins: one request and one answer.
pub const JOIN_ALPN: &[u8] = b"ztna-join/1";
/// The largest request and the largest answer of a join, in bytes.
pub const MAX_JOIN: usize = 16 * 1024;

/// Settings of a server. Sizes are in bytes.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// UDP addresses to bind. An IPv6 wildcard takes IPv4 too.
    pub bind: Vec<SocketAddr>,
    /// UDP sockets that are bound already, as a service manager hands them over.
    pub sockets: Vec<Arc<OwnedFd>>,
    /// Certificate, key and client trust.
    pub tls: Arc<ServerTls>,
    /// Secret that seals Retry tokens, at least 32 bytes; the same over restarts.
    pub token_key: Vec<u8>,
    /// Secret behind stateless reset tokens (RFC 9000 section 10.3), at least 32 bytes.
    pub reset_key: Vec<u8>,
    /// Application protocols (ALPN).
    pub alpn: Vec<Vec<u8>>,
    /// Whether a source must prove its address by a Retry before it costs anything.
    pub retry: bool,
    /// Life time of a Retry token.
    pub retry_token_lifetime: Duration,
    /// Silence after which a connection is closed.
    pub idle_timeout: Duration,
    /// Time allowed for a handshake.
    pub handshake_timeout: Duration,
    /// Admitted and half-open connections together.
    pub max_connections: usize,
    /// Handshakes under way at once, of one source a sixteenth at most.
    pub max_half_open: usize,
    /// Handshakes a second from one source (IPv4 /32, IPv6 /56).
    pub handshakes_per_source: u32,
    /// Handshakes one source may start in a burst.
    pub handshake_burst_per_source: u32,
    /// Joins a second from one source.
    pub joins_per_source: u32,
    /// Joins one source may start in a burst.
    pub join_burst_per_source: u32,
    /// Joins a second from all sources together.
    pub joins_per_second: u32,
    /// Registration messages a connection may send in a burst; as many a second after that.
    pub control_per_connection: u32,
    /// Time of use of a connection id before it is replaced.
    pub cid_lifetime: Duration,
    /// UDP payload assumed to pass before path MTU discovery, 1200 to 65527.
    pub initial_mtu: u16,
    /// Datagrams queued for one slow peer.
    pub send_queue: usize,
    /// Unread datagrams of one peer, which wait here only between two turns of its task.
    pub receive_queue: usize,
    /// Socket buffer asked of the kernel, each way.
    pub socket_buffer: usize,
    /// Inner addresses and the way back of packets.
    pub relay: RelayConfig,
}

impl ListenConfig {
    /// A listener with every setting at its default.
    pub fn new(
        bind: Vec<SocketAddr>,
        tls: Arc<ServerTls>,
        token_key: Vec<u8>,
        reset_key: Vec<u8>,
    ) -> Self {
        Self {
            bind,
            sockets: Vec::new(),
            tls,
            token_key,
            reset_key,
            alpn: vec![ALPN.to_vec()],
            retry: true,
            retry_token_lifetime: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            max_connections: 20_000,
            max_half_open: 1024,
            handshakes_per_source: 100,
            handshake_burst_per_source: 400,
            joins_per_source: 1,
            join_burst_per_source: 20,
            joins_per_second: 20,
            control_per_connection: 64,
            cid_lifetime: Duration::from_secs(300),
            initial_mtu: 1350,
            send_queue: 256 * 1024,
            receive_queue: 1024 * 1024,
            socket_buffer: 4 * 1024 * 1024,
            relay: RelayConfig::default(),
        }
    }

    /// The settings by name.
    pub const SETTINGS: Settings<Self> = &[
        ("retry", |c| Flag(&mut c.retry)),
        ("retry_token_lifetime_ms", |c| Time(&mut c.retry_token_lifetime)),
        ("idle_timeout_ms", |c| Time(&mut c.idle_timeout)),
        ("handshake_timeout_ms", |c| Time(&mut c.handshake_timeout)),
        ("max_connections", |c| Size(&mut c.max_connections)),
        ("max_half_open", |c| Size(&mut c.max_half_open)),
        ("handshakes_per_source", |c| U32(&mut c.handshakes_per_source)),
        ("handshake_burst_per_source", |c| U32(&mut c.handshake_burst_per_source)),
        ("joins_per_source", |c| U32(&mut c.joins_per_source)),
        ("join_burst_per_source", |c| U32(&mut c.join_burst_per_source)),
        ("joins_per_second", |c| U32(&mut c.joins_per_second)),
        ("control_per_connection", |c| U32(&mut c.control_per_connection)),
        ("cid_lifetime_ms", |c| Time(&mut c.cid_lifetime)),
        ("initial_mtu", |c| U16(&mut c.initial_mtu)),
        ("send_queue_bytes", |c| Size(&mut c.send_queue)),
        ("receive_queue_bytes", |c| Size(&mut c.receive_queue)),
        ("socket_buffer_bytes", |c| Size(&mut c.socket_buffer)),
        ("translate", |c| Flag(&mut c.relay.translate)),
        ("inner_pool_v4", |c| NetworkV4(&mut c.relay.pool_v4)),
        ("inner_pool_v6", |c| NetworkV6(&mut c.relay.pool_v6)),
        ("inner_per_agent", |c| Size(&mut c.relay.addresses_per_agent)),
        ("known_in_part", |c| Flag(&mut c.relay.known_in_part)),
        ("lease_grace_ms", |c| Time(&mut c.relay.lease_grace)),
        ("icmp_source_v4", |c| V4(&mut c.relay.icmp_source_v4)),
        ("icmp_source_v6", |c| V6(&mut c.relay.icmp_source_v6)),
        ("icmp_per_second", |c| U32(&mut c.relay.icmp_per_second)),
        ("stall_timeout_ms", |c| Time(&mut c.relay.stall_timeout)),
    ];
}

/// Settings of the forwarding rules.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// `false` passes packets untouched and finds the way back by learned flows.
    pub translate: bool,
    /// Pool of inner IPv4 addresses.
    pub pool_v4: (Ipv4Addr, u8),
    /// Pool of inner IPv6 addresses.
    pub pool_v6: (Ipv6Addr, u8),
    /// Inner addresses one agent may use at a time.
    pub addresses_per_agent: usize,
    /// Reserved addresses of identities so far, by SHA-256 of their public key.
    pub known_addresses: Arc<[([u8; 32], IpAddr)]>,
    /// Whether some of them may be lost: then no identity gets a new one.
    pub known_in_part: bool,
    /// Time for which a proven identity's lease outlives its connection.
    pub lease_grace: Duration,
    /// Source of ICMP answers (RFC 7600).
    pub icmp_source_v4: Ipv4Addr,
    /// Source of ICMPv6 answers.
    pub icmp_source_v6: Ipv6Addr,
    /// ICMP answers a second to one connection.
    pub icmp_per_second: u32,
    /// A connector that has acknowledged no packet for so long is passed over.
    pub stall_timeout: Duration,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            translate: true,
            pool_v4: (Ipv4Addr::new(100, 64, 0, 0), 10),
            pool_v6: (Ipv6Addr::new(0xFD64, 0x7A74, 0x6E61, 0, 0, 0, 0, 0), 64),
            addresses_per_agent: 4,
            known_addresses: Arc::default(),
            known_in_part: false,
            lease_grace: Duration::from_secs(300),
            icmp_source_v4: Ipv4Addr::new(192, 0, 0, 8),
            icmp_source_v6: Ipv6Addr::new(0xFD64, 0x7A74, 0x6E61, 0xFFFF, 0, 0, 0, 1),
            icmp_per_second: 100,
            stall_timeout: Duration::from_secs(3),
        }
    }
}
