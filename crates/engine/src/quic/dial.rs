//! Dialling: a client connection on a socket of its own, from the first packet to its end or to the
//! end of the try.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use noq::{Connecting, Endpoint, EndpointConfig, TransportConfig};
use noq_proto::{RandomConnectionIdGenerator, crypto::rustls::QuicClientConfig};
use tokio::time::timeout;

use crate::{
    boundary::{
        command::ConnectConfig,
        event::{Event, Failure, FailureCause},
    },
    error::EngineError,
    panics::guarded,
    queue::SendQueue,
    quic::{
        CID_LEN, VERSION,
        driver::LocalTasks,
        ingress,
        transport::{self, CLIENT_RECEIVE_QUEUE},
        udp::{self, Udp},
    },
    shard::Shard,
    table::{Peer, Side, remote_of},
    tunnel::deliver::deliver,
};

/// Begins a try to connect; [`cancel`] ends it.
pub(crate) fn begin(shard: &Rc<Shard>, request: u64, config: ConnectConfig) {
    let dialling = shard.clone();
    run(shard, request, async move { connect(&dialling, request, config).await });
}

/// Runs a try. A panic of it is a failure.
pub(crate) fn run(shard: &Rc<Shard>, request: u64, work: impl Future<Output = ()> + 'static) {
    let dialling = shard.clone();
    let task = tokio::task::spawn_local(async move {
        if guarded(work).await.is_err() {
            dialling.shared.counters.connection_panics.add(1);
            let failure = Failure::local("internal error");
            dialling.shared.outbox.push(Event::ConnectFailed { request, failure });
        }
        dialling.dials.borrow_mut().remove(&request);
    });
    shard.dials.borrow_mut().insert(request, task.abort_handle());
}

/// Ends an abandoned try without an event. A try that has succeeded goes on.
pub(crate) fn cancel(shard: &Shard, request: u64) {
    if let Some(task) = shard.dials.borrow_mut().remove(&request) {
        task.abort();
    }
}

/// Opens a client connection on a socket of its own and runs it to its end.
async fn connect(shard: &Rc<Shard>, request: u64, config: ConnectConfig) {
    let begun = Instant::now();
    match connection(shard, &config).await {
        Err(failure) => shard.shared.outbox.push(Event::ConnectFailed { request, failure }),
        Ok((endpoint, connection)) => {
            let remote = remote_of(&connection).unwrap_or(config.remote);
            let side = Side::Dialled { endpoint: endpoint.clone(), datagram_limit: None };
            let queue = SendQueue::new(connection, config.send_queue);
            let reader = |id, connection| {
                let shard = shard.clone();
                async move {
                    let Shard { shared, tunnels, peers, .. } = &*shard;
                    let end = guarded(deliver(tunnels, peers, shared, id, connection)).await;
                    shard.ended(id, end);
                    endpoint.wait_idle().await;
                }
            };
            let peer = Peer::new(queue, remote, side);
            shard.admit(peer, Some(request), begun.elapsed(), reader);
        }
    }
}

/// A try, whose socket sends no farewell if the relay was silent: a relay that comes back would
/// take each one for the begin of a connection.
struct Try(Arc<Udp>);

impl Drop for Try {
    fn drop(&mut self) {
        let contact = &self.0.contact;
        if !contact.heard() {
            contact.mute();
        }
    }
}

async fn connection(
    shard: &Shard,
    config: &ConnectConfig,
) -> Result<(Endpoint, noq::Connection), Failure> {
    let crypto = config.tls.quic(&config.alpn).map_err(Failure::local)?;
    let transport = transport::client(config).map_err(Failure::local)?;
    client(shard, config, crypto, transport).await
}

/// Connects from a socket of its own.
pub(crate) async fn client(
    shard: &Shard,
    config: &ConnectConfig,
    crypto: QuicClientConfig,
    transport: TransportConfig,
) -> Result<(Endpoint, noq::Connection), Failure> {
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
    let socket = ingress::client(udp.clone(), shard.egress.clone());
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

/// The result of a handshake, unless the host reports a closed port before it answers.
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

/// Waits until the host reports a closed port. After its first answer such a report is ignored,
/// since anybody may have sent it.
async fn port_closed(udp: &Udp) {
    loop {
        udp.refusal().await;
        if !udp.contact.heard() {
            return;
        }
    }
}

fn udp_socket(shard: &Shard, bind: SocketAddr) -> Result<Arc<Udp>, EngineError> {
    let (socket, _) = udp::bind(bind, CLIENT_RECEIVE_QUEUE)?;
    Udp::new(socket, shard.shared.counters.clone())
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
        .rebind_abstract(ingress::client(udp, shard.egress.clone()))
        .map_err(|e| EngineError::of("rebind", e))
}

#[cfg(test)]
mod tests {
    use noq_udp::Transmit;

    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_heard_of_after_one_packet() {
        let (socket, _) = udp::bind((Ipv4Addr::UNSPECIFIED, 0).into(), 4096).unwrap();
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
