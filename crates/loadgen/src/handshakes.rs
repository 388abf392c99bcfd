//! Full handshakes in a closed loop: connect, wait to be admitted, close, again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Failure,
    options::{Common, Handshakes},
    peer::{self, Clients, Role},
    stats::{quantile, round},
    usage::Usage,
};

/// Handshakes of this long at the start are not counted.
const WARM_UP: Duration = Duration::from_secs(1);
/// Most different failure texts that are kept.
const REASONS: usize = 8;

#[derive(Default)]
struct Tally {
    times: Vec<u64>,
    failures: BTreeMap<String, u64>,
}

async fn one(clients: &Clients, service: Option<&str>) -> Result<(), Failure> {
    let connection = clients.admitted().await?;
    if let Some(service) = service {
        peer::register(&connection, Role::Agent, service).await?;
    }
    connection.close(0_u8.into(), b"");
    Ok(())
}

async fn repeat(
    clients: Arc<Clients>,
    service: Option<String>,
    begin: Instant,
    end: Instant,
    tally: Arc<Mutex<Tally>>,
) {
    while Instant::now() < end {
        let start = Instant::now();
        let outcome =
            one(&clients, service.as_deref()).await.map_err(|failure| failure.to_string());
        let now = Instant::now();
        if now < begin || now >= end {
            continue;
        }
        let mut tally = tally.lock().expect("no holder of this lock can panic");
        match outcome {
            Ok(()) => tally.times.push((now - start).as_nanos() as u64),
            Err(reason)
                if tally.failures.len() < REASONS || tally.failures.contains_key(&reason) =>
            {
                *tally.failures.entry(reason).or_default() += 1;
            }
            Err(_) => *tally.failures.entry("other".to_owned()).or_default() += 1,
        }
    }
}

/// Run the mode; see `docs/benchmark.md` for the fields.
pub async fn run(common: &Common, mode: &Handshakes) -> Result<Value, Failure> {
    let clients = Arc::new(Clients::new(common, None)?);
    let service = mode.register.then(|| common.service.clone());
    one(&clients, service.as_deref()).await?;

    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs(mode.seconds.into());
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut loops = JoinSet::new();
    for _ in 0..mode.in_flight {
        loops.spawn(repeat(clients.clone(), service.clone(), begin, end, tally.clone()));
    }
    sleep(begin.saturating_duration_since(Instant::now())).await;
    let usage = Usage::begin();
    eprintln!("@begin");
    sleep(end.saturating_duration_since(Instant::now())).await;
    let (share, waited) = usage.shares();
    eprintln!("@end");
    // Handshakes still under way are not counted; a silent server must not hold the run.
    loops.shutdown().await;

    let mut tally = tally.lock().expect("no holder of this lock can panic");
    tally.times.sort_unstable();
    Ok(json!({
        "mode": "handshakes",
        "in_flight": mode.in_flight,
        "registered": mode.register,
        "certificates": common.cert.is_some(),
        "seconds": mode.seconds,
        "handshakes": tally.times.len(),
        "rate": round(tally.times.len() as f64 / f64::from(mode.seconds), 1),
        "p50_us": quantile(&tally.times, 0.50),
        "p99_us": quantile(&tally.times, 0.99),
        "failed": tally.failures.values().sum::<u64>(),
        "failures": tally.failures,
        "generator_cpu_share": round(share, 3),
        "generator_wait_share": round(waited, 3),
    }))
}
