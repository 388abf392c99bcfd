//! Tunnels: the places where packets enter and leave the engine on a client's side.
//!
//! A tunnel outlives relay connections, so its flows survive a reconnect.
//!
//! ```text
//! agent      TUN or local sockets -> tun.rs | forwards.rs -> tx_queue.rs -> connection
//! connector  connection -> tun.rs | backends.rs -> TUN or the applications' sockets
//! ```

mod backends;
pub(crate) mod config;
mod connect;
pub(crate) mod deliver;
mod forwards;
mod netstack;
mod notices;
mod pktinfo;
mod ports;
mod proxy_protocol;
mod reach;
mod splice;
mod tun;
mod tx_queue;
mod udp_backend;
mod udp_port;

use std::{
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::task::AbortHandle;
use ztna_netstack::Counters;
pub use ztna_netstack::{Backend, Forward, Transport, TunMap};

pub use self::config::{Network, TunRouting, TunnelConfig, TunnelId};
use self::{
    backends::Backends, connect::Health, forwards::Forwards, netstack::Netstack, notices::Notices,
    tun::Tun, tx_queue::TxQueue,
};
use crate::{
    boundary::{
        event::{ConnId, Event},
        outbox::Outbox,
    },
    error::EngineError,
    shared::Shared,
    table::{Peer, Peers, Side},
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

impl Tunnel {
    /// Takes in IP packets from the relay.
    pub(crate) fn receive<'a>(&self, datagrams: impl Iterator<Item = &'a Bytes>) {
        match &self.kind {
            Kind::Forwards(forwards) => forwards.receive(datagrams),
            Kind::Backends(backends) => backends.receive(datagrams),
            Kind::Tun(tun) => tun.receive(datagrams),
        }
    }

    fn detach(&self, conn: ConnId) {
        self.tx_queue.detach(conn);
        if let Kind::Forwards(forwards) = &self.kind {
            forwards.refuse_or_take();
        }
    }

    /// Sends a datagram of the control plane behind the waiting ones.
    pub(crate) fn send(&self, datagram: Bytes) -> bool {
        self.tx_queue.send(datagram)
    }

    /// Whether it sends on this connection.
    pub(crate) fn sends_on(&self, conn: ConnId) -> bool {
        self.tx_queue.conn() == Some(conn)
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

/// The open tunnels of an engine thread, and the tunnel of each connection.
#[derive(Debug)]
pub(crate) struct Tunnels {
    open: HashMap<TunnelId, Rc<Tunnel>>,
    by_conn: FxHashMap<ConnId, Rc<Tunnel>>,
    board: Arc<TunnelBoard>,
}

impl Tunnels {
    /// No tunnels; `board` will show the counters of new ones.
    pub(crate) fn new(board: Arc<TunnelBoard>) -> Self {
        Self { open: HashMap::new(), by_conn: FxHashMap::default(), board }
    }

    /// The tunnel of a client's connection.
    pub(crate) fn of(&self, conn: ConnId) -> Option<&Rc<Tunnel>> {
        self.by_conn.get(&conn)
    }

    /// Opens a tunnel, or replaces the services of an open one; reports the outcome.
    ///
    /// `taken` gets the number and bytes of datagrams that a connection has taken, `failed` the
    /// reason for which an open tunnel cannot go on.
    pub(crate) fn open(
        &mut self,
        shared: &Shared,
        id: TunnelId,
        config: TunnelConfig,
        taken: impl Fn(ConnId, u64, u64) + 'static,
        failed: impl FnOnce(String) + 'static,
    ) {
        let event = match self.try_open(&shared.outbox, id, config, taken, failed) {
            Ok(addresses) => Event::TunnelOpened { tunnel: id, addresses },
            Err(e) => Event::TunnelFailed { tunnel: id, reason: e.to_string() },
        };
        shared.outbox.push(event);
    }

    fn try_open(
        &mut self,
        outbox: &Arc<Outbox>,
        id: TunnelId,
        config: TunnelConfig,
        taken: impl Fn(ConnId, u64, u64) + 'static,
        failed: impl FnOnce(String) + 'static,
    ) -> Result<Vec<SocketAddr>, EngineError> {
        if let Some(tunnel) = self.open.get(&id) {
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
        let notices = Notices::new(outbox.clone(), id);
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
        let pump = tx_queue.clone();
        let run = async move { pump.run(taken).await };
        let mut tasks = vec![tokio::task::spawn_local(run).abort_handle()];
        if let Kind::Tun(tun) = &kind {
            let asking = tun.clone();
            let run = async move { asking.ask().await };
            tasks.push(tokio::task::spawn_local(run).abort_handle());
            let tun = tun.clone();
            let run = async move { failed(format!("TUN device: {}", tun.run().await)) };
            tasks.push(tokio::task::spawn_local(run).abort_handle());
        }
        let tunnel = Tunnel { tx_queue, kind, tasks };
        if let Some(netstack) = tunnel.netstack() {
            let netstack = netstack.clone();
            netstack.clone().spawn(async move { netstack.look_after().await });
        }
        self.board().insert(id, counters);
        self.open.insert(id, Rc::new(tunnel));
        Ok(addresses)
    }

    /// Sets the acknowledged services of the present connection.
    pub(crate) fn set_services(&self, id: TunnelId, services: &[Bytes]) {
        match self.open.get(&id).map(|tunnel| &tunnel.kind) {
            Some(Kind::Forwards(forwards)) => forwards.set_services(services),
            Some(Kind::Tun(tun)) => tun.set_services(services),
            // A connector takes all packets of the relay.
            Some(Kind::Backends(_)) | None => {}
        }
    }

    /// Lets a client's connection carry a tunnel; see `Command::AttachTunnel`.
    pub(crate) fn attach(&mut self, peers: &Peers, id: TunnelId, conn: ConnId, sends: bool) {
        let Some(tunnel) = self.open.get(&id).cloned() else {
            return;
        };
        let dialled = |peer: &&Peer| matches!(peer.side, Side::Dialled { .. });
        let peer = peers.get(conn).filter(dialled);
        let before = tunnel.tx_queue.conn().filter(|before| *before != conn);
        let receives = self.by_conn.get(&conn).is_some_and(|other| Rc::ptr_eq(other, &tunnel));
        let takes_over = sends && receives && before.is_some();
        if sends && !takes_over {
            before.map(|before| self.by_conn.remove(&before));
        }
        let Some(peer) = peer else {
            return;
        };
        if let Some(other) = self.by_conn.insert(conn, tunnel.clone())
            && !Rc::ptr_eq(&other, &tunnel)
        {
            other.detach(conn);
        }
        if !sends {
            return;
        }
        if takes_over {
            tunnel.tx_queue.take_over(conn, peer.queue.clone());
        } else {
            tunnel.tx_queue.attach(conn, peer.queue.clone());
        }
        if let Some(netstack) = tunnel.netstack() {
            netstack.learn_limit();
        }
        match &tunnel.kind {
            Kind::Forwards(forwards) if !takes_over => forwards.attached(),
            Kind::Tun(tun) if !takes_over => tun.attached(),
            Kind::Forwards(_) | Kind::Tun(_) | Kind::Backends(_) => {}
        }
    }

    /// Releases a connection that has ended.
    pub(crate) fn detach(&mut self, conn: ConnId) {
        if let Some(tunnel) = self.by_conn.remove(&conn) {
            tunnel.detach(conn);
        }
    }

    /// Closes a tunnel; its flows end when the returned value is dropped.
    pub(crate) fn close(&mut self, id: TunnelId) -> Option<Rc<Tunnel>> {
        let tunnel = self.open.remove(&id)?;
        self.board().remove(&id);
        self.by_conn.retain(|_, other| !Rc::ptr_eq(other, &tunnel));
        Some(tunnel)
    }

    fn board(&self) -> MutexGuard<'_, HashMap<TunnelId, Arc<Counters>>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
