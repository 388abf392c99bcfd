//! What an edge is told when it is opened.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use bytes::Bytes;

/// Names an edge; chosen by the control plane and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId(pub u64);

/// The transports a forward or a backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
}

/// What the packets of an edge come from and go to.
#[derive(Debug)]
pub enum EdgeConfig {
    /// Local sockets whose connections become flows of a userspace stack: an agent without root.
    Forwards {
        /// The local sockets.
        forwards: Vec<Forward>,
        /// Inner source address of the IPv4 flows.
        source_v4: Ipv4Addr,
        /// Inner source address of the IPv6 flows.
        source_v6: Ipv6Addr,
    },
    /// A userspace stack that ends what agents send in sockets to applications: a connector
    /// without root. Told again for an open edge, it replaces the services; flows of those that
    /// stay as they were live on.
    Backends {
        /// The applications.
        services: Vec<Backend>,
    },
    /// A TUN interface.
    Tun {
        /// The interface, without packet information (IFF_NO_PI); owned by the edge.
        device: OwnedFd,
        /// How its packets are routed.
        routing: TunRouting,
    },
}

/// How the packets of a TUN interface are routed.
#[derive(Debug)]
pub enum TunRouting {
    /// Both ways unwrapped and untouched: a connector.
    Bare,
    /// By destination: an agent.
    Services {
        /// Virtual addresses.
        maps: Vec<TunMap>,
        /// Where packets to any other address go, untouched; `None` answers them "host
        /// unreachable".
        default_service: Option<Bytes>,
    },
}

/// A local socket whose traffic goes to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Which kind of socket.
    pub transport: Transport,
    /// Where it listens; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The service id.
    pub service: Bytes,
    /// Inner destination of its packets: the service's virtual address.
    pub destination: SocketAddr,
}

/// An application a connector serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The service id.
    pub service: Bytes,
    /// What it speaks.
    pub transport: Transport,
    /// Where it is, tried in this order. No other address is ever reached.
    pub addresses: Vec<SocketAddr>,
    /// Inner destination addresses that mean this service.
    pub virtuals: Vec<IpAddr>,
}

/// A virtual address of an agent's TUN interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunMap {
    /// The address that local programs use.
    pub address: IpAddr,
    /// The service it stands for.
    pub service: Bytes,
    /// The inner destination that goes out in its place, of the same family.
    pub destination: IpAddr,
}
