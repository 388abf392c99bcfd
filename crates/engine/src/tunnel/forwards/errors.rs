//! Answers a refused UDP packet to a local port by the ICMP error that the system would send for a
//! port without a program.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use ztna_netstack::PacketBuilder;

use crate::icmp::{self, IcmpError};

/// Raw sockets that only send; none without the right to them (CAP_NET_RAW).
#[derive(Debug, Default)]
pub(super) struct Errors {
    v4: OnceCell<Option<OwnedFd>>,
    v6: OnceCell<Option<OwnedFd>>,
}

impl Errors {
    /// Answers `peer` that its packets to `local` are refused. False if that is not possible.
    pub(super) fn port_unreachable(&self, peer: SocketAddr, local: SocketAddr) -> bool {
        let (peer, local) = (canonical(peer), canonical(local));
        let (cell, family) = match peer {
            SocketAddr::V4(_) => (&self.v4, AddressFamily::Inet),
            SocketAddr::V6(_) => (&self.v6, AddressFamily::Inet6),
        };
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(family, SockType::Raw, flags, SockProtocol::Raw).ok()
        };
        let Some(raw) = cell.get_or_init(open) else {
            return false;
        };
        let (mut lost, mut error) = (PacketBuilder::default(), Vec::new());
        lost.udp(&[], peer, local, &[], usize::MAX);
        let Some(lost) = lost.take().next() else {
            return false;
        };
        icmp::write(IcmpError::PortUnreachable, lost.packet(), local.ip(), peer.ip(), &mut error);
        // The protocol number stands where ports do (raw(7)), and none is needed.
        let mut to = peer;
        to.set_port(0);
        let to = SockaddrStorage::from(to);
        sendto(raw.as_raw_fd(), &error, &to, MsgFlags::MSG_DONTWAIT).is_ok()
    }
}

/// IPv4 as such, also where it comes to an IPv6 socket.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}
