//! Tunnels: where packets enter and leave the engine on a client's side.
//!
//! A tunnel outlives relay connections, so what flows through it survives a reconnect.
//!
//! ```text
//! agent      TUN or local sockets -> tun.rs | forwards.rs -> tx_queue.rs -> connection
//! connector  connection -> tun.rs | backends.rs -> TUN or the applications' sockets
//! ```

mod backends;
pub(crate) mod config;
mod connect;
mod forwards;
mod netstack;
mod notices;
mod pktinfo;
mod ports;
mod reach;
mod splice;
mod tun;
mod tx_queue;

use std::{
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::task::AbortHandle;
use ztna_netstack::Counters;
pub use ztna_netstack::{Backend, Forward, Transport, TunMap};

pub use self::config::{Network, TunRouting, TunnelConfig, TunnelId};
use self::{
    backends::Backends, connect::Health, forwards::Forwards, netstack::Netstack, notices::Notices,
    tun::Tun, tx_queue::TxQueue,
};
use crate::{
    error::EngineError,
    event::{ConnId, Event},
    shard::Shard,
};

/// The counters of the open tunnels, shared with the control plane.
pub(crate) type TunnelBoard = Mutex<HashMap<TunnelId, Arc<Counters>>>;

/// One open tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    tx_queue: Rc<TxQueue>,
    kind: Kind,
    tasks: Vec<AbortHandle>,
}

#[derive(Debug)]
enum Kind {
    Forwards(Rc<Forwards>),
    Backends(Backends),
    Tun(Rc<Tun>),
}

/// The open tunnels of an engine thread.
pub(crate) type Tunnels = HashMap<TunnelId, Rc<Tunnel>>;

impl Tunnel {
    /// Takes in IP packets from the relay.
    pub(crate) fn receive<'a>(&self, datagrams: impl Iterator<Item = &'a Bytes>) {
        match &self.kind {
            Kind::Forwards(forwards) => forwards.receive(datagrams),
            Kind::Backends(backends) => backends.receive(datagrams),
            Kind::Tun(tun) => tun.receive(datagrams),
        }
    }

    /// Lets go of a connection that has ended.
    pub(crate) fn detach(&self, conn: ConnId) {
        self.tx_queue.detach(conn);
        if let Kind::Forwards(forwards) = &self.kind {
            forwards.refuse_or_take();
        }
    }

    /// Sends a datagram of the control plane behind those that wait.
    pub(crate) fn send(&self, datagram: Bytes) -> bool {
        self.tx_queue.send(datagram)
    }

    fn netstack(&self) -> Option<&Rc<Netstack>> {
        match &self.kind {
            Kind::Forwards(forwards) => Some(&forwards.netstack),
            Kind::Backends(backends) => Some(&backends.netstack),
            Kind::Tun(_) => None,
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if let Some(netstack) = self.netstack() {
            netstack.close();
        }
    }
}

/// Opens a tunnel, or replaces the services of an open one; reports how that went.
pub(crate) fn open(shard: &Rc<Shard>, id: TunnelId, config: TunnelConfig) {
    let event = match try_open(shard, id, config) {
        Ok(addresses) => Event::TunnelOpened { tunnel: id, addresses },
        Err(e) => Event::TunnelFailed { tunnel: id, reason: e.to_string() },
    };
    shard.outbox.push(event);
}

fn try_open(
    shard: &Rc<Shard>,
    id: TunnelId,
    config: TunnelConfig,
) -> Result<Vec<SocketAddr>, EngineError> {
    if let Some(tunnel) = shard.tunnels.borrow().get(&id) {
        return match (&tunnel.kind, config) {
            (Kind::Backends(backends), TunnelConfig::Backends { services, try_once }) => {
                backends.replace(services, try_once);
                Ok(Vec::new())
            }
            _ => Err(EngineError("the tunnel is open already".into())),
        };
    }
    let counters = Arc::new(Counters::default());
    let tx_queue = Rc::new(TxQueue::new(counters.clone()));
    let notices = Notices::new(shard.outbox.clone(), id);
    let mut addresses = Vec::new();
    let kind = match config {
        TunnelConfig::Forwards { forwards, source_v4, source_v6 } => {
            let netstack = Netstack::new(tx_queue.clone(), counters.clone())?;
            let sources = (source_v4, source_v6);
            let (forwards, bound) = Forwards::open(netstack, forwards, sources, notices)?;
            addresses = bound;
            Kind::Forwards(forwards)
        }
        TunnelConfig::Backends { services, try_once } => {
            let netstack = Netstack::new(tx_queue.clone(), counters.clone())?;
            Kind::Backends(Backends::new(netstack, services, try_once, Health::new(notices)))
        }
        TunnelConfig::Tun { device, routing } => {
            let tun = Tun::open(device, routing, tx_queue.clone(), counters.clone(), notices)
                .map_err(|e| EngineError::of("TUN device", e))?;
            Kind::Tun(Rc::new(tun))
        }
    };
    let (pump, counting) = (tx_queue.clone(), shard.clone());
    let run = async move {
        let count = |conn, datagrams, bytes| counting.count_sent(conn, datagrams, bytes);
        pump.run(count).await;
    };
    let mut tasks = vec![tokio::task::spawn_local(run).abort_handle()];
    if let Kind::Tun(tun) = &kind {
        let asking = tun.clone();
        let run = async move { asking.ask().await };
        tasks.push(tokio::task::spawn_local(run).abort_handle());
        let (tun, shard) = (tun.clone(), shard.clone());
        let run = async move {
            let reason = format!("TUN device: {}", tun.run().await);
            close(&shard, id);
            shard.outbox.push(Event::TunnelFailed { tunnel: id, reason });
        };
        tasks.push(tokio::task::spawn_local(run).abort_handle());
    }
    let tunnel = Tunnel { tx_queue, kind, tasks };
    if let Some(netstack) = tunnel.netstack() {
        let netstack = netstack.clone();
        netstack.clone().spawn(async move { netstack.look_after().await });
    }
    board(shard).insert(id, counters);
    shard.tunnels.borrow_mut().insert(id, Rc::new(tunnel));
    Ok(addresses)
}

/// Says which services are acknowledged on the present connection.
pub(crate) fn set_services(shard: &Shard, id: TunnelId, services: Vec<Bytes>) {
    match shard.tunnels.borrow().get(&id).map(|tunnel| &tunnel.kind) {
        Some(Kind::Forwards(forwards)) => forwards.set_services(&services),
        Some(Kind::Tun(tun)) => tun.set_services(&services),
        // A connector takes what the relay sends it.
        Some(Kind::Backends(_)) | None => {}
    }
}

/// Moves a tunnel to a client's connection.
pub(crate) fn attach(shard: &Shard, id: TunnelId, conn: ConnId) {
    let Some(tunnel) = shard.tunnels.borrow().get(&id).cloned() else {
        return;
    };
    let mut peers = shard.peers.borrow_mut();
    if let Some(before) = tunnel.tx_queue.conn().and_then(|before| peers.get_mut(before)) {
        before.tunnel = None;
    }
    let Some(peer) = peers.get_mut(conn).filter(|peer| peer.endpoint.is_some()) else {
        return;
    };
    if let Some(other) = peer.tunnel.replace(tunnel.clone())
        && !Rc::ptr_eq(&other, &tunnel)
    {
        other.detach(conn);
    }
    tunnel.tx_queue.attach(conn, peer.connection.clone(), peer.send_queue);
    match &tunnel.kind {
        Kind::Forwards(forwards) => {
            forwards.netstack.learn_limit();
            forwards.attached();
        }
        Kind::Backends(backends) => backends.netstack.learn_limit(),
        Kind::Tun(tun) => tun.attached(),
    }
}

/// Closes a tunnel and everything that flows through it.
pub(crate) fn close(shard: &Shard, id: TunnelId) {
    let tunnel = shard.tunnels.borrow_mut().remove(&id);
    if let Some(tunnel) = tunnel {
        board(shard).remove(&id);
        let mut peers = shard.peers.borrow_mut();
        if let Some(peer) = tunnel.tx_queue.conn().and_then(|conn| peers.get_mut(conn)) {
            peer.tunnel = None;
        }
    }
}

fn board(shard: &Shard) -> std::sync::MutexGuard<'_, HashMap<TunnelId, Arc<Counters>>> {
    shard.tunnel_board.lock().unwrap_or_else(PoisonError::into_inner)
}
