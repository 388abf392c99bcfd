//! The configuration of a tunnel: local sockets, applications, service addresses.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

/// The transports a forward or a backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
}

/// A local socket whose traffic goes to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The transport of the socket.
    pub transport: Transport,
    /// Its listening address; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The service id.
    pub service: Bytes,
    /// Inner destination of its packets: the service address.
    pub destination: SocketAddr,
}

/// An application that a connector serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The service id.
    pub service: Bytes,
    /// Its transport.
    pub transport: Transport,
    /// Its addresses, tried in this order. No other address is ever reached.
    pub addresses: Vec<SocketAddr>,
    /// Inner destination addresses of this service.
    pub service_addresses: Vec<IpAddr>,
    /// Whether a TCP application is told the ends of each flow by the PROXY protocol.
    pub proxy_protocol: bool,
}

/// A service address of an agent's TUN interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunMap {
    /// The address that local programs use.
    pub address: IpAddr,
    /// The service it stands for.
    pub service: Bytes,
    /// The inner destination that goes out in its place, of the same family.
    pub destination: IpAddr,
}
