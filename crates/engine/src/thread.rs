//! An engine's thread: its runtime, and the handling of messages to it.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use noq::VarInt;
use tokio::{sync::mpsc::UnboundedReceiver, task::LocalSet};

use crate::{
    boundary::{
        command::Command,
        counters::DropReason,
        event::{ConnId, Event, StreamEnd},
        limits::IdentityClass,
    },
    config::ListenConfig,
    error::EngineError,
    housekeeping,
    panics::contained,
    quic::{ask, dial, endpoint},
    shard::{Boards, Shard},
    shared::Shared,
    signaling::streams,
    table::Side,
    tunnel::config::{TunnelConfig, TunnelId},
};

/// The bound addresses, and warnings about resources of which the kernel gave less.
pub(crate) type Listening = Result<(Vec<SocketAddr>, Vec<String>), EngineError>;

/// A message to the thread.
pub(crate) enum Message {
    Commands(Vec<Command>),
    Listen(Box<ListenConfig>, mpsc::Sender<Listening>),
    Stop(Duration),
}

/// Runs until it is told to stop, or the handle is dropped.
pub(crate) fn run(
    shared: Shared,
    boards: Boards,
    inbox: UnboundedReceiver<Message>,
) -> Result<(), EngineError> {
    let shard = Rc::new(Shard::new(shared, boards));
    let idle = shard.handshakes.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || idle.on_idle())
        .build()
        .map_err(|e| EngineError::of("runtime", e))?;
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, serve(shard, inbox));
    Ok(())
}

async fn serve(shard: Rc<Shard>, mut inbox: UnboundedReceiver<Message>) {
    let mut housekeeping = tokio::task::spawn_local(housekeeping::run(shard.clone()));
    loop {
        let message = tokio::select! {
            message = inbox.recv() => message,
            _ = &mut housekeeping => {
                let reason = "a defect ended the housekeeping of the engine".into();
                return shard.shared.outbox.push(Event::Failed { reason });
            }
        };
        // The channel closes when the handle is dropped.
        let Some(message) = message else {
            return;
        };
        match message {
            Message::Commands(batch) => apply(&shard, batch),
            Message::Listen(config, answer) => {
                let _ = answer.send(endpoint::listen(&shard, *config));
            }
            Message::Stop(limit) => {
                let _ = tokio::time::timeout(limit, stop(&shard)).await;
                return;
            }
        }
    }
}

/// Closes every connection and waits until the closing packets are out.
async fn stop(shard: &Shard) {
    let mut endpoints = Vec::new();
    if let Some(listener) = &mut *shard.listener.borrow_mut() {
        listener.admission.accepting = false;
        endpoints.extend(listener.endpoints.iter().cloned());
    }
    for (_, peer) in shard.peers.borrow_mut().iter_mut() {
        contained(|| peer.connection().close(VarInt::from_u32(0), b""));
        if let Side::Dialled { endpoint, .. } = &peer.side {
            endpoints.push(endpoint.clone());
        }
    }
    for endpoint in endpoints {
        endpoint.close(VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
    }
}

fn apply(shard: &Rc<Shard>, batch: Vec<Command>) {
    for command in batch {
        match command {
            Command::SetService { service, targets } => {
                if let Some(relay) = &mut *shard.relay.borrow_mut() {
                    let peers = shard.peers.borrow();
                    let live = targets.into_iter().filter(|t| peers.get(t.conn).is_some());
                    relay.forwarder.set_service(&service, live.collect(), Instant::now());
                }
            }
            Command::SetAgent { conn, services, identity } => {
                if let Some(relay) = &mut *shard.relay.borrow_mut()
                    && let Some(quota) = shard.peers.borrow().get(conn).map(|p| p.quota)
                {
                    let quota = quota.unwrap_or(conn.0);
                    let now = Instant::now();
                    let own = relay.forwarder.set_agent(conn, &services, identity, quota, now);
                    if let Some(identity) = identity.filter(|_| !own.is_empty()) {
                        shard
                            .shared
                            .outbox
                            .push(Event::ReservedAddresses { identity, addresses: own });
                    }
                }
            }
            Command::SetLimits { conn, limiter, class, rates } => {
                shard.peers.borrow_mut().set_limits(conn, limiter, class, rates);
            }
            Command::SendDatagram { conn, data } => send(shard, conn, vec![data]),
            Command::SendDatagrams { conn, data } => send(shard, conn, data),
            Command::SendSignal { conn, payload, to_agent } => {
                streams::send(shard, conn, &payload, to_agent);
            }
            Command::EndSignaling { conn } => streams::condemn(shard, conn, StreamEnd::Condemned),
            Command::LookUpRoute { request, agent, service } => {
                look_up_route(shard, request, agent, &service);
            }
            Command::Introduce { agent, connector } => {
                if let Some(relay) = &mut *shard.relay.borrow_mut() {
                    relay.forwarder.introduce(agent, connector);
                }
            }
            Command::Separate { agent, connector } => {
                if let Some(relay) = &mut *shard.relay.borrow_mut() {
                    relay.forwarder.separate(agent, connector, Instant::now());
                }
            }
            Command::Close { conn, code, reason } => {
                if let Some(peer) = shard.peers.borrow().get(conn) {
                    let code = VarInt::from_u64(code).unwrap_or(VarInt::MAX);
                    contained(|| peer.connection().close(code, &reason));
                }
            }
            Command::SetServerTls { tls } => {
                if let Err(e) = endpoint::set_tls(shard, tls) {
                    shard.shared.outbox.push(Event::Failed { reason: e.to_string() });
                }
            }
            Command::SetAccepting { accepting } => {
                if let Some(listener) = &mut *shard.listener.borrow_mut() {
                    listener.admission.accepting = accepting;
                }
            }
            Command::Connect { request, config } => {
                dial::begin(shard, request, *config);
            }
            Command::JoinReply { request, data, refused } => {
                if let Some(listener) = &mut *shard.listener.borrow_mut() {
                    listener.admission.joins.reply(request, data, refused, Instant::now());
                }
            }
            Command::Ask { request, config, data } => ask::begin(shard, request, *config, data),
            Command::CancelConnect { request } => dial::cancel(shard, request),
            Command::Rebind { conn } => {
                let endpoint = match shard.peers.borrow().get(conn).map(|peer| &peer.side) {
                    Some(Side::Dialled { endpoint, .. }) => Some(endpoint.clone()),
                    _ => None,
                };
                if let Some(Err(e)) = endpoint.map(|e| dial::rebind(shard, &e)) {
                    shard.shared.outbox.push(Event::Failed { reason: e.to_string() });
                }
            }
            Command::OpenTunnel { tunnel, config } => open_tunnel(shard, tunnel, config),
            Command::SetTunnelServices { tunnel, services } => {
                shard.tunnels.borrow().set_services(tunnel, &services);
            }
            Command::AttachTunnel { tunnel, conn, sends } => {
                shard.tunnels.borrow_mut().attach(&shard.peers.borrow(), tunnel, conn, sends);
            }
            Command::CloseTunnel { tunnel } => close_tunnel(shard, tunnel),
            Command::Inspect { conn } => {
                if let Some(peer) = shard.peers.borrow().get(conn)
                    && let Some(state) = contained(|| Box::new(peer.inspect()))
                {
                    shard.shared.outbox.push(Event::Inspected { conn, state });
                }
            }
        }
    }
}

/// Finds the connector of an agent's packets, and whether the two can be introduced to each other.
fn look_up_route(shard: &Shard, request: u64, agent: ConnId, service: &[u8]) {
    let (mut connector, mut conflict) = (None, None);
    if let Some(relay) = &mut *shard.relay.borrow_mut() {
        let forwarder = &mut relay.forwarder;
        let route = forwarder.routes.from_agent(agent, Some(service));
        connector = route.ok().and_then(|route| route.connector);
        conflict =
            connector.and_then(|connector| forwarder.conflict(agent, connector, Instant::now()));
    }
    let conflict = conflict.map(|conflict| conflict.as_str());
    shard.shared.outbox.push(Event::RouteFound { request, connector, conflict });
}

fn open_tunnel(shard: &Rc<Shard>, id: TunnelId, config: TunnelConfig) {
    let (counting, closing) = (shard.clone(), shard.clone());
    let taken = move |conn, datagrams, bytes| {
        counting.peers.borrow_mut().count_sent(conn, datagrams, bytes);
    };
    let failed = move |reason| {
        close_tunnel(&closing, id);
        closing.shared.outbox.push(Event::TunnelFailed { tunnel: id, reason });
    };
    shard.tunnels.borrow_mut().open(&shard.shared, id, config, taken, failed);
}

fn close_tunnel(shard: &Shard, id: TunnelId) {
    let closed = shard.tunnels.borrow_mut().close(id);
    // Its flows end here, and nothing is borrowed meanwhile.
    drop(closed);
}

fn send(shard: &Shard, conn: ConnId, data: Vec<bytes::Bytes>) {
    let counters = &shard.shared.counters;
    let tunnels = shard.tunnels.borrow();
    let mut peers = shard.peers.borrow_mut();
    let Some(peer) = peers.get_mut(conn) else {
        let class = IdentityClass::default();
        counters.drops.add(class, DropReason::TargetGone, data.len() as u64);
        return;
    };
    let tunnel = tunnels.of(conn).filter(|tunnel| tunnel.sends_on(conn));
    for data in data {
        let size = data.len() as u64;
        let sent = match tunnel {
            // A tunnel fills the connection's queue and waits for room there; it counts what it sent.
            Some(tunnel) if tunnel.send(data.clone()) => continue,
            Some(_) => Err(DropReason::SendQueueFull),
            None => peer.queue.send(data),
        };
        match sent {
            Ok(()) => {
                peer.totals.sent_datagrams += 1;
                peer.totals.sent_bytes += size;
            }
            Err(reason) => {
                peer.totals.dropped += 1;
                counters.drops.add(peer.class, reason, 1);
            }
        }
    }
}
