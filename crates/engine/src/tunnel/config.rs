//! The configuration of a tunnel.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

use bytes::Bytes;
use rustc_hash::FxHashSet;
use ztna_netstack::{Backend, Forward, TunMap};

/// The name of a tunnel; chosen by the control plane and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(pub u64);

/// The local end of a tunnel's packets.
#[derive(Debug)]
pub enum TunnelConfig {
    /// Local sockets whose connections become flows of a userspace stack: an agent without root.
    Forwards {
        /// The local sockets.
        forwards: Vec<Forward>,
        /// Inner source address of the IPv4 flows.
        source_v4: Ipv4Addr,
        /// Inner source address of the IPv6 flows.
        source_v6: Ipv6Addr,
    },
    /// A userspace stack that ends what agents send in sockets to applications: a connector without
    /// root. For an open tunnel it replaces the services; flows of unchanged services go on.
    Backends {
        /// The applications.
        services: Vec<Backend>,
        /// Whether their TCP addresses are tried once, to report silent ones.
        try_once: bool,
    },
    /// A TUN interface.
    Tun {
        /// The interface, without packet information (IFF_NO_PI); owned by the tunnel.
        device: OwnedFd,
        /// The routes of its packets.
        routing: TunRouting,
    },
}

/// A network: its address and the length of its prefix, bits beyond which are ignored.
#[derive(Clone, Copy, Debug)]
pub struct Network(pub IpAddr, pub u8);

impl Network {
    /// Whether it has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.0, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                (ours.to_bits() ^ other.to_bits()).leading_zeros()
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                (ours.to_bits() ^ other.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        differing >= u32::from(self.1)
    }
}

/// The routes of a TUN interface's packets.
#[derive(Debug)]
pub enum TunRouting {
    /// Both ways unwrapped and untouched: a connector.
    Own {
        /// The only addresses that packets from the relay may go to.
        own: FxHashSet<IpAddr>,
        /// The networks of agents' inner addresses: packets from the relay may have no other
        /// source, except ICMP errors about packets to there.
        agents: Vec<Network>,
    },
    /// By destination, and from the relay only what comes from a service's address: an agent.
    Services {
        /// Inner source address of the tunnel's own questions to services; without one it asks
        /// none.
        source: Option<Ipv4Addr>,
        /// Service addresses.
        maps: Vec<TunMap>,
        /// The service of packets to any other address, which are untouched; its packets may come
        /// from any address. `None` answers "host unreachable".
        default_service: Option<Bytes>,
    },
}
