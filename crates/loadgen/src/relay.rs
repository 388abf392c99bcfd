//! Agents send IP packets to one connector at a rate; the connector counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use noq::Connection;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{
    Failure,
    options::{Common, Relay},
    packet::{self, Mark},
    peer::{Clients, Role},
    stats::round,
    transport::DATAGRAM_BUFFER,
    usage::Usage,
};

/// Time between bursts.
const TICK: Duration = Duration::from_millis(1);
/// After a late wake-up at most this much is made up for, so that lateness does not become one huge burst.
const CATCH_UP: Duration = Duration::from_millis(8);
/// Most packets handed to one agent at once: what one GSO write can carry.
const BURST: usize = 64;
/// With `--rate 0`, bytes an agent may have waiting before it gets more.
const FULL: usize = 128 << 10;
/// One packet in this many has its checksums recomputed by the connector.
const VERIFY: u64 = 64;
/// After the window the connector counts until nothing came for this long.
const QUIET: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Received {
    all: AtomicU64,
    counted: AtomicU64,
    late: AtomicU64,
    corrupt: AtomicU64,
}

async fn count(
    connector: Connection,
    size: usize,
    agents: usize,
    ring: u32,
    received: Arc<Received>,
) {
    let mut batch = vec![Bytes::new(); 256];
    let mut last = vec![(0_u8, 0_u32); agents];
    while let Ok(taken) = connector.read_many_datagrams(&mut batch).await {
        for data in &mut batch[..taken] {
            let data = std::mem::take(data);
            let Some(mark) = packet::read(&data, size) else {
                continue;
            };
            let order = received.all.fetch_add(1, Relaxed);
            received.counted.fetch_add(u64::from(mark.phase), Relaxed);
            match last.get_mut(mark.agent as usize) {
                Some((phase, number)) => {
                    // Numbers repeat after `ring` packets: a step back of less than half of it is a late packet.
                    if *phase == mark.phase
                        && (*number + ring - mark.number) % ring < ring / 2
                        && *number != mark.number
                    {
                        received.late.fetch_add(1, Relaxed);
                    }
                    (*phase, *number) = (mark.phase, mark.number);
                }
                None => {
                    received.corrupt.fetch_add(1, Relaxed);
                }
            }
            if order.is_multiple_of(VERIFY) && !packet::verify(&data) {
                received.corrupt.fetch_add(1, Relaxed);
            }
        }
    }
}

/// An agent and the packets it sends over and over, one ring for each phase.
struct Sender {
    connection: Connection,
    rings: [Vec<Bytes>; 2],
    position: usize,
}

impl Sender {
    fn new(connection: Connection, agent: u32, mode: &Relay, service: &str, ring: u32) -> Self {
        let made = |phase, number| {
            let packet = packet::build(mode.size.into(), Mark { agent, number, sent: 0, phase });
            match mode.wrapped {
                true => [&[0x2f, service.len() as u8], service.as_bytes(), &packet].concat().into(),
                false => Bytes::from(packet),
            }
        };
        let rings = [0, 1].map(|phase| (0..ring).map(|number| made(phase, number)).collect());
        Self { connection, rings, position: 0 }
    }

    /// Queue `wanted` packets of a phase as far as there is room below `limit` bytes; returns how many were queued.
    fn send(&mut self, wanted: usize, phase: usize, limit: usize) -> Result<usize, Failure> {
        let ring = &self.rings[phase];
        let waiting =
            DATAGRAM_BUFFER - self.connection.datagram_send_buffer_space().min(DATAGRAM_BUFFER);
        // The library charges each queued DATAGRAM its own bookkeeping beside its bytes.
        let room = limit.saturating_sub(waiting) / (ring[0].len() + 64);
        let mut left = wanted.min(room);
        let queued = left;
        while left > 0 {
            let burst = left.min(BURST).min(ring.len() - self.position);
            self.connection.send_many_datagrams(&ring[self.position..self.position + burst])?;
            self.position = (self.position + burst) % ring.len();
            left -= burst;
        }
        Ok(queued)
    }
}

struct Pacer<'a> {
    senders: &'a mut [Sender],
    rate: u32,
    turn: usize,
}

impl Pacer<'_> {
    /// Send for `length`; with `ramp` the rate grows linearly from zero. Returns the number of packets queued.
    async fn offer(&mut self, length: Duration, phase: usize, ramp: bool) -> Result<u64, Failure> {
        let start = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut queued, mut due, mut before) = (0_u64, 0.0_f64, Duration::ZERO);
        loop {
            let elapsed = start.elapsed().min(length);
            if self.rate == 0 {
                for sender in self.senders.iter_mut() {
                    queued += sender.send(BURST, phase, FULL)? as u64;
                }
                tokio::task::yield_now().await;
            } else {
                let slope = if ramp { elapsed.as_secs_f64() / length.as_secs_f64() } else { 1.0 };
                due +=
                    (elapsed - before).min(CATCH_UP).as_secs_f64() * slope * f64::from(self.rate);
                before = elapsed;
                let whole = due as usize;
                due -= whole as f64;
                queued += self.share(whole, phase)?;
                ticks.tick().await;
            }
            if elapsed == length {
                return Ok(queued);
            }
        }
    }

    /// Hand out one tick's packets, each agent an equal run, the remainder in turn.
    fn share(&mut self, packets: usize, phase: usize) -> Result<u64, Failure> {
        let agents = self.senders.len();
        let (each, extra) = (packets / agents, packets % agents);
        let mut queued = 0;
        for step in 0..agents {
            let sender = &mut self.senders[(self.turn + step) % agents];
            queued += sender.send(each + usize::from(step < extra), phase, DATAGRAM_BUFFER)? as u64;
        }
        self.turn = (self.turn + extra) % agents;
        Ok(queued)
    }
}

/// Run the mode; see `docs/benchmark.md` for the fields.
pub async fn run(common: &Common, mode: &Relay) -> Result<Value, Failure> {
    let clients = Clients::new(common, Some(Duration::from_secs(10)))?;
    let connector = Clients::new(common, Some(Duration::from_secs(10)))?
        .registered(Role::Connector, &common.service)
        .await?;
    let ring = (512 / u32::from(mode.agents)).clamp(16, 128);
    let mut senders = Vec::new();
    for agent in 0..u32::from(mode.agents) {
        let connection = clients.registered(Role::Agent, &common.service).await?;
        if connection
            .max_datagram_size()
            .is_none_or(|room| room < usize::from(mode.size) + 2 + common.service.len())
        {
            return Err(format!(
                "a packet of {} bytes does not fit this server's DATAGRAMs",
                mode.size
            )
            .into());
        }
        senders.push(Sender::new(connection, agent, mode, &common.service, ring));
    }
    eprintln!("{} agents and the connector are registered", mode.agents);

    let received = Arc::new(Received::default());
    tokio::spawn(count(connector.clone(), mode.size.into(), senders.len(), ring, received.clone()));
    let mut pacer = Pacer { senders: &mut senders, rate: mode.rate, turn: 0 };
    pacer.offer(Duration::from_secs(mode.warmup.into()), 0, true).await?;

    let (usage, start, before) = (Usage::begin(), Instant::now(), received.all.load(Relaxed));
    eprintln!("@begin");
    let offered = pacer.offer(Duration::from_secs(mode.seconds.into()), 1, false).await?;
    let ((share, waited), length, after) =
        (usage.shares(), start.elapsed().as_secs_f64(), received.all.load(Relaxed));
    eprintln!("@end");

    let mut seen = u64::MAX;
    while seen != received.all.load(Relaxed) {
        seen = received.all.load(Relaxed);
        sleep(QUIET).await;
    }
    let written: u64 =
        senders.iter().map(|sender| sender.connection.stats().frame_tx.datagram).sum();
    let counted = received.counted.load(Relaxed);
    connector.close(0_u8.into(), b"");
    for sender in &senders {
        sender.connection.close(0_u8.into(), b"");
    }
    sleep(Duration::from_millis(20)).await;
    let wanted = f64::from(mode.rate) * length;
    Ok(json!({
        "mode": "relay",
        "size": mode.size,
        "wrapped": mode.wrapped,
        "agents": mode.agents,
        "certificates": common.cert.is_some(),
        "target_rate": mode.rate,
        "window_seconds": round(length, 3),
        "window_received": after - before,
        "offered": offered,
        "offered_rate": round(offered as f64 / length, 0),
        "received": counted,
        "received_rate": round((after - before) as f64 / length, 0),
        "loss_percent": round(100.0 * (offered - counted.min(offered)) as f64 / offered.max(1) as f64, 4),
        "generator_behind": mode.rate != 0 && (offered as f64) < 0.98 * wanted,
        "generator_cpu_share": round(share, 3),
        "generator_wait_share": round(waited, 3),
        "datagrams_written": written,
        "out_of_order": received.late.load(Relaxed),
        "corrupt": received.corrupt.load(Relaxed),
    }))
}
