//! Dialling: a client connection on a socket of its own, from the first packet to its end or to the
//! end of the try.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use noq::{Connecting, Endpoint, EndpointConfig, VarInt};
use noq_proto::RandomConnectionIdGenerator;
use tokio::{sync::Notify, time::timeout};

use crate::{
    bucket::Bucket,
    command::ConnectConfig,
    connection,
    driver::LocalTasks,
    endpoint::common_transport,
    error::EngineError,
    event::{Event, Failure, FailureCause},
    panics::guarded,
    quic::{CID_LEN, VERSION},
    relay::Relay,
    shard::{Peer, Shard, remote_of},
    socket::{self, Udp},
};

/// A client's DATAGRAM queues, in bytes.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;

/// Begins a try; [`cancel`] ends it.
pub(crate) fn begin(shard: &Rc<Shard>, request: u64, config: ConnectConfig) {
    let dialling = shard.clone();
    let task = tokio::task::spawn_local(async move {
        if guarded(connect(&dialling, request, config)).await.is_err() {
            dialling.counters.connection_panics.add(1);
            let failure = Failure::local("internal error");
            dialling.outbox.push(Event::ConnectFailed { request, failure });
        }
        dialling.dials.borrow_mut().remove(&request);
    });
    shard.dials.borrow_mut().insert(request, task.abort_handle());
}

/// Ends a try that nobody waits for any more; nothing is said of it. One that has succeeded goes on.
pub(crate) fn cancel(shard: &Shard, request: u64) {
    if let Some(task) = shard.dials.borrow_mut().remove(&request) {
        task.abort();
    }
}

/// Opens a client connection on a socket of its own and runs it to its end.
async fn connect(shard: &Rc<Shard>, request: u64, config: ConnectConfig) {
    let begun = Instant::now();
    match client(shard, &config).await {
        Err(failure) => shard.outbox.push(Event::ConnectFailed { request, failure }),
        Ok((endpoint, connection)) => {
            let remote = remote_of(&connection).unwrap_or(config.remote);
            let unlimited = Bucket::new(u32::MAX, u32::MAX);
            let mut peer = Peer::new(connection, remote, (unlimited, unlimited));
            peer.endpoint = Some(endpoint.clone());
            peer.send_queue = config.send_queue;
            let deliver = |id, connection| {
                let shard = shard.clone();
                async move {
                    connection::deliver(shard, id, connection).await;
                    endpoint.wait_idle().await;
                }
            };
            shard.admit(peer, Some(request), begun.elapsed(), deliver);
        }
    }
}

/// What a client's socket has heard of its relay.
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

    /// Whether nothing is sent any more.
    pub(crate) fn muted(&self) -> bool {
        self.muted.load(Ordering::Relaxed)
    }

    fn heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }
}

/// A try whose end nobody has heard of is not told to anybody: a relay that comes back would take
/// the farewell of each for the begin of a connection.
struct Try(Arc<Udp>);

impl Drop for Try {
    fn drop(&mut self) {
        let contact = &self.0.contact;
        if !contact.heard() {
            contact.muted.store(true, Ordering::Relaxed);
        }
    }
}

async fn client(
    shard: &Shard,
    config: &ConnectConfig,
) -> Result<(Endpoint, noq::Connection), Failure> {
    let crypto = config.tls.quic(&config.alpn).map_err(Failure::local)?;
    let idle = Duration::from_millis(config.idle_timeout_ms);
    let mut transport = common_transport(idle, 1350).map_err(Failure::local)?;
    let keep_alive =
        (config.keep_alive_ms > 0).then(|| Duration::from_millis(config.keep_alive_ms));
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .datagram_receive_buffer_size(Some(RECEIVE_QUEUE))
        .datagram_send_buffer_size(Relay::transport_queue(config.send_queue))
        .keep_alive_interval(keep_alive)
        .receive_observed_address_reports(config.observe_address);
    let mut client = noq::ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport));
    let udp = udp_socket(shard, config.bind).map_err(Failure::local)?;
    let mut endpoint = EndpointConfig::default();
    endpoint
        .supported_versions(vec![VERSION])
        .cid_generator(Arc::new(|| Box::new(RandomConnectionIdGenerator::new(CID_LEN))))
        .max_udp_payload_size(config.max_udp_payload)
        .map_err(|e| Failure::local(format!("largest UDP payload: {e}")))?;
    let runtime = Arc::new(LocalTasks(shard.egress.clone()));
    let socket = udp.client(shard.egress.clone());
    let endpoint = Endpoint::new_with_abstract_socket(endpoint, None, socket, runtime)
        .map_err(|e| Failure::local(format!("endpoint: {e}")))?;
    udp.report_refusal(true);
    let connecting = endpoint
        .connect_with(client, config.remote, &config.server_name)
        .map_err(Failure::local)?;
    let current = Try(udp.clone());
    let limit = Duration::from_millis(config.handshake_timeout_ms);
    let connection = match timeout(limit, answer(connecting, &udp, config.remote)).await {
        Ok(answer) => answer?,
        Err(_) => {
            let reason = format!("no answer from {} within {limit:?}", config.remote);
            return Err(Failure::new(FailureCause::Silent, reason));
        }
    };
    drop(current);
    udp.report_refusal(false);
    Ok((endpoint, connection))
}

/// What a handshake comes to, unless the host says before it answers that nobody listens there.
async fn answer(
    connecting: Connecting,
    udp: &Udp,
    remote: SocketAddr,
) -> Result<noq::Connection, Failure> {
    tokio::select! {
        biased;
        connected = connecting => connected.map_err(|e| Failure::of(&e)),
        () = port_closed(udp) => {
            let reason = format!("nothing listens on UDP port {} of {}", remote.port(), remote.ip());
            Err(Failure::new(FailureCause::PortClosed, reason))
        }
    }
}

/// Waits until the host says that nobody listens there, unless something has been heard from it: then
/// what says so may be anybody.
async fn port_closed(udp: &Udp) {
    loop {
        udp.refusal().await;
        if !udp.contact.heard() {
            return;
        }
    }
}

fn udp_socket(shard: &Shard, bind: SocketAddr) -> Result<Arc<Udp>, EngineError> {
    let (socket, _) = socket::bind(bind, RECEIVE_QUEUE)?;
    Udp::new(socket, shard.counters.clone())
}

/// Moves a client to a new local port.
pub(crate) fn rebind(shard: &Shard, endpoint: &Endpoint) -> Result<(), EngineError> {
    let local = endpoint.local_addr().map_err(|e| EngineError::of("local address", e))?;
    let any: IpAddr = match local.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let udp = udp_socket(shard, SocketAddr::new(any, 0))?;
    endpoint
        .rebind_abstract(udp.client(shard.egress.clone()))
        .map_err(|e| EngineError::of("rebind", e))
}

#[cfg(test)]
mod tests {
    use noq_udp::Transmit;

    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_heard_of_after_one_packet() {
        let (socket, _) = socket::bind((Ipv4Addr::UNSPECIFIED, 0).into(), 4096).unwrap();
        let udp = Udp::new(socket, Arc::default()).unwrap();
        udp.report_refusal(true);
        udp.room(false).await;
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let transmit = Transmit {
            destination: closed,
            ecn: None,
            contents: b"x",
            segment_size: None,
            src_ip: None,
        };
        udp.try_send(&transmit).unwrap();
        timeout(Duration::from_secs(30), port_closed(&udp)).await.unwrap();
    }
}
