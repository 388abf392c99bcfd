//! Agents ask to be introduced to connectors at a rate; connectors answer; the agents count what they are told.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use noq::{Connection, RecvStream, SendStream};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{
    Failure,
    options::{Common, Signal},
    packet::{self, Mark},
    peer::{Clients, Role},
    stats::{quantile, round},
    usage::Usage,
};

/// Candidates of an offer and of an answer, as a host with several interfaces has them.
const CANDIDATES: u16 = 10;
/// Bytes of the packet that gives an agent its inner address.
const PACKET: usize = 64;
/// Time for the last answers after the window.
const REST: Duration = Duration::from_secs(2);

const OFFER: u32 = 0;
const ANSWER: u32 = 1;
const START: u32 = 2;

#[derive(Default)]
struct Seen {
    started: Vec<u64>,
    errors: u64,
}

/// A payload in its frame.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes(), payload].concat()
}

/// The list of candidates of a client: public addresses, so that the relay passes them on.
fn candidates(client: u16, count: u16) -> Vec<u8> {
    let mut list = u64::from(count).to_le_bytes().to_vec();
    for number in 0..count {
        let address = Ipv4Addr::new(198, 51, (client % 256) as u8, (number % 250) as u8 + 1);
        let foundation = format!("host_{address}");
        list.extend(0_u32.to_le_bytes());
        list.extend(0_u32.to_le_bytes());
        list.extend(address.octets());
        list.extend((50_000 + number).to_le_bytes());
        list.extend((2_130_706_431 - u32::from(number)).to_le_bytes());
        list.extend((foundation.len() as u64).to_le_bytes());
        list.extend(foundation.as_bytes());
        list.push(0);
    }
    list
}

/// The payload of an offer.
pub fn offer(session: u64, service: &str, client: u16, count: u16) -> Vec<u8> {
    let length = (service.len() as u64).to_le_bytes();
    let list = candidates(client, count);
    [&OFFER.to_le_bytes()[..], &session.to_le_bytes(), &length, service.as_bytes(), &list].concat()
}

/// The next frame's payload.
async fn next(recv: &mut RecvStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes(length) as usize];
    recv.read_exact(&mut payload).await.ok()?;
    Some(payload)
}

fn tag(payload: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*payload.first_chunk()?))
}

/// Answers every offer, on a stream of its own as the connectors in the field do.
async fn connector(connection: Connection, client: u16) -> Result<(), Failure> {
    let (_, mut recv) = connection.accept_bi().await?;
    let (mut send, _kept) = connection.open_bi().await?;
    let list = candidates(client, CANDIDATES);
    while let Some(payload) = next(&mut recv).await {
        if tag(&payload) == Some(OFFER) {
            let answer = [&ANSWER.to_le_bytes(), &payload[4..12], &list].concat();
            send.write_all(&frame(&answer)).await?;
        }
    }
    Ok(())
}

/// Offers at its share of the rate; the session number is the time of the offer.
async fn agent(
    mut send: SendStream,
    service: String,
    client: u16,
    mode: Arc<Signal>,
    begun: Instant,
) -> Result<u64, Failure> {
    let pause = Duration::from_secs_f64(f64::from(mode.agents) / f64::from(mode.rate));
    sleep(pause.mul_f64(f64::from(client) / f64::from(mode.agents))).await;
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = Duration::from_secs(mode.seconds.into());
    let mut offers = 0;
    loop {
        ticks.tick().await;
        let at = begun.elapsed();
        if at >= end {
            return Ok(offers);
        }
        let session = at.as_nanos() as u64;
        send.write_all(&frame(&offer(session, &service, client, CANDIDATES))).await?;
        offers += 1;
    }
}

async fn listen(mut recv: RecvStream, begun: Instant, seen: Arc<Mutex<Seen>>) {
    while let Some(payload) = next(&mut recv).await {
        let now = begun.elapsed().as_nanos() as u64;
        let mut seen = seen.lock().expect("no holder panics");
        match (tag(&payload), payload.get(4..).and_then(<[u8]>::first_chunk)) {
            (Some(START), Some(session)) => {
                seen.started.push(now.saturating_sub(u64::from_le_bytes(*session)));
            }
            _ => seen.errors += 1,
        }
    }
}

/// Run the mode; see `docs/benchmark.md` for the fields.
pub async fn run(common: &Common, mode: &Signal) -> Result<Value, Failure> {
    let clients = Clients::new(common, Some(Duration::from_secs(5)))?;
    let service = |client: u16| format!("{}-{}", common.service, client % mode.connectors);
    let mut held = Vec::new();
    for client in 0..mode.connectors {
        let connection = clients.registered(Role::Connector, &service(client)).await?;
        tokio::spawn(async move {
            if let Err(failure) = connector(connection, client).await {
                eprintln!("connector {client}: {failure}");
            }
        });
    }
    for client in 0..mode.agents {
        let agent = clients.registered(Role::Agent, &service(client)).await?;
        // With a packet of its own behind it, an agent has an inner address that no other of its connector has.
        let mark = Mark { agent: client.into(), number: 0, sent: 0, phase: 0 };
        agent.send_datagram(packet::build(PACKET, mark).into())?;
        held.push(agent);
    }
    eprintln!("@ready {} agents, {} connectors", mode.agents, mode.connectors);
    sleep(Duration::from_secs(1)).await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let shared = Arc::new(Signal { ..*mode });
    let (begun, usage) = (Instant::now(), Usage::begin());
    eprintln!("@begin");
    let mut offering = Vec::new();
    for (client, connection) in (0..mode.agents).zip(&held) {
        let (send, recv) = connection.open_bi().await?;
        tokio::spawn(listen(recv, begun, seen.clone()));
        let offers = agent(send, service(client), client, shared.clone(), begun);
        offering.push(tokio::spawn(async move { offers.await.map_err(|e| e.to_string()) }));
    }
    let mut offers = 0;
    for each in offering {
        offers += each.await??;
    }
    eprintln!("@end");
    let (used, waited) = usage.shares();
    sleep(REST).await;
    let mut seen = seen.lock().expect("no holder panics");
    seen.started.sort_unstable();
    let ms = |q| round(quantile(&seen.started, q) / 1000.0, 2);
    Ok(json!({
        "mode": "signal",
        "offers": offers,
        "started": seen.started.len(),
        "errors": seen.errors,
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
        "generator_cpu_share": round(used, 3),
        "generator_wait_share": round(waited, 3),
    }))
}
