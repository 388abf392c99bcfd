//! The streams of a server's connections: frames are read from the one that the client has opened, and
//! written to that one or to one that this server opens.

use std::{pin::Pin, rc::Rc, time::Instant};

use noq::{Connection, RecvStream, SendStream, VarInt};
use tokio::{
    task::AbortHandle,
    time::{Duration, sleep, timeout_at},
};

use crate::{
    boundary::event::{ConnId, Event, StreamEnd},
    bucket::Bucket,
    panics::{Kept, guarded},
    shard::Shard,
    signaling::{
        CONDEMNED, FRAME_TIMEOUT, LINGER,
        frames::{FrameReader, MAX_FRAME, frame},
        queue::{Queue, Signaling, Stream},
    },
};

/// How often something is looked at again that has no other signal.
const AGAIN: Duration = Duration::from_millis(50);

/// Serves the streams that the peer opens until it is dropped.
pub(crate) fn spawn(shard: &Rc<Shard>, id: ConnId, connection: &Connection) -> Task {
    let accepting = guarded(accept(shard.clone(), id, connection.clone()));
    Task(tokio::task::spawn_local(accepting).abort_handle())
}

/// Queues a frame for a connection, and opens this server's stream for the first that needs it.
pub(crate) fn send(shard: &Rc<Shard>, id: ConnId, payload: &[u8], to_agent: bool) {
    let Some((signaling, connection)) = signaling(shard, id) else {
        return;
    };
    match frame(payload).ok().and_then(|frame| signaling.send(frame, to_agent)) {
        None => report_dropped(shard, id, signaling),
        Some(Stream::Client) => (),
        Some(Stream::Server) => {
            let writing = signaling.clone();
            signaling.writer.borrow_mut().get_or_insert_with(|| {
                let writer = guarded(open(shard.clone(), id, connection, writing));
                let counters = shard.shared.counters.clone();
                let writer = async move {
                    if writer.await.is_err() {
                        counters.connection_panics.add(1);
                    }
                };
                tokio::task::spawn_local(writer).abort_handle()
            });
        }
    }
}

/// Orders the end of the stream that a client has opened.
pub(crate) fn condemn(shard: &Shard, id: ConnId, why: StreamEnd) {
    if let Some(signaling) = shard.peers.borrow().get(id).and_then(|p| p.signaling.as_ref()) {
        signaling.condemn(why);
    }
}

/// A task that ends when this is dropped.
pub(crate) struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The signaling of a connection, made when it is first asked for.
fn signaling(shard: &Shard, id: ConnId) -> Option<(Rc<Signaling>, Connection)> {
    let mut peers = shard.peers.borrow_mut();
    let peer = peers.get_mut(id)?;
    Some((peer.signaling.get_or_insert_default().clone(), peer.connection().clone()))
}

/// Serves one stream of the peer after the other. Nearly every connection waits here for ever: what a
/// stream takes is in a box.
async fn accept(shard: Rc<Shard>, id: ConnId, connection: Connection) {
    let mut intake = None;
    while let Ok(streams) = connection.accept_bi().await {
        let intake = intake.get_or_insert_with(Box::default);
        if guarded(serve(&shard, id, streams, intake)).await.is_err() {
            return Box::pin(broken(&shard, id)).await;
        }
    }
}

/// Serves a stream of the peer to its end.
fn serve<'a>(
    shard: &'a Shard,
    id: ConnId,
    (send, recv): (SendStream, RecvStream),
    intake: &'a mut Intake,
) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(async move {
        let streams = (Kept::new(send), Kept::new(recv));
        let Some((signaling, _)) = signaling(shard, id) else {
            return;
        };
        signaling.client_open.set(true);
        let end = serve_open(shard, id, &signaling, streams, intake).await;
        signaling.client_open.set(false);
        shard.backlog.borrow_mut().set(id, 0);
        report(shard, Event::SignalEnded { conn: id, end }).await;
    })
}

/// Frees what the stream of a connection held that a defect has ended. The connection relays on, without
/// signaling: its stream can be in any state.
async fn broken(shard: &Shard, id: ConnId) {
    shard.shared.counters.connection_panics.add(1);
    if let Some(signaling) = shard.peers.borrow().get(id).and_then(|p| p.signaling.as_ref()) {
        signaling.client_open.set(false);
    }
    shard.backlog.borrow_mut().set(id, 0);
    report(shard, Event::SignalEnded { conn: id, end: StreamEnd::Panic }).await;
}

/// Reads and writes a stream until it ends; returns why it did.
async fn serve_open(
    shard: &Shard,
    id: ConnId,
    signaling: &Signaling,
    (mut send, mut recv): (Kept<SendStream>, Kept<RecvStream>),
    intake: &mut Intake,
) -> StreamEnd {
    intake.take_frame().await;
    let condemned = async {
        loop {
            signaling.condemnation.notified().await;
            if let Some(end) = signaling.take_condemned() {
                return end;
            }
        }
    };
    let reading = async {
        let end = read(shard, id, &mut recv, intake).await;
        if end == StreamEnd::Finished {
            // What it has asked for before is still answered.
            sleep(LINGER).await;
        }
        end
    };
    let end = tokio::select! {
        end = reading => end,
        end = condemned => end,
        never = write(shard, id, &signaling.client, &mut send) => match never {},
    };
    // An error says that the stream, or its connection, has ended already.
    match end {
        StreamEnd::Finished => drop(send.finish()),
        _ => {
            let code = VarInt::from_u32(CONDEMNED);
            drop((send.reset(code), recv.stop(code)));
        }
    }
    end
}

/// Passes the frames of a stream up until it ends.
async fn read(shard: &Shard, id: ConnId, recv: &mut RecvStream, intake: &mut Intake) -> StreamEnd {
    let mut frames = FrameReader::default();
    let mut begun = None;
    loop {
        let chunk = match begun {
            None => recv.read_chunk(MAX_FRAME).await,
            Some(begun) => {
                let deadline = tokio::time::Instant::from_std(begun + FRAME_TIMEOUT);
                match timeout_at(deadline, recv.read_chunk(MAX_FRAME)).await {
                    Ok(chunk) => chunk,
                    Err(_) => return StreamEnd::FrameTimeout,
                }
            }
        };
        match chunk {
            Ok(Some(chunk)) => frames.feed(&chunk),
            Ok(None) if frames.pending() == 0 => return StreamEnd::Finished,
            Ok(None) | Err(_) => return StreamEnd::Reset,
        }
        // Whole frames count as well: they may have to wait.
        note(shard, id, frames.held());
        loop {
            match frames.next_frame() {
                Ok(Some(payload)) => {
                    intake.take(payload.len()).await;
                    intake.wait_registered(shard, id).await;
                    report(shard, Event::Signal { conn: id, payload }).await;
                    begun = None;
                }
                Ok(None) => break,
                Err(_) => return StreamEnd::FrameTooLarge,
            }
        }
        note(shard, id, frames.held());
        begun = (frames.pending() > 0).then(|| begun.unwrap_or_else(Instant::now));
    }
}

/// Writes what waits in a queue, frame by frame. A frame that the stream does not take is dropped.
async fn write(shard: &Shard, id: ConnId, queue: &Queue, send: &mut SendStream) -> Never {
    loop {
        let frame = queue.next().await;
        if send.write_all(&frame).await.is_err() {
            report(shard, Event::SignalDropped { conn: id }).await;
        }
    }
}

/// Opens this server's stream and writes what waits for it.
async fn open(shard: Rc<Shard>, id: ConnId, connection: Connection, signaling: Rc<Signaling>) {
    if let Ok((send, recv)) = connection.open_bi().await {
        // Kept, since an end of it would be news to the peer. Clients write to their own stream.
        let (mut send, _recv) = (Kept::new(send), Kept::new(recv));
        write(&shard, id, &signaling.server, &mut send).await;
    }
}

/// Nothing: the type of an answer that never comes.
enum Never {}

/// Waits for something that has no other signal.
async fn until(mut is: impl FnMut() -> bool) {
    while !is() {
        sleep(AGAIN).await;
    }
}

/// Passes an event up, when there is room for it.
async fn report(shard: &Shard, event: Event) {
    until(|| shard.shared.outbox.offer(event.clone())).await;
}

/// Passes up that a frame was dropped, in a task of its own: there may be no room now, and who does not
/// read is to lose its sessions all the same.
fn report_dropped(shard: &Rc<Shard>, id: ConnId, signaling: Rc<Signaling>) {
    let before = signaling.dropped.get();
    signaling.dropped.set(before + 1);
    if before > 0 {
        return;
    }
    let shard = shard.clone();
    tokio::task::spawn_local(async move {
        while signaling.dropped.get() > 0 {
            report(&shard, Event::SignalDropped { conn: id }).await;
            signaling.dropped.set(signaling.dropped.get() - 1);
        }
    });
}

/// Notes what a connection's unfinished frame holds. Where all together hold too much, the largest goes.
fn note(shard: &Shard, id: ConnId, bytes: usize) {
    let largest = shard.backlog.borrow_mut().set(id, bytes);
    if let Some(largest) = largest {
        condemn(shard, largest, StreamEnd::BacklogFull);
    }
}

/// What a connection may still send.
struct Intake {
    frames: Bucket,
    kibibytes: Bucket,
    registered: bool,
    /// Whether nothing has been passed up yet.
    first: bool,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            frames: Bucket::new(10, 20),
            kibibytes: Bucket::new(16, 128),
            registered: false,
            first: true,
        }
    }
}

impl Intake {
    async fn take_frame(&mut self) {
        until(|| self.frames.take(Instant::now())).await;
    }

    /// Waits until one more frame of so many bytes is within the rates.
    async fn take(&mut self, bytes: usize) {
        self.take_frame().await;
        for _ in 0..bytes.div_ceil(1024) {
            until(|| self.kibibytes.take(Instant::now())).await;
        }
    }

    /// Waits until the sender has registered something; its first frame goes without.
    async fn wait_registered(&mut self, shard: &Shard, id: ConnId) {
        if !std::mem::take(&mut self.first) && !self.registered {
            until(|| is_registered(shard, id)).await;
            self.registered = true;
        }
    }
}

fn is_registered(shard: &Shard, id: ConnId) -> bool {
    let relay = shard.relay.borrow();
    let routes = relay.as_ref().map(|relay| &relay.forwarder.routes);
    routes.is_some_and(|routes| routes.is_agent(id) || routes.is_connector(id))
}

#[cfg(test)]
mod tests;
