//! The engine handle.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use pyo3::prelude::*;
use ztna_engine::tunnel::TunnelId;

use crate::{
    command::Command,
    config::{ListenConfig, pair},
    event::Event,
    refused,
};

/// One engine thread with its sockets. Every method returns at once unless it says otherwise.
#[pyclass(frozen, module = "intermediate_server._engine")]
pub(crate) struct Engine {
    engine: ztna_engine::Engine,
    warnings: Mutex<Vec<String>>,
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (*, outbox_capacity=65_536))]
    fn new(outbox_capacity: usize) -> PyResult<Self> {
        let engine = ztna_engine::Engine::start(outbox_capacity).map_err(refused)?;
        Ok(Self { engine, warnings: Mutex::default() })
    }

    /// The eventfd that turns readable when ``drain`` has something to give. Owned by the engine.
    fn fileno(&self) -> i32 {
        self.engine.outbox().fd()
    }

    /// Bind and serve; returns the bound addresses. Waits for the bind. Raises ``EngineError``.
    fn listen(&self, py: Python<'_>, config: &ListenConfig) -> PyResult<Vec<(String, u16)>> {
        let config = config.0.clone();
        let (bound, warned) = py.detach(|| self.engine.listen(config)).map_err(refused)?;
        if let Ok(mut warnings) = self.warnings.lock() {
            warnings.extend(warned);
        }
        Ok(bound.into_iter().map(pair).collect())
    }

    /// Take up to ``maximum`` events, oldest first; the eventfd stays readable while some are left.
    fn drain(&self, py: Python<'_>, maximum: usize) -> PyResult<Vec<Event>> {
        let events = py.detach(|| self.engine.outbox().drain(maximum));
        events.into_iter().map(|event| Event::of(py, event)).collect()
    }

    /// Queue one atomic batch. Raises ``EngineError`` when the engine has stopped.
    fn apply(&self, commands: Vec<Bound<'_, Command>>) -> PyResult<()> {
        let batch: PyResult<Vec<_>> = commands.iter().map(|c| c.get().read()).collect();
        self.engine.apply(batch?).map_err(refused)
    }

    /// Every total of the engine by its name.
    fn counters(&self) -> HashMap<&'static str, u64> {
        self.engine.counters().snapshot().into_iter().collect()
    }

    /// Dropped datagrams by reason; the reasons are a closed set.
    fn drops(&self) -> HashMap<&'static str, u64> {
        self.engine.counters().drops.snapshot().into_iter().collect()
    }

    /// Dropped datagrams by reason and by the identity class of their sender.
    fn drops_by_class(&self) -> HashMap<(&'static str, &'static str), u64> {
        self.engine.counters().drops.by_class().into_iter().collect()
    }

    /// The usage of each limiter since the last call: its id, bytes from its connections, bytes to
    /// them.
    fn usage(&self, py: Python<'_>) -> Vec<(u64, u64, u64)> {
        py.detach(|| self.engine.usage().take())
    }

    /// Totals of each live service.
    fn services(&self, py: Python<'_>) -> Vec<ServiceCounters> {
        py.detach(|| {
            let board = self.engine.services().lock();
            let board = board.unwrap_or_else(std::sync::PoisonError::into_inner);
            board
                .iter()
                .map(|(name, totals)| ServiceCounters {
                    service: name.to_vec(),
                    connectors: totals.connectors.get(),
                    healthy: totals.healthy.get(),
                    to_connector_packets: totals.to_connector_packets.get(),
                    to_connector_bytes: totals.to_connector_bytes.get(),
                    to_agent_packets: totals.to_agent_packets.get(),
                    to_agent_bytes: totals.to_agent_bytes.get(),
                    drops: totals.drops.snapshot().into_iter().collect(),
                })
                .collect()
        })
    }

    /// Totals and gauges of a tunnel by name; empty where there is no such tunnel.
    fn tunnel_counters(&self, tunnel: u64) -> HashMap<String, u64> {
        self.engine.tunnel_counters(TunnelId(tunnel)).into_iter().collect()
    }

    /// Warnings about resources of which the kernel gave less than asked for, one sentence each.
    fn socket_warnings(&self) -> Vec<String> {
        self.warnings.lock().map(|w| w.clone()).unwrap_or_default()
    }

    /// Stop the thread; waits until closing packets are out or the time is over. Safe to repeat.
    fn close(&self, py: Python<'_>, timeout_ms: u64) {
        py.detach(|| self.engine.close(Duration::from_millis(timeout_ms)));
    }
}

/// Totals of one live service.
#[pyclass(frozen, get_all, module = "intermediate_server._engine")]
pub(crate) struct ServiceCounters {
    service: Vec<u8>,
    connectors: u64,
    healthy: u64,
    to_connector_packets: u64,
    to_connector_bytes: u64,
    to_agent_packets: u64,
    to_agent_bytes: u64,
    drops: HashMap<&'static str, u64>,
}
