//! Sockets and transport settings of the generator.

use std::{
    any::Any,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use noq::{
    Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig,
    congestion::{Controller, ControllerFactory},
};
use noq_proto::RandomConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Failure, options::Common};

/// Bytes of the largest UDP payload, as the clients in the field set it.
const UDP_PAYLOAD: u16 = 1350;
/// Bytes of a client's connection ids, as the clients in the field set it.
const CONNECTION_ID: usize = 20;
/// Bytes asked for in each direction of each socket.
const SOCKET_BUFFER: usize = 4 << 20;
/// Bytes of DATAGRAMs a connection may hold in each direction.
pub const DATAGRAM_BUFFER: usize = 8 << 20;

/// A window that never shrinks: the pacer of the mode sets the load, not the loss that it is to
/// measure.
#[derive(Debug, Clone)]
struct FixedWindow;

impl FixedWindow {
    /// Above 4 GiB the library's own pacer is off as well.
    const BYTES: u64 = 8 << 30;
}

impl Controller for FixedWindow {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: bool, _: u64, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        Self::BYTES
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        Self::BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for FixedWindow {
    fn build(self: Arc<Self>, _: Instant, _: u16) -> Box<dyn Controller> {
        Box::new(Self)
    }
}

/// Transport settings; `keep_alive` is the interval of PINGs on a quiet connection.
pub fn settings(keep_alive: Option<Duration>) -> Arc<TransportConfig> {
    Arc::new(common(keep_alive))
}

/// Settings of a client that takes so many bytes of a stream unread, and keeps a frame that is on its way.
pub fn narrow(window: u32) -> Arc<TransportConfig> {
    let mut settings = common(Some(Duration::from_secs(10)));
    settings.stream_receive_window(window.into()).send_window(64 << 10);
    Arc::new(settings)
}

fn common(keep_alive: Option<Duration>) -> TransportConfig {
    let mut settings = TransportConfig::default();
    settings
        .max_idle_timeout(Some(
            Duration::from_secs(30).try_into().expect("30 s fits an idle timeout"),
        ))
        .keep_alive_interval(keep_alive)
        .initial_mtu(UDP_PAYLOAD)
        .mtu_discovery_config(None)
        .max_concurrent_uni_streams(0_u8.into())
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .congestion_controller_factory(Arc::new(FixedWindow));
    settings
}

fn endpoint(bind: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint, Failure> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.bind(&bind.into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(UDP_PAYLOAD)?;
    config.cid_generator(Arc::new(|| Box::new(RandomConnectionIdGenerator::new(CONNECTION_ID))));
    Ok(Endpoint::new(config, server, UdpSocket::from(socket), Arc::new(TokioRuntime))?)
}

/// One client socket for each loopback source address of the options.
pub fn clients(common: &Common) -> Result<Vec<Endpoint>, Failure> {
    if !common.server.ip().is_loopback() {
        return Err(format!(
            "{} is not a loopback address: this program only loads servers of its own host",
            common.server
        )
        .into());
    }
    match common.server.ip() {
        IpAddr::V4(_) => (1..=common.sources)
            .map(|last| endpoint(SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), 0), None))
            .collect(),
        IpAddr::V6(address) => Ok(vec![endpoint(SocketAddr::new(address.into(), 0), None)?]),
    }
}

/// An endpoint that accepts connections on the loopback address of the relay's family.
pub fn listener(common: &Common, server: ServerConfig) -> Result<Endpoint, Failure> {
    endpoint(SocketAddr::new(common.server.ip(), 0), Some(server))
}
