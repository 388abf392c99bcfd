//! Joins: one request on one stream goes up to the control plane, and one reply down.
//!
//! A join is no connection of the relay: it is in no table, has no route and no DATAGRAMs, and ends
//! within seconds. Its limits are in `joins.rs`, and the client's side is in `ask.rs`.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use noq::{Connection, ConnectionError, Incoming, ReadError, RecvStream, ServerConfig, VarInt};
use tokio::time::{Instant, timeout_at};

use crate::{
    boundary::{
        counters::{Counter, Counters},
        event::Event,
    },
    config::{JOIN_ALPN, ListenConfig, MAX_JOIN},
    error::EngineError,
    panics::{Kept, contained, guarded},
    quic::{
        handshakes::{self, Handshake},
        joins::{Place, Verdict},
        lane::{self, Lane},
        transport,
    },
    shard::{Shard, certificates},
};

/// The time for everything, from the first packet on.
const LIMIT: Duration = Duration::from_secs(10);
/// The time after which a join that ends without a request has failed: it has kept others out.
const SLOW: Duration = Duration::from_secs(1);
/// The code of the CONNECTION_CLOSE behind a reply that has arrived.
const DONE: u32 = 0;

/// The cause of a join that ended without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The handshake failed.
    Handshake,
    /// The peer broke the protocol.
    Malformed,
    /// The control plane is behind.
    Busy,
    /// The time is over.
    Late,
    /// The peer has left.
    Gone,
}

impl Fault {
    fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(_) => Self::Malformed,
            ConnectionError::TimedOut => Self::Late,
            _ => Self::Gone,
        }
    }

    fn counter(self, counters: &Counters) -> &Counter {
        match self {
            Self::Handshake => &counters.join_handshake_failed,
            Self::Malformed => &counters.join_malformed,
            Self::Busy => &counters.join_refused_backpressure,
            Self::Late => &counters.join_timeouts,
            Self::Gone => &counters.join_abandoned,
        }
    }

    /// Code and reason of the CONNECTION_CLOSE.
    fn close(self) -> (u32, &'static str) {
        match self {
            Self::Handshake | Self::Gone => (DONE, ""),
            Self::Malformed => (1, "the request is too large"),
            Self::Busy => (2, "the relay is busy; try again"),
            Self::Late => (3, "not done in time"),
        }
    }
}

/// The settings of joins beside those of `server`; `None` where nobody can join.
pub(crate) fn server_config(
    config: &ListenConfig,
    server: &ServerConfig,
) -> Result<Option<Arc<ServerConfig>>, EngineError> {
    let Some(crypto) = config.tls.quic_join(&[JOIN_ALPN.to_vec()])? else {
        return Ok(None);
    };
    let mut server = server.clone();
    server.crypto = Arc::new(crypto);
    server.migration(false).transport_config(Arc::new(transport::join(2 * LIMIT, 1)?));
    Ok(Some(Arc::new(server)))
}

/// Whether an attempt offers the protocol of joins and no other one; `false` if its ClientHello cannot
/// be read.
pub(crate) fn is_join(incoming: &Incoming) -> bool {
    let join = contained(|| {
        let initial = incoming.decrypt()?;
        let mut offered = initial.alpns()?;
        let first = offered.next()?.ok()?;
        Some(first == JOIN_ALPN && offered.next().is_none())
    });
    join.flatten().unwrap_or(false)
}

/// Serves an attempt to join, or turns it away.
pub(crate) fn attempt(
    shard: &Rc<Shard>,
    lane: &Arc<Lane>,
    incoming: Incoming,
    verdict: Verdict,
    admitted: Option<(Place, Arc<ServerConfig>)>,
) {
    let counters = &shard.shared.counters;
    match (verdict, admitted) {
        (Verdict::Accept, Some((place, config))) => {
            counters.join_accepted.add(1);
            let under_way = lane.begin(incoming.remote_address());
            let shard = shard.clone();
            tokio::task::spawn_local(async move {
                let join = serve(&shard, incoming, config, place, under_way);
                if guarded(join).await.is_err() {
                    shard.shared.counters.connection_panics.add(1);
                }
            });
        }
        (Verdict::RefuseRate, _) => {
            counters.join_refused_rate.add(1);
            incoming.refuse();
        }
        (Verdict::RefuseBlocked, _) => {
            counters.join_refused_blocked.add(1);
            incoming.refuse();
        }
        (Verdict::RefuseFull | Verdict::Accept, _) => {
            counters.join_refused_full.add(1);
            incoming.refuse();
        }
        (Verdict::IgnoreSource, _) => {
            counters.join_ignored_source.add(1);
            incoming.ignore();
        }
    }
}

/// Serves a join to its end. Its work counts as that of a handshake.
async fn serve(
    shard: &Shard,
    incoming: Incoming,
    config: Arc<ServerConfig>,
    place: Place,
    under_way: lane::UnderWay,
) {
    let Shard { shared, handshakes: budget, listener, .. } = shard;
    // It keeps its address: no join migrates.
    let remote = incoming.remote_address();
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let begun = Instant::now();
    let deadline = begun + LIMIT;
    let handshake = Handshake::default();
    let connected = timeout_at(deadline, async {
        budget.ready_for_attempt().await;
        handshakes::accepting(budget, &handshake, || incoming.accept_with(config))?.await
    });
    let connected = connected.await;
    drop(under_way);
    let end = match connected {
        Ok(Ok(connection)) => {
            let connection = Kept::new(connection);
            let exchange = exchange(shard, &connection, &place, remote);
            let end = timeout_at(deadline, exchange).await.unwrap_or(Err(Fault::Late));
            let (code, reason) = end.map_or_else(Fault::close, |()| (DONE, ""));
            connection.close(VarInt::from_u32(code), reason.as_bytes());
            end
        }
        Ok(Err(_)) => Err(Fault::Handshake),
        Err(_) => Err(Fault::Late),
    };
    let Err(fault) = end else {
        return shared.counters.join_replies.add(1);
    };
    fault.counter(&shared.counters).add(1);
    let failed = fault == Fault::Malformed || begun.elapsed() >= SLOW;
    if failed
        && !place.has_asked()
        && let Some(listener) = &mut *listener.borrow_mut()
    {
        listener.admission.joins.fail(place.source, Instant::now().into_std());
    }
}

/// Passes the request up and the reply down, until the client has got it.
async fn exchange(
    shard: &Shard,
    connection: &Connection,
    place: &Place,
    remote: SocketAddr,
) -> Result<(), Fault> {
    let (send, recv) = connection.accept_bi().await.map_err(|e| Fault::of(&e))?;
    let (mut send, mut recv) = (Kept::new(send), Kept::new(recv));
    let data = read(&mut recv).await.map_err(|e| match e {
        Unread::TooLarge => Fault::Malformed,
        Unread::Lost(ReadError::ConnectionLost(e)) => Fault::of(&e),
        Unread::Lost(_) => Fault::Gone,
    })?;
    if let Some(error) = connection.close_reason() {
        return Err(Fault::of(&error));
    }
    let replied = place.ask();
    let request = Event::JoinRequest {
        request: place.request(),
        remote,
        certificate: certificates(connection).into_iter().next(),
        data,
    };
    if !shard.shared.outbox.offer(request) {
        return Err(Fault::Busy);
    }
    shard.shared.counters.join_requests.add(1);
    // Also for a client that has left: its place is not free before its request is decided on, and a
    // refused one counts.
    let reply = replied.await.map_err(|_| Fault::Late)?;
    let lost = |_| connection.close_reason().map_or(Fault::Gone, |e| Fault::of(&e));
    send.write_all(&reply).await.map_err(lost)?;
    // An error of the two says that the client has left with the reply.
    let _ = send.finish();
    let _ = send.stopped().await;
    Ok(())
}

/// The fault of a message that could not be read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It has more than [`MAX_JOIN`] bytes.
    TooLarge,
    /// Its stream or its connection has ended.
    Lost(ReadError),
}

/// Reads a message, a stream from its begin to its end. It is copied: what arrives in small pieces
/// would hold a whole packet for each of them.
pub(crate) async fn read(recv: &mut RecvStream) -> Result<Vec<u8>, Unread> {
    let mut message = Vec::new();
    while let Some(chunk) = recv.read_chunk(MAX_JOIN + 1).await.map_err(Unread::Lost)? {
        if message.len() + chunk.len() > MAX_JOIN {
            return Err(Unread::TooLarge);
        }
        message.extend_from_slice(&chunk);
    }
    Ok(message)
}
