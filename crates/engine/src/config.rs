//! What a listener and its relay are told at start.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::quic::tls::ServerTls;

/// Settings of a server. Sizes are in bytes.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// UDP addresses to bind. An IPv6 wildcard takes IPv4 too.
    pub bind: Vec<SocketAddr>,
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
    /// How long a Retry token is good.
    pub retry_token_lifetime: Duration,
    /// Silence after which a connection is given up.
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
    /// Registration messages a connection may send in a burst; as many a second after that.
    pub control_per_connection: u32,
    /// How long a connection id is used before it is replaced.
    pub cid_lifetime: Duration,
    /// UDP payload assumed to pass before path MTU discovery, 1200 to 65527.
    pub initial_mtu: u16,
    /// Datagrams queued for one slow peer.
    pub send_queue: usize,
    /// Datagrams of one peer not yet looked at. They wait here only between two turns of its task.
    pub receive_queue: usize,
    /// Socket buffer asked of the kernel, each way.
    pub socket_buffer: usize,
    /// Inner addresses and how packets find their way back.
    pub relay: RelayConfig,
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
    /// Own addresses that identities were given before, by SHA-256 of their public key.
    pub known_addresses: Arc<[([u8; 32], IpAddr)]>,
    /// Whether some of them may be lost: then no identity is given a new one.
    pub known_in_part: bool,
    /// How long a proven identity's lease outlives its connection.
    pub lease_grace: Duration,
    /// Source of ICMP answers (RFC 7600).
    pub icmp_source_v4: Ipv4Addr,
    /// Source of ICMPv6 answers.
    pub icmp_source_v6: Ipv6Addr,
    /// ICMP answers a second to one connection.
    pub icmp_per_second: u32,
    /// A connector that was sent to and acknowledged nothing for so long is passed over.
    pub stall_timeout: Duration,
}
