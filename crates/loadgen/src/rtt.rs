//! Round trips through the relay, and of the same packets between the same two programs without it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use noq::{Connection, ServerConfig};
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    Failure,
    options::{Common, Rtt},
    packet::{self, Mark},
    peer::{Clients, Role},
    stats::{quantile, round},
    tls, transport,
    usage::Usage,
};

/// Requests of this long at the start of a run are not counted.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long answers may still come after the last request.
const GRACE: Duration = Duration::from_millis(500);

async fn echo(connection: Connection, size: usize) {
    let mut batch = vec![Bytes::new(); 64];
    while let Ok(taken) = connection.read_many_datagrams(&mut batch).await {
        let answers: Vec<Bytes> = batch[..taken]
            .iter()
            .filter(|data| packet::read(data, size).is_some())
            .map(|data| packet::answer(data).into())
            .collect();
        if !answers.is_empty() && connection.send_many_datagrams(&answers).is_err() {
            return;
        }
    }
}

fn listen(agent: Connection, size: usize, clock: Instant, expected: usize) -> JoinHandle<Vec<u64>> {
    tokio::spawn(async move {
        let mut times = Vec::with_capacity(expected);
        let mut batch = vec![Bytes::new(); 64];
        loop {
            let taken =
                match tokio::time::timeout(GRACE, agent.read_many_datagrams(&mut batch)).await {
                    Ok(Ok(taken)) => taken,
                    Ok(Err(_)) | Err(_) => return times,
                };
            let now = clock.elapsed().as_nanos() as u64;
            let marks = batch[..taken].iter().filter_map(|data| packet::read(data, size));
            times.extend(
                marks.filter(|mark| mark.phase == 1).map(|mark| now.saturating_sub(mark.sent)),
            );
        }
    })
}

/// Send `rate` requests a second from `agent` for the window and collect the times of the answers.
async fn measure(agent: &Connection, rate: u32, mode: &Rtt) -> Result<Value, Failure> {
    let size = usize::from(mode.size);
    let clock = Instant::now();
    let end = WARM_UP + Duration::from_secs(mode.seconds.into());
    let listener = listen(agent.clone(), size, clock, rate as usize * usize::from(mode.seconds));
    let usage = Usage::begin();
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut made, mut counted) = (0_u32, 0_u64);
    while clock.elapsed() < end {
        ticks.tick().await;
        let now = clock.elapsed();
        let phase = u8::from(now >= WARM_UP);
        let due = (now.min(end).as_secs_f64() * f64::from(rate)) as u32;
        let burst: Vec<Bytes> = (made..due)
            .map(|number| Mark { agent: 0, number, sent: clock.elapsed().as_nanos() as u64, phase })
            .map(|mark| packet::build(size, mark).into())
            .collect();
        made = due;
        counted += u64::from(phase) * burst.len() as u64;
        if !burst.is_empty() {
            agent.send_many_datagrams(&burst)?;
        }
    }
    let (share, waited) = usage.shares();
    let mut times = listener.await?;
    times.sort_unstable();
    Ok(json!({
        "requests": counted,
        "answers": times.len(),
        "p50_us": quantile(&times, 0.50),
        "p90_us": quantile(&times, 0.90),
        "p99_us": quantile(&times, 0.99),
        "max_us": quantile(&times, 1.0),
        "generator_cpu_share": round(share, 3),
        "generator_wait_share": round(waited, 3),
    }))
}

/// An agent whose packets come back without a relay: straight from an echo endpoint in this process.
async fn direct(common: &Common, mode: &Rtt, clients: &Clients) -> Result<Connection, Failure> {
    let mut server = ServerConfig::with_crypto(tls::echo_server(&mode.echo_cert, &mode.echo_key)?);
    server.transport_config(transport::settings(None));
    let listener = transport::listener(common, server)?;
    let address = listener.local_addr()?;
    let size = usize::from(mode.size);
    tokio::spawn(async move {
        while let Some(incoming) = listener.accept().await {
            if let Ok(connection) = incoming.await {
                tokio::spawn(echo(connection, size));
            }
        }
    });
    clients.towards(address).handshake().await
}

/// Run the mode; see `docs/benchmark.md` for the fields.
pub async fn run(common: &Common, mode: &Rtt) -> Result<Value, Failure> {
    let keep_alive = Some(Duration::from_secs(10));
    let clients = Clients::new(common, keep_alive)?;
    let connector =
        Clients::new(common, keep_alive)?.registered(Role::Connector, &common.service).await?;
    let relayed = clients.registered(Role::Agent, &common.service).await?;
    let direct = direct(common, mode, &clients).await?;
    tokio::spawn(echo(connector.clone(), mode.size.into()));
    let mut rows = Vec::new();
    for &rate in &mode.rate {
        eprintln!("{rate} requests a second, direct");
        let without = measure(&direct, rate, mode).await?;
        eprintln!("{rate} requests a second, through the relay");
        let with = measure(&relayed, rate, mode).await?;
        let added = |name: &str| Some(round(with[name].as_f64()? - without[name].as_f64()?, 1));
        rows.push(json!({
            "rate": rate,
            "added_p50_us": added("p50_us"),
            "added_p99_us": added("p99_us"),
            "direct": without,
            "relay": with,
        }));
    }
    for connection in [&connector, &relayed, &direct] {
        connection.close(0_u8.into(), b"");
    }
    sleep(Duration::from_millis(20)).await;
    Ok(json!({"mode": "rtt", "size": mode.size, "rates": rows}))
}
