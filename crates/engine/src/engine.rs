//! The handle the control plane holds: one thread with its runtime, commands down, events up.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::{
    boundary::{
        command::Command,
        counters::{Counters, ServiceBoard},
        event::Event,
        outbox::Outbox,
    },
    config::ListenConfig,
    error::EngineError,
    relay::usage::UsageBoard,
    shared::Shared,
    thread::{self, Listening, Message},
    tunnel::{TunnelBoard, config::TunnelId},
};

/// Additional time for which [`Engine::close`] waits for a thread that may be stuck.
const PATIENCE: Duration = Duration::from_secs(2);

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
        let shared =
            Shared { counters: counters.clone(), outbox: outbox.clone(), started: Instant::now() };
        let (ends, ended) = mpsc::channel();
        let handle = std::thread::Builder::new()
            .name("ztna-engine".into())
            .spawn(move || {
                let _ends = ends;
                let failed = shared.outbox.clone();
                let run = AssertUnwindSafe(|| thread::run(shared, boards, inbox));
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

    /// Binds and serves; returns the bound addresses and warnings about resources of which the
    /// kernel gave less. It waits for the bind.
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

    /// The usage of each limiter since the last call.
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
