//! The listening endpoints with their accept loop; clients' endpoints are in `dial.rs`.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use noq::{Connection, Endpoint, EndpointConfig, Incoming, ServerConfig};
use noq_proto::RandomConnectionIdGenerator;
use tokio::time::timeout;

use crate::{
    boundary::event::{ConnId, Event, Failure, FailureCause},
    bucket::Bucket,
    config::ListenConfig,
    error::EngineError,
    panics::guarded,
    queue::SendQueue,
    quic::{
        CID_LEN, VERSION,
        admission::{Admission, Attempt, Place, Verdict},
        client_chain::Refusal,
        driver::LocalTasks,
        handshakes::{self, Handshake},
        ingress, join, joins,
        lane::{self, Lane},
        listener::Listener,
        retry::TokenKey,
        tls::ServerTls,
        transport,
        udp::{self, Udp},
    },
    relay::{delivery::Relay, forward::Forwarder, routes::Routes, serve::serve},
    shard::Shard,
    signaling::streams,
    table::{Health, Peer, Side, remote_of},
};

/// Failed handshakes reported one by one in a second; the counters have all of them, so that the
/// control plane can count the others.
const FAILURES_PER_SECOND: u32 = 10;
/// The remaining reports of this second, for all listening endpoints together.
type Reports = Rc<RefCell<Bucket>>;

/// Binds every address and starts accepting; returns what was bound.
pub(crate) fn listen(
    shard: &Rc<Shard>,
    config: ListenConfig,
) -> Result<(Vec<SocketAddr>, Vec<String>), EngineError> {
    if shard.listener.borrow().is_some() {
        return Err(EngineError("the engine listens already".into()));
    }
    let forwarder = Forwarder::new(&config.relay, Routes::new(shard.board.clone()))?;
    let server = server_config(shard, &config)?;
    let join = join::server_config(&config, &server)?;
    let (mut endpoints, mut lanes) = (Vec::new(), Vec::new());
    let mut warnings = Vec::new();
    let bound = config.bind.iter().map(|address| udp::bind(*address, config.socket_buffer));
    let adopted = config.sockets.iter().map(|socket| udp::adopt(socket, config.socket_buffer));
    for opened in bound.chain(adopted) {
        let (socket, warned) = opened?;
        let udp = Udp::new(socket, shard.shared.counters.clone())?;
        let lane = Arc::<Lane>::default();
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(&config)?,
            Some(server.clone()),
            ingress::server(udp, shard.egress.clone(), lane.clone()),
            Arc::new(LocalTasks(shard.egress.clone())),
        )
        .map_err(|e| EngineError::of("endpoint", e))?;
        endpoints.push(endpoint);
        lanes.push(lane);
        warnings.extend(warned);
    }
    let bound = endpoints
        .iter()
        .map(|e| e.local_addr().map_err(|e| EngineError::of("bound address", e)))
        .collect::<Result<Vec<_>, _>>()?;
    *shard.relay.borrow_mut() = Some(Relay::new(config.relay.clone(), forwarder));
    let admission = Admission::new(&config);
    let listener = Listener { config, admission, endpoints: endpoints.clone(), join };
    *shard.listener.borrow_mut() = Some(listener);
    let budget = shard.handshakes.clone();
    spawn(shard, async move { budget.run().await });
    let reports = Rc::new(RefCell::new(Bucket::new(FAILURES_PER_SECOND, FAILURES_PER_SECOND)));
    for (endpoint, lane) in endpoints.into_iter().zip(lanes) {
        let (waiting, budget) = (lane.clone(), shard.handshakes.clone());
        spawn(shard, async move { waiting.run(&budget).await });
        let (accepting, reports) = (shard.clone(), reports.clone());
        spawn(shard, async move { accept(&accepting, &endpoint, &lane, &reports).await });
    }
    Ok((bound, warnings))
}

/// Uses other certificates for the handshakes to come.
pub(crate) fn set_tls(shard: &Shard, tls: Arc<ServerTls>) -> Result<(), EngineError> {
    if let Some(listener) = &mut *shard.listener.borrow_mut() {
        listener.config.tls = tls;
        let server = server_config(shard, &listener.config)?;
        listener.join = join::server_config(&listener.config, &server)?;
        for endpoint in &listener.endpoints {
            endpoint.set_server_config(Some(server.clone()));
        }
    }
    Ok(())
}

/// Runs a part that the listener cannot do without.
fn spawn(shard: &Rc<Shard>, part: impl Future<Output = ()> + 'static) {
    let shard = shard.clone();
    tokio::task::spawn_local(async move {
        if guarded(part).await.is_err() {
            shard.shared.outbox.push(Event::Failed { reason: "a defect ended an endpoint".into() });
        }
    });
}

async fn accept(shard: &Rc<Shard>, endpoint: &Endpoint, lane: &Arc<Lane>, reports: &Reports) {
    while let Some(incoming) = endpoint.accept().await {
        let (verdict, admitted) = verdict(shard, &incoming);
        let counters = &shard.shared.counters;
        match (verdict, admitted) {
            (Verdict::Join(verdict), admitted) => {
                let admitted = match admitted {
                    Some(Admitted::Join(place, config)) => Some((place, config)),
                    _ => None,
                };
                join::attempt(shard, lane, incoming, verdict, admitted);
            }
            (Verdict::Accept, Some(Admitted::Handshake(place))) => {
                counters.accepted.add(1);
                let (shard, reports) = (shard.clone(), reports.clone());
                let under_way = lane.begin(incoming.remote_address());
                tokio::task::spawn_local(async move {
                    let handshake = handshake(&shard, incoming, place, under_way, &reports);
                    if guarded(handshake).await.is_err() {
                        shard.shared.counters.connection_panics.add(1);
                    }
                });
            }
            (Verdict::Retry, _) => match incoming.retry() {
                Ok(()) => counters.retry_sent.add(1),
                // Its token proves another address kind; a Retry may be answered only once.
                Err(e) => e.into_incoming().refuse(),
            },
            (Verdict::RefuseRate, _) => {
                counters.handshake_refused_rate.add(1);
                incoming.refuse();
            }
            (Verdict::RefuseFull | Verdict::Accept, _) => {
                counters.handshake_refused_full.add(1);
                incoming.refuse();
            }
            (Verdict::RefuseToken, _) => {
                counters.retry_invalid.add(1);
                incoming.refuse();
            }
            (Verdict::IgnoreCongested, _) => {
                counters.handshake_ignored_backpressure.add(1);
                incoming.ignore();
            }
            (Verdict::IgnoreSource, _) => {
                counters.handshake_ignored_source.add(1);
                incoming.ignore();
            }
        }
    }
    let draining = shard.listener.borrow().as_ref().is_none_or(|l| !l.admission.accepting);
    if !draining {
        shard.shared.outbox.push(Event::Failed { reason: "an endpoint stopped by itself".into() });
    }
}

/// An attempt that is let in.
enum Admitted {
    Handshake(Place),
    Join(joins::Place, Arc<ServerConfig>),
}

/// The verdict on an attempt, and its place if it is accepted.
fn verdict(shard: &Shard, incoming: &Incoming) -> (Verdict, Option<Admitted>) {
    let Some(Listener { admission, join, .. }) = &mut *shard.listener.borrow_mut() else {
        return (Verdict::RefuseFull, None);
    };
    let mut attempt = Attempt {
        remote: incoming.remote_address(),
        token: incoming.remote_address_validated().then(|| incoming.orig_dst_cid()),
        join: false,
        connections: shard.peers.borrow().len(),
        congested: shard.shared.outbox.congested(),
    };
    attempt.join = join.is_some() && admission.goes_by_purpose(attempt) && join::is_join(incoming);
    let now = Instant::now();
    let verdict = admission.decide(attempt, now);
    if attempt.token.is_some() && verdict != Verdict::RefuseToken {
        shard.shared.counters.retry_validated.add(1);
    }
    let admitted = match (verdict, join) {
        (Verdict::Accept, _) => Some(Admitted::Handshake(admission.enter(attempt, now))),
        (Verdict::Join(joins::Verdict::Accept), Some(config)) => {
            Some(Admitted::Join(admission.enter_join(attempt, now), config.clone()))
        }
        _ => None,
    };
    (verdict, admitted)
}

async fn handshake(
    shard: &Rc<Shard>,
    incoming: Incoming,
    place: Place,
    under_way: lane::UnderWay,
    reports: &Reports,
) {
    let remote = incoming.remote_address();
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let begun = Instant::now();
    let limit = match &*shard.listener.borrow() {
        Some(listener) => listener.config.handshake_timeout,
        None => Duration::ZERO,
    };
    let handshake = Handshake::default();
    let budget = &shard.handshakes;
    let outcome = timeout(limit, async {
        budget.ready_for_attempt().await;
        handshakes::accepting(budget, &handshake, || incoming.accept())?.await
    })
    .await;
    drop((place, handshake, under_way));
    let failure = match outcome {
        Ok(Ok(connection)) => {
            shard.shared.counters.handshake_ok.add(1);
            let remote = remote_of(&connection).unwrap_or(remote);
            let peer = accepted(shard, connection, remote);
            let reader = |id, connection| read(shard.clone(), id, connection);
            return shard.admit(peer, None, begun.elapsed(), reader);
        }
        Ok(Err(e)) => match Refusal::of(&e) {
            Some(refusal) => {
                shard.shared.counters.handshake_refused_chain.add(1);
                Failure::local(refusal)
            }
            None => {
                shard.shared.counters.handshake_failed.add(1);
                Failure::of(&e)
            }
        },
        Err(_) => {
            shard.shared.counters.handshake_timeout.add(1);
            Failure::new(FailureCause::Silent, format!("not completed within {limit:?}"))
        }
    };
    if reports.borrow_mut().take(Instant::now()) {
        shard.shared.outbox.offer(Event::HandshakeFailed { remote, failure });
    }
}

/// The reader of a connection, for its whole life: each connection pays for its size.
async fn read(shard: Rc<Shard>, id: ConnId, connection: Connection) {
    let _streams = streams::spawn(&shard, id, &connection);
    let Shard { shared, relay, peers, .. } = &*shard;
    let end = guarded(serve(relay, peers, shared, id, connection)).await;
    shard.ended(id, end);
}

fn accepted(shard: &Shard, connection: Connection, remote: SocketAddr) -> Peer {
    let rate = |n: u32| Bucket::new(n, n);
    let (send_queue, control, icmp) = match &*shard.listener.borrow() {
        Some(Listener { config, .. }) => (
            config.send_queue,
            rate(config.control_per_connection),
            rate(config.relay.icmp_per_second),
        ),
        None => (0, rate(1), rate(1)),
    };
    let side = Side::Accepted { control, icmp, health: Health::default() };
    Peer::new(SendQueue::new(connection, send_queue), remote, side)
}

fn server_config(shard: &Shard, config: &ListenConfig) -> Result<ServerConfig, EngineError> {
    for (name, key) in [("token", &config.token_key), ("reset", &config.reset_key)] {
        if key.len() < 32 {
            return Err(EngineError(format!("the {name} key has fewer than 32 bytes")));
        }
    }
    let token_key = TokenKey::new(&config.token_key, shard.shared.counters.clone());
    let crypto = Arc::new(config.tls.quic(&config.alpn)?);
    let mut server = ServerConfig::new(crypto, Arc::new(token_key));
    server
        .retry_token_lifetime(config.retry_token_lifetime)
        .migration(true)
        .max_incoming(config.max_half_open)
        .incoming_buffer_size(16 * 1024)
        .incoming_buffer_size_total(8 * 1024 * 1024)
        .transport_config(Arc::new(transport::server(config)?));
    Ok(server)
}

fn endpoint_config(config: &ListenConfig) -> Result<EndpointConfig, EngineError> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &config.reset_key);
    let mut endpoint = EndpointConfig::new(Arc::new(key));
    let lifetime = config.cid_lifetime;
    endpoint.supported_versions(vec![VERSION]).cid_generator(Arc::new(move || {
        let mut ids = RandomConnectionIdGenerator::new(CID_LEN);
        ids.set_lifetime(lifetime);
        Box::new(ids)
    }));
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of<F: Future>(_: fn(Rc<Shard>, ConnId, Connection) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn what_reads_from_a_connection_is_small() {
        let size = size_of(read);
        assert!(size <= 1024, "{size} bytes");
    }
}
