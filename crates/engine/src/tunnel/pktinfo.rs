//! UDP sockets that give the local address of each received packet, and answer from it
//! (IP_PKTINFO in ip(7), RFC 3542 section 6).

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, cmsg_space, recvmsg,
        sendmsg, setsockopt, sockopt,
    },
};

/// Room for the system's information about one packet.
pub(super) const SPACE: usize = cmsg_space::<in6_pktinfo>();

/// An address of this host; with the interface if only both together are unique (RFC 4007).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Local {
    pub(super) ip: IpAddr,
    interface: u32,
}

/// Makes a bound socket give the local address of every packet.
pub(super) fn enable(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Reads one packet: its length, its sender, and its local address.
pub(super) fn receive(
    socket: &impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<Local>)> {
    let mut space = [0; SPACE];
    let mut parts = [IoSliceMut::new(buffer)];
    let fd = socket.as_fd().as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), flags)?;
    let peer = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            // The source of answers, to a broadcast too.
            let ip = Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr));
            Some(Local { ip: ip.into(), interface: 0 })
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            let interface = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            Some(Local { ip: ip.into(), interface }).filter(|_| !ip.is_multicast())
        }
        _ => None,
    });
    Ok((message.bytes, peer, local))
}

/// Sends one packet, from `local` where it is known.
pub(super) fn send(
    socket: &impl AsFd,
    payload: &[u8],
    peer: SocketAddr,
    local: Option<Local>,
) -> io::Result<()> {
    let (v4, v6);
    let from = match local {
        Some(Local { ip: IpAddr::V4(ip), .. }) => {
            let address = in_addr { s_addr: ip.to_bits().to_be() };
            v4 = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: address };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Some(Local { ip: IpAddr::V6(ip), interface }) => {
            let address = in6_addr { s6_addr: ip.octets() };
            v6 = in6_pktinfo { ipi6_addr: address, ipi6_ifindex: interface };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        None => None,
    };
    let fd = socket.as_fd().as_raw_fd();
    let peer = SockaddrStorage::from(peer);
    let flags = MsgFlags::MSG_DONTWAIT;
    sendmsg(fd, &[IoSlice::new(payload)], from.as_slice(), flags, Some(&peer))?;
    Ok(())
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || storage.as_sockaddr_in().map(|a| SocketAddrV4::from(*a).into());
    let v6 = || storage.as_sockaddr_in6().map(|a| SocketAddrV6::from(*a).into());
    v4().or_else(v6)
}
