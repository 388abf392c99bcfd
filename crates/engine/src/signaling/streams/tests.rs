use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, mpsc},
    thread,
};

use bytes::Bytes;
use noq::{ClientConfig, Endpoint};
use tokio::{
    task::{LocalSet, yield_now},
    time::timeout,
};

use super::*;
use crate::{
    boundary::{counters::Counters, outbox::Outbox},
    config::{ALPN, ListenConfig},
    quic::{
        endpoint::listen,
        tls::{ClientAuth, ClientTls, ServerTls, ServerTrust},
    },
    shared::Shared,
};

const CERTIFICATE: &[u8] = include_bytes!("../../../tests/site/certificate.pem");
const KEY: &[u8] = include_bytes!("../../../tests/site/key.pem");
const PATIENCE: Duration = Duration::from_secs(60);
const FRAME: usize = 60 * 1024;

/// A relay on the thread of the test, which reads its outbox.
struct Relay {
    shard: Rc<Shard>,
    address: SocketAddr,
}

/// Runs a test on a relay with room for so many events.
fn with_relay<F: Future<Output = ()>>(events: usize, test: impl FnOnce(Relay) -> F) {
    let counters = Arc::<Counters>::default();
    let outbox = Arc::new(Outbox::new(events, counters.clone()).unwrap());
    let shared = Shared { counters, outbox, started: Instant::now() };
    let shard = Rc::new(Shard::new(shared, <_>::default()));
    let idle = shard.handshakes.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || idle.on_idle())
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let tls = ServerTls::new(CERTIFICATE, KEY, None, ClientAuth::Off, None).unwrap();
        let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let config = ListenConfig::new(bind, Arc::new(tls), vec![1; 32], vec![2; 32]);
        let (bound, _) = listen(&shard, config).unwrap();
        timeout(PATIENCE, test(Relay { shard, address: bound[0] })).await.unwrap();
    });
}

impl Relay {
    /// The next event that `wanted` takes; those before it are lost.
    async fn event<T>(&self, wanted: impl Fn(Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = self.shard.shared.outbox.drain(1).pop().and_then(&wanted) {
                return found;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// The sender of the next frame.
    async fn signal(&self) -> ConnId {
        self.event(|event| match event {
            Event::Signal { conn, .. } => Some(conn),
            _ => None,
        })
        .await
    }

    async fn dropped(&self) -> ConnId {
        self.event(|event| match event {
            Event::SignalDropped { conn } => Some(conn),
            _ => None,
        })
        .await
    }

    async fn ended(&self) -> (ConnId, StreamEnd) {
        self.event(|event| match event {
            Event::SignalEnded { conn, end } => Some((conn, end)),
            _ => None,
        })
        .await
    }

    fn register(&self, id: ConnId) {
        let mut relay = self.shard.relay.borrow_mut();
        let forwarder = &mut relay.as_mut().unwrap().forwarder;
        forwarder.set_agent(id, &[Bytes::from_static(b"web")], None, 1, Instant::now());
    }

    fn signaling(&self, id: ConnId) -> Rc<Signaling> {
        signaling(&self.shard, id).unwrap().0
    }

    fn panics(&self) -> u64 {
        self.shard.shared.counters.connection_panics.get()
    }
}

async fn connect(relay: SocketAddr) -> Connection {
    let tls = ClientTls::new(None, None, ServerTrust::Anyone).unwrap();
    let config = ClientConfig::new(Arc::new(tls.quic(&[ALPN.to_vec()]).unwrap()));
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    endpoint.connect_with(config, relay, "relay.test").unwrap().await.unwrap()
}

/// A client with a stream, on which it has sent a frame.
async fn client(relay: SocketAddr) -> (Connection, SendStream, RecvStream) {
    let connection = connect(relay).await;
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(&frame(b"hello").unwrap()).await.unwrap();
    (connection, send, recv)
}

fn size_of<F: Future>(_: fn(Rc<Shard>, ConnId, Connection) -> F) -> usize {
    std::mem::size_of::<F>()
}

#[test]
fn what_waits_for_a_stream_is_small() {
    let size = size_of(accept);
    assert!(size <= 256, "{size} bytes");
}

#[test]
fn one_frame_is_read_of_who_has_registered_nothing() {
    with_relay(1_000, |relay| async move {
        let (_connection, mut send, _recv) = client(relay.address).await;
        let id = relay.signal().await;
        send.write_all(&frame(b"second").unwrap()).await.unwrap();
        assert!(timeout(4 * AGAIN, relay.signal()).await.is_err());
        relay.register(id);
        assert_eq!(relay.signal().await, id);
    });
}

/// Frames of so many bytes are read in no less than this time, since that of the first.
fn are_read(sizes: Vec<usize>, least: Duration) {
    with_relay(1_000, |relay| async move {
        let begun = Instant::now();
        let (_connection, mut send, _recv) = client(relay.address).await;
        let id = relay.signal().await;
        relay.register(id);
        let count = sizes.len();
        let written = async {
            for size in sizes {
                send.write_all(&frame(&vec![0; size]).unwrap()).await.unwrap();
            }
        };
        let read = async {
            for _ in 0..count {
                relay.signal().await;
            }
        };
        tokio::join!(written, read);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    });
}

#[test]
fn twenty_frames_are_read_at_once_and_ten_a_second() {
    are_read(vec![1; 34], Duration::from_millis(1_500));
}

#[test]
fn so_many_bytes_are_read_at_once_and_sixteen_kib_a_second() {
    // The first frame took one KiB.
    are_read(vec![64 * 1024, 63 * 1024, 24 * 1024], Duration::from_millis(1_500));
}

#[test]
fn the_largest_frame_reaches_a_reader_whole() {
    with_relay(1_000, |relay| async move {
        let (_connection, _send, mut recv) = client(relay.address).await;
        let id = relay.signal().await;
        let sent: Vec<u8> = (0..MAX_FRAME).map(|at| at as u8).collect();
        send(&relay.shard, id, &sent, true);
        let mut got = vec![0; 4 + MAX_FRAME];
        recv.read_exact(&mut got).await.unwrap();
        assert_eq!(got, frame(&sent).unwrap());
    });
}

#[test]
fn a_peer_that_acknowledges_nothing_has_little_kept_for_it() {
    with_relay(1_000, |relay| async move {
        let (stop, stopped) = (mpsc::channel(), mpsc::channel());
        let (end, address) = (mpsc::channel::<()>(), relay.address);
        let silent = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            let _client = runtime.block_on(async {
                let client = client(address).await;
                while stop.1.try_recv().is_err() {
                    sleep(Duration::from_millis(1)).await;
                }
                client
            });
            stopped.0.send(()).unwrap();
            end.1.recv().unwrap_err();
        });
        let id = relay.signal().await;
        stop.0.send(()).unwrap();
        while stopped.1.try_recv().is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        for _ in 0..12 {
            send(&relay.shard, id, &[0; FRAME], true);
            // The stream takes what it takes.
            for _ in 0..10 {
                yield_now().await;
            }
        }
        // One is being written, and two wait.
        for _ in 3..12 {
            assert_eq!(relay.dropped().await, id);
        }
        assert!(relay.shard.shared.outbox.drain(1).is_empty());
        drop(end.0);
        silent.join().unwrap();
    });
}

#[test]
fn a_dropped_frame_is_reported_once_the_control_plane_has_room() {
    with_relay(4, |relay| async move {
        let (_connection, _send, _recv) = client(relay.address).await;
        let id = relay.signal().await;
        let outbox = &relay.shard.shared.outbox;
        while outbox.offer(Event::Signal { conn: id, payload: Bytes::new() }) {}
        for _ in 0..30 {
            send(&relay.shard, id, b"x", true);
        }
        // Sixteen wait for the stream.
        for _ in 16..30 {
            assert_eq!(relay.dropped().await, id);
        }
        assert_eq!(relay.signaling(id).dropped.get(), 0);
    });
}

#[test]
fn the_largest_unfinished_frame_goes_where_all_hold_too_much() {
    with_relay(1_000, |relay| async move {
        let (_connection, mut send, _recv) = client(relay.address).await;
        let victim = relay.signal().await;
        for other in 0..300 {
            relay.shard.backlog.borrow_mut().set(ConnId(other), 50_000);
        }
        let (_connection, mut other_send, _recv) = client(relay.address).await;
        let other = relay.signal().await;
        other_send.write_all(&[0, 0, 0, 100, 1]).await.unwrap();
        send.write_all(&60_000_u32.to_be_bytes()).await.unwrap();
        send.write_all(&[0; 59_000]).await.unwrap();
        for more in 300..400 {
            relay.shard.backlog.borrow_mut().set(ConnId(more), 50_000);
        }
        send.write_all(&[0; 500]).await.unwrap();
        assert_eq!(relay.ended().await, (victim, StreamEnd::BacklogFull));
        let code = VarInt::from_u32(CONDEMNED);
        assert_eq!(send.stopped().await.unwrap(), Some(code));
        assert!(relay.signaling(other).client_open.get());
    });
}

#[test]
#[expect(clippy::await_holding_refcell_ref, reason = "this is the defect that is injected")]
fn a_defect_in_signaling_ends_the_signaling_of_its_connection_only() {
    with_relay(1_000, |relay| async move {
        let (connection, mut send, _recv) = client(relay.address).await;
        let victim = relay.signal().await;
        let (_other, mut other_send, _recv) = client(relay.address).await;
        let other = relay.signal().await;
        assert!(relay.signaling(victim).client_open.get());
        // The second frame of who has registered nothing asks for its routes, which are borrowed here.
        let borrowed = relay.shard.relay.borrow_mut();
        send.write_all(&frame(&[0; 1_000]).unwrap()).await.unwrap();
        until(|| relay.panics() == 1).await;
        drop(borrowed);

        assert_eq!(relay.ended().await, (victim, StreamEnd::Panic));
        assert!(!relay.signaling(victim).client_open.get());
        assert_eq!(relay.shard.backlog.borrow().total(), 0);
        // Its connection and all others go on.
        connection.send_datagram(Bytes::from_static(b"\x10\x03web")).unwrap();
        let control = relay.event(|event| match event {
            Event::Control { conn, .. } => Some(conn),
            _ => None,
        });
        assert_eq!(control.await, victim);
        assert!(relay.signaling(other).client_open.get());
        other_send.reset(VarInt::from_u32(0)).unwrap();
        assert_eq!(relay.ended().await, (other, StreamEnd::Reset));
        assert_eq!(relay.panics(), 1);
    });
}
