//! The UDP socket under QUIC: its buffers, and errors of the kernel, which are counted and end
//! nothing.

use std::{
    fmt, io,
    net::SocketAddr,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use noq_udp::{Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, sync::Notify};

use crate::{
    boundary::counters::{Counter, Counters},
    error::EngineError,
    quic::batch::Batch,
};

/// The pause before the next try at a socket whose reported room was not there.
const REST: Duration = Duration::from_millis(10);

/// A bound UDP socket with its kernel features.
pub(crate) struct Udp {
    pub(crate) io: UdpSocket,
    pub(crate) state: UdpSocketState,
    /// The packets that have not left yet. One thread uses the socket, so this lock is never
    /// contended.
    batch: Mutex<Batch>,
    pub(crate) counters: Arc<Counters>,
    /// The news that a client's socket has of its relay.
    pub(crate) contact: Contact,
    /// As if the kernel had no room any more.
    #[cfg(test)]
    pub(crate) full: std::sync::atomic::AtomicBool,
}

/// Binds `address` and asks for buffers of `buffer` bytes each way.
///
/// An IPv6 wildcard takes IPv4 too. Returns one sentence for each resource of which the kernel gave
/// less.
pub(crate) fn bind(
    address: SocketAddr,
    buffer: usize,
) -> Result<(std::net::UdpSocket, Vec<String>), EngineError> {
    let error = |what: &str, e: io::Error| EngineError(format!("{what} {address}: {e}"));
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))
        .map_err(|e| error("cannot open a UDP socket for", e))?;
    if address.is_ipv6() {
        socket
            .set_only_v6(!address.ip().is_unspecified())
            .map_err(|e| error("cannot choose the address families of", e))?;
    }
    socket.bind(&address.into()).map_err(|e| error("cannot bind", e))?;
    prepare(socket, buffer)
}

/// Takes over a bound UDP socket; the caller's descriptor stays open. Otherwise as [`bind`].
pub(crate) fn adopt(
    socket: &OwnedFd,
    buffer: usize,
) -> Result<(std::net::UdpSocket, Vec<String>), EngineError> {
    let error = |e| EngineError::of("cannot take over a socket", e);
    let socket = Socket::from(socket.try_clone().map_err(error)?);
    let is_udp = socket.r#type().map_err(error)? == Type::DGRAM
        && socket.local_addr().map_err(error)?.as_socket().is_some();
    if !is_udp {
        return Err(EngineError("cannot take over a socket: it is not a UDP socket".into()));
    }
    prepare(socket, buffer)
}

fn prepare(
    socket: Socket,
    buffer: usize,
) -> Result<(std::net::UdpSocket, Vec<String>), EngineError> {
    socket.set_nonblocking(true).map_err(|e| EngineError::of("cannot unblock a socket", e))?;
    let mut warnings = Vec::new();
    let _ = socket.set_recv_buffer_size(buffer);
    let _ = socket.set_send_buffer_size(buffer);
    let given = [
        ("receive", "rmem_max", socket.recv_buffer_size()),
        ("send", "wmem_max", socket.send_buffer_size()),
    ];
    for (way, sysctl, size) in given {
        // Linux reports twice the usable size (socket(7)).
        let size = size.unwrap_or(0) / 2;
        if size < buffer {
            warnings.push(format!(
                "the kernel gave a UDP {way} buffer of {size} bytes instead of {buffer}: bursts \
                 will be lost; set net.core.{sysctl}={buffer}"
            ));
        }
    }
    Ok((socket.into(), warnings))
}

impl Udp {
    pub(crate) fn new(
        socket: std::net::UdpSocket,
        counters: Arc<Counters>,
    ) -> Result<Arc<Self>, EngineError> {
        let state = UdpSocketState::new((&socket).into())
            .map_err(|e| EngineError::of("UDP socket options", e))?;
        let io = UdpSocket::from_std(socket).map_err(|e| EngineError::of("UDP socket", e))?;
        Ok(Arc::new(Self {
            io,
            state,
            batch: Mutex::default(),
            counters,
            contact: Contact::default(),
            #[cfg(test)]
            full: false.into(),
        }))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// Packets that one system call takes.
    pub(crate) fn max_segments(&self) -> NonZeroUsize {
        self.state.max_gso_segments()
    }

    /// Whether the kernel reports ICMP errors of what this socket sends (ip(7), IP_RECVERR). Where it
    /// cannot, a closed port is as silent as a firewall.
    pub(crate) fn report_refusal(&self, report: bool) {
        let _ = setsockopt(&self.io, sockopt::Ipv4RecvErr, &report);
        let _ = setsockopt(&self.io, sockopt::Ipv6RecvErr, &report);
    }

    /// Waits until the remote host refuses a packet, which makes nothing readable.
    pub(crate) async fn refusal(&self) {
        let reported = self.io.async_io(Interest::ERROR, || match self.io.take_error() {
            Ok(Some(e)) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        });
        tokio::select! {
            _ = reported => {}
            // A packet sent or received meanwhile has taken the error.
            () = self.contact.refused.notified() => {}
        }
    }

    /// The meaning of the kernel's refusal to send: no room yet, or a lost packet (EPERM,
    /// ENETUNREACH, ENOBUFS, EINVAL ...).
    fn lost(&self, error: io::Error) -> io::Result<()> {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.counters.udp_send_waits.add(1);
            return Err(error);
        }
        // A probe for a larger MTU found the limit of the first link: not an error.
        if !noq_udp::is_msg_size_err(&error) {
            self.failed(&error, &self.counters.udp_send_errors);
        }
        Ok(())
    }

    /// Counts an error that ends nothing.
    pub(crate) fn failed(&self, error: &io::Error, counter: &Counter) {
        counter.add(1);
        if error.kind() == io::ErrorKind::ConnectionRefused {
            self.contact.refused.notify_one();
        }
    }

    /// The packets that wait to leave by this socket.
    pub(crate) fn batch(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room in the socket; `again` when the last such wait was for nothing. A failing wait
    /// is no worse than a failing send: the next try tells.
    pub(crate) async fn room(&self, again: bool) {
        if again {
            tokio::time::sleep(REST).await;
        }
        let _ = self.io.writable().await;
    }

    /// Counts packets that are not sent, since there was no room for too long.
    pub(crate) fn given_up(&self, packets: usize) {
        self.counters.udp_dropped_socket_full.add(packets as u64);
    }

    /// Gives packets to the kernel. `WouldBlock` is the only error: any other refusal is a lost
    /// packet, which QUIC repairs or reports.
    pub(crate) fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.contact.muted() {
            return Ok(());
        }
        let sent = self.io.try_io(Interest::WRITABLE, || {
            #[cfg(test)]
            if self.full.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.state.try_send((&self.io).into(), transmit)
        });
        match sent {
            Ok(()) => {
                let size = transmit.contents.len();
                let segments = transmit.segment_size.map_or(1, |s| size.div_ceil(s.max(1)));
                self.counters.udp_tx_datagrams.add(segments as u64);
                self.counters.udp_tx_bytes.add(size as u64);
                Ok(())
            }
            Err(e) => self.lost(e),
        }
    }
}

/// The news that a client's socket has of its relay.
#[derive(Debug, Default)]
pub(crate) struct Contact {
    heard: AtomicBool,
    muted: AtomicBool,
    /// The host refused a packet.
    pub(crate) refused: Notify,
}

impl Contact {
    /// Something has arrived.
    pub(crate) fn hear(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Sends nothing any more.
    pub(crate) fn mute(&self) {
        self.muted.store(true, Ordering::Relaxed);
    }

    /// Whether nothing is sent any more.
    pub(crate) fn muted(&self) -> bool {
        self.muted.load(Ordering::Relaxed)
    }

    pub(crate) fn heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Udp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Udp").field("io", &self.io).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_small_a_buffer_is_told_with_the_setting_that_limits_it() {
        let loopback = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        // More than the kernel can count.
        let (_, warnings) = bind(loopback, 1 << 31).unwrap();
        let [receive, send] = warnings.as_slice() else { panic!("{warnings:?}") };
        assert!(receive.contains("set net.core.rmem_max=2147483648"), "{receive}");
        assert!(send.contains("set net.core.wmem_max=2147483648"), "{send}");
        assert!(bind(loopback, 4096).unwrap().1.is_empty());
    }

    #[test]
    fn a_socket_that_is_handed_over_keeps_its_port() {
        let (given, _) = bind((std::net::Ipv4Addr::LOCALHOST, 0).into(), 4096).unwrap();
        let address = given.local_addr().unwrap();
        let given = OwnedFd::from(given);
        let (adopted, warnings) = adopt(&given, 4096).unwrap();
        assert_eq!((adopted.local_addr().unwrap(), warnings.len()), (address, 0));
        drop(adopted);
        assert!(bind(address, 4096).is_err(), "it is still open here");
    }

    #[test]
    fn only_udp_sockets_are_taken_over() {
        let tcp = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let unix = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for given in [OwnedFd::from(tcp), OwnedFd::from(unix), OwnedFd::from(file)] {
            assert!(adopt(&given, 4096).is_err());
        }
    }

    #[tokio::test]
    async fn what_the_kernel_refuses_is_a_lost_packet_and_nothing_worse() {
        let (socket, _) = bind((std::net::Ipv4Addr::LOCALHOST, 0).into(), 4096).unwrap();
        let udp = Udp::new(socket, Arc::default()).unwrap();
        let lost = |errno| udp.lost(io::Error::from_raw_os_error(errno));
        let (eperm, eagain, einval, emsgsize, enetunreach, enobufs) = (1, 11, 22, 90, 101, 105);
        for errno in [eperm, einval, enetunreach, enobufs, emsgsize] {
            assert!(lost(errno).is_ok(), "errno {errno}");
        }
        assert!(lost(eagain).is_err(), "a full socket is waited for");
        assert_eq!(udp.counters.udp_send_errors.get(), 4, "EMSGSIZE is no error");
    }
}
