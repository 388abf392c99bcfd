//! Connections that signal as nobody should, for as long as stdin is open.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use noq::{Connection, RecvStream, SendStream, VarInt, WriteError};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, stdin},
    time::{sleep, timeout},
};

use crate::{
    Failure,
    options::{Common, Hostile},
    packet::{self, Mark},
    peer::{Clients, Role},
    signal::{frame, offer},
    stats::round,
    transport,
};

/// Connectors that never read what they are sent.
const CONNECTORS: u16 = 2;
/// Bytes that a client here takes on a stream unread.
const WINDOW: u32 = 1024;
/// Time between offers of a connection: as many as the relay reads of one.
const PAUSE: Duration = Duration::from_millis(100);
/// Candidates of the largest offer.
const MOST: u16 = 1150;
/// Longest time, should stdin never close.
const LONGEST: Duration = Duration::from_secs(100);

#[derive(Clone, Copy)]
enum Kind {
    /// Frames whose length is over the largest.
    Oversized,
    /// A frame that never ends.
    Endless,
    /// Payloads that are no messages.
    Malformed,
    /// The largest offers, one behind the other.
    Largest,
    /// Offers without reading any answer.
    Unread,
    /// More offers than are taken.
    Offers,
}

impl Kind {
    /// Half of all send offers, and a tenth each of the others.
    fn of(client: u16) -> Self {
        match client % 10 {
            0 => Self::Oversized,
            1 => Self::Endless,
            2 => Self::Malformed,
            3 => Self::Largest,
            4 => Self::Unread,
            _ => Self::Offers,
        }
    }
}

#[derive(Default)]
struct Counts {
    streams: AtomicU64,
    frames: AtomicU64,
    read: AtomicU64,
}

/// Writes to a stream until the relay ends it.
async fn write(
    send: &mut SendStream,
    kind: Kind,
    service: &str,
    counts: &Counts,
) -> Result<(), WriteError> {
    let mut number = 0;
    loop {
        number += 1;
        match kind {
            Kind::Oversized => {
                send.write_all(&70_000_u32.to_be_bytes()).await?;
                send.write_all(&[0; 100]).await?;
                sleep(PAUSE).await;
            }
            Kind::Endless if number == 1 => send.write_all(&60_000_u32.to_be_bytes()).await?,
            Kind::Endless => {
                send.write_all(b"x").await?;
                sleep(PAUSE).await;
            }
            Kind::Malformed => send.write_all(&frame(b"x")).await?,
            Kind::Largest => send.write_all(&frame(&offer(number, service, 0, MOST))).await?,
            Kind::Unread => send.write_all(&frame(&offer(number, service, 0, 10))).await?,
            Kind::Offers => {
                send.write_all(&frame(&offer(number, service, 0, 10))).await?;
                sleep(PAUSE).await;
            }
        }
        counts.frames.fetch_add(1, Relaxed);
    }
}

/// Reads a stream until the relay ends it.
async fn read(recv: &mut RecvStream, kind: Kind, counts: &Counts) {
    if matches!(kind, Kind::Unread) {
        std::future::pending::<()>().await;
    }
    while let Ok(Some(_)) = recv.read_chunk(4096).await {
        counts.read.fetch_add(1, Relaxed);
    }
}

async fn misbehave(connection: Connection, kind: Kind, service: String, counts: Arc<Counts>) {
    while let Ok((mut send, mut recv)) = connection.open_bi().await {
        tokio::select! {
            _ = write(&mut send, kind, &service, &counts) => {}
            () = read(&mut recv, kind, &counts) => {}
        }
        counts.streams.fetch_add(1, Relaxed);
    }
}

/// Run the mode; see `docs/benchmark.md` for the fields.
pub async fn run(common: &Common, mode: &Hostile) -> Result<Value, Failure> {
    let clients = Clients::with(common, transport::narrow(WINDOW))?;
    let service = format!("{}-hostile", common.service);
    let counts = Arc::new(Counts::default());
    let mut held = Vec::new();
    for _ in 0..CONNECTORS {
        held.push(clients.registered(Role::Connector, &service).await?);
    }
    for client in 0..mode.connections {
        let agent = clients.registered(Role::Agent, &service).await?;
        // With an inner address that no other has, so that its offers go on to a connector.
        let mark = Mark { agent: client.into(), number: 0, sent: 0, phase: 0 };
        agent.send_datagram(packet::build(packet::SMALLEST, mark).into())?;
        held.push(agent);
    }
    let agents = held[usize::from(CONNECTORS)..].iter().cloned();
    for (client, agent) in (0..).zip(agents) {
        tokio::spawn(misbehave(agent, Kind::of(client), service.clone(), counts.clone()));
    }
    eprintln!("@ready {} connections", mode.connections);
    let (begun, mut byte, mut input) = (Instant::now(), [0_u8; 64], stdin());
    let closed = async { while input.read(&mut byte).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(LONGEST, closed).await;
    let lost = held.iter().filter(|connection| connection.close_reason().is_some()).count();
    for connection in &held {
        connection.close(VarInt::from_u32(0), b"");
    }
    sleep(Duration::from_millis(200)).await;
    Ok(json!({
        "mode": "hostile",
        "connections": held.len(),
        "lost": lost,
        "seconds": round(begun.elapsed().as_secs_f64(), 2),
        "streams_ended": counts.streams.load(Relaxed),
        "frames_written": counts.frames.load(Relaxed),
        "chunks_read": counts.read.load(Relaxed),
    }))
}
