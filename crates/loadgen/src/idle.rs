//! Connections that register and then only keep themselves alive, for as long as stdin is open.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use noq::Connection;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, stdin},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    Failure,
    options::{Common, Idle},
    peer::{Clients, Role},
    stats::round,
};

/// PINGs of a quiet connection; half of the idle timeout.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest time the connections are held, should stdin never close.
const LONGEST: Duration = Duration::from_secs(100);

async fn open(clients: Arc<Clients>, service: String) -> Result<Connection, String> {
    clients.registered(Role::Agent, &service).await.map_err(|failure| failure.to_string())
}

/// Run the mode; see `docs/benchmark.md` for the fields.
pub async fn run(common: &Common, mode: &Idle) -> Result<Value, Failure> {
    let clients = Arc::new(Clients::new(common, Some(KEEP_ALIVE))?);
    let mut opening = JoinSet::new();
    let mut ticks = interval(Duration::from_millis(5));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let start = Instant::now();
    let mut started = 0;
    while started < mode.connections {
        ticks.tick().await;
        let due = (start.elapsed().as_secs_f64() * f64::from(mode.rate)) as u32;
        for number in started..due.min(mode.connections) {
            opening.spawn(open(
                clients.clone(),
                format!("{}-{}", common.service, number % mode.services),
            ));
        }
        started = due.min(mode.connections);
    }
    let (mut connections, mut failed, mut reason) = (Vec::new(), 0_u32, None);
    while let Some(outcome) = opening.join_next().await {
        match outcome? {
            Ok(connection) => connections.push(connection),
            Err(text) => {
                failed += 1;
                reason = Some(text);
            }
        }
    }
    let took = start.elapsed().as_secs_f64();
    eprintln!(
        "@ready {} of {} connections, {failed} failed, {took:.1} s",
        connections.len(),
        mode.connections
    );

    let mut byte = [0_u8; 64];
    let mut input = stdin();
    let closed = async { while input.read(&mut byte).await.is_ok_and(|read| read > 0) {} };
    let held = Instant::now();
    let _ = tokio::time::timeout(LONGEST, closed).await;
    let lost = connections.iter().filter(|connection| connection.close_reason().is_some()).count();
    for connection in &connections {
        connection.close(0_u8.into(), b"");
    }
    sleep(Duration::from_millis(200)).await;
    Ok(json!({
        "mode": "idle",
        "connections": mode.connections,
        "certificates": common.cert.is_some(),
        "registered": connections.len(),
        "failed": failed,
        "failure": reason,
        "lost": lost,
        "open_seconds": round(took, 2),
        "held_seconds": round(held.elapsed().as_secs_f64(), 2),
    }))
}
