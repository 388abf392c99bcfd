//! The handle the control plane holds: one thread with its runtime, commands down, events up.

use std::{
    cell::RefCell,
    convert::Infallible,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use noq::VarInt;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::LocalSet,
};

use crate::{
    boundary::limits::IdentityClass,
    command::Command,
    config::ListenConfig,
    counters::{Counters, DropReason, ServiceBoard},
    dial, endpoint,
    error::EngineError,
    event::Event,
    handshakes::HandshakeBudget,
    housekeeping,
    limiter::RateLimiters,
    outbox::Outbox,
    panics::contained,
    relay,
    shard::{Peers, Shard},
    tunnel::{self, TunnelBoard, TunnelId},
    usage::UsageBoard,
};

type Listening = Result<(Vec<SocketAddr>, Vec<String>), EngineError>;

/// How much longer than asked [`Engine::close`] waits for a thread that may be stuck.
const PATIENCE: Duration = Duration::from_secs(2);

/// What counters are read from.
type Boards = (Arc<ServiceBoard>, Arc<UsageBoard>, Arc<TunnelBoard>);

enum Message {
    Commands(Vec<Command>),
    Listen(Box<ListenConfig>, mpsc::Sender<Listening>),
    Stop(Duration),
}

/// One engine thread. Dropping it stops the thread without ceremony; see [`Engine::close`].
#[derive(Debug)]
pub struct Engine {
    counters: Arc<Counters>,
    outbox: Arc<Outbox>,
    board: Arc<ServiceBoard>,
    usage: Arc<UsageBoard>,
    tunnels: Arc<TunnelBoard>,
    messages: UnboundedSender<Message>,
    thread: Mutex<Option<Thread>>,
}

/// A running thread, and a channel that ends with it.
#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    ended: mpsc::Receiver<Infallible>,
}

impl Engine {
    /// Starts the thread. `outbox_capacity` bounds the events that wait for the control plane.
    ///
    /// # Errors
    /// When the system has no thread or no eventfd to give.
    pub fn start(outbox_capacity: usize) -> Result<Self, EngineError> {
        let counters = Arc::new(Counters::default());
        let outbox = Arc::new(Outbox::new(outbox_capacity, counters.clone())?);
        let board = Arc::new(ServiceBoard::default());
        let tunnels = Arc::new(TunnelBoard::default());
        let (messages, inbox) = unbounded_channel();
        let usage = Arc::new(UsageBoard::default());
        let boards = (board.clone(), usage.clone(), tunnels.clone());
        let shared = (counters.clone(), outbox.clone(), boards);
        let (ends, ended) = mpsc::channel();
        let handle = std::thread::Builder::new()
            .name("ztna-engine".into())
            .spawn(move || {
                let _ends = ends;
                let (counters, outbox, boards) = shared;
                let failed = outbox.clone();
                let run = AssertUnwindSafe(|| run(counters, outbox, boards, inbox));
                let reason = match catch_unwind(run) {
                    Ok(Ok(())) => return,
                    Ok(Err(e)) => e.to_string(),
                    Err(_) => "a defect ended the engine thread".into(),
                };
                failed.push(Event::Failed { reason });
            })
            .map_err(|e| EngineError::of("engine thread", e))?;
        let thread = Mutex::new(Some(Thread { handle, ended }));
        Ok(Self { counters, outbox, board, usage, tunnels, messages, thread })
    }

    /// Binds and serves; returns the bound addresses and what the kernel gave less of. Waits for
    /// the bind.
    ///
    /// # Errors
    /// When an address cannot be bound, a setting is unusable, or the engine has stopped.
    pub fn listen(&self, config: ListenConfig) -> Listening {
        let (answer, answered) = mpsc::channel();
        self.tell(Message::Listen(Box::new(config), answer))?;
        answered.recv().map_err(|_| stopped())?
    }

    /// Queues one batch, applied as a whole between two datagrams.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn apply(&self, commands: Vec<Command>) -> Result<(), EngineError> {
        self.tell(Message::Commands(commands))
    }

    /// Events on their way up.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Totals of the engine.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Totals and gauges of a tunnel by name; empty where there is no such tunnel.
    pub fn tunnel_counters(&self, tunnel: TunnelId) -> Vec<(String, u64)> {
        let tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        tunnels.get(&tunnel).map(|counters| counters.snapshot()).unwrap_or_default()
    }

    /// Totals of the live services.
    pub fn services(&self) -> &ServiceBoard {
        &self.board
    }

    /// What the connections of each limiter moved since the last call.
    pub fn usage(&self) -> &UsageBoard {
        &self.usage
    }

    /// Stops the thread: refuses new connections, closes live ones, and waits until their closing
    /// packets are out, at most for `limit`. A thread that is stuck is left after two seconds more. Does
    /// nothing when called again.
    pub fn close(&self, limit: Duration) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Thread { handle, ended }) = thread {
            // An error means that the thread has ended already.
            let _ = self.tell(Message::Stop(limit));
            if ended.recv_timeout(limit + PATIENCE) == Err(RecvTimeoutError::Disconnected) {
                let _ = handle.join();
            }
        }
    }

    fn tell(&self, message: Message) -> Result<(), EngineError> {
        self.messages.send(message).map_err(|_| stopped())
    }
}

fn stopped() -> EngineError {
    EngineError("the engine has stopped".into())
}

fn run(
    counters: Arc<Counters>,
    outbox: Arc<Outbox>,
    (board, usage, tunnel_board): Boards,
    inbox: UnboundedReceiver<Message>,
) -> Result<(), EngineError> {
    let handshakes = Arc::<HandshakeBudget>::default();
    let idle = handshakes.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || idle.on_idle())
        .build()
        .map_err(|e| EngineError::of("runtime", e))?;
    let shard = Rc::new(Shard {
        counters,
        outbox,
        board,
        egress: Arc::default(),
        handshakes,
        started: Instant::now(),
        peers: RefCell::new(Peers::default()),
        dials: RefCell::default(),
        limiters: RefCell::new(RateLimiters::new(usage)),
        tunnels: RefCell::default(),
        tunnel_board,
        relay: RefCell::new(None),
    });
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
                return shard.outbox.push(Event::Failed { reason });
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

/// Closes every connection and waits until their peers can know.
async fn stop(shard: &Shard) {
    let mut endpoints = Vec::new();
    if let Some(relay) = &mut *shard.relay.borrow_mut() {
        relay.admission.accepting = false;
        endpoints.extend(relay.endpoints.iter().cloned());
    }
    for (_, peer) in shard.peers.borrow_mut().iter_mut() {
        contained(|| peer.connection.close(VarInt::from_u32(0), b""));
        endpoints.extend(peer.endpoint.clone());
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
                    relay.forwarder.routes.set_service(&service, live.collect());
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
                        shard.outbox.push(Event::ReservedAddresses { identity, addresses: own });
                    }
                }
            }
            Command::SetLimits { conn, limiter, class, rates } => {
                shard.set_limits(conn, limiter, class, rates);
            }
            Command::SendDatagram { conn, data } => send(shard, conn, vec![data]),
            Command::SendDatagrams { conn, data } => send(shard, conn, data),
            Command::Close { conn, code, reason } => {
                if let Some(peer) = shard.peers.borrow().get(conn) {
                    let code = VarInt::from_u64(code).unwrap_or(VarInt::MAX);
                    contained(|| peer.connection.close(code, &reason));
                }
            }
            Command::SetServerTls { tls } => {
                if let Err(e) = endpoint::set_tls(shard, tls) {
                    shard.outbox.push(Event::Failed { reason: e.to_string() });
                }
            }
            Command::SetAccepting { accepting } => {
                if let Some(relay) = &mut *shard.relay.borrow_mut() {
                    relay.admission.accepting = accepting;
                }
            }
            Command::Connect { request, config } => {
                dial::begin(shard, request, *config);
            }
            Command::CancelConnect { request } => dial::cancel(shard, request),
            Command::Rebind { conn } => {
                let endpoint = shard.peers.borrow().get(conn).and_then(|p| p.endpoint.clone());
                if let Some(Err(e)) = endpoint.map(|e| dial::rebind(shard, &e)) {
                    shard.outbox.push(Event::Failed { reason: e.to_string() });
                }
            }
            Command::OpenTunnel { tunnel, config } => tunnel::open(shard, tunnel, config),
            Command::SetTunnelServices { tunnel, services } => {
                tunnel::set_services(shard, tunnel, services);
            }
            Command::AttachTunnel { tunnel, conn } => tunnel::attach(shard, tunnel, conn),
            Command::CloseTunnel { tunnel } => tunnel::close(shard, tunnel),
            Command::Inspect { conn } => {
                if let Some(peer) = shard.peers.borrow().get(conn)
                    && let Some(state) = contained(|| Box::new(peer.inspect()))
                {
                    shard.outbox.push(Event::Inspected { conn, state });
                }
            }
        }
    }
}

fn send(shard: &Shard, conn: crate::ConnId, data: Vec<bytes::Bytes>) {
    let mut peers = shard.peers.borrow_mut();
    let Some(peer) = peers.get_mut(conn) else {
        let class = IdentityClass::default();
        shard.counters.drops.add(class, DropReason::TargetGone, data.len() as u64);
        return;
    };
    let limit = match &*shard.relay.borrow() {
        Some(relay) if peer.endpoint.is_none() => relay.config.send_queue,
        _ => peer.send_queue,
    };
    for data in data {
        let size = data.len() as u64;
        let sent = match &peer.tunnel {
            // A tunnel fills the connection's queue and waits for room there; it counts what it sent.
            Some(tunnel) if tunnel.send(data.clone()) => continue,
            Some(_) => Err(DropReason::SendQueueFull),
            None => relay::send(&peer.connection, data, limit),
        };
        match sent {
            Ok(()) => {
                peer.totals.sent_datagrams += 1;
                peer.totals.sent_bytes += size;
            }
            Err(reason) => {
                peer.totals.dropped += 1;
                shard.counters.drops.add(peer.class, reason, 1);
            }
        }
    }
}
