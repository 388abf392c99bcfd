//! The lane: packets of handshakes wait here for their turn, so that a burst of them does not delay
//! packets of established connections.
//!
//! What a driver may be sent is not bounded by noq, so packets wait here, before they are its own:
//! so many at most, and of one source a sixteenth. A few go on at a time, those that one client has
//! sent together, when the work of the last ones is done and `handshakes.rs` has time for it: a
//! driver that got them one by one would answer each. While an address has a handshake under way
//! its packets keep their order: a registration that overtook the end of its handshake would be lost.

use std::{
    collections::{HashMap, VecDeque},
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Waker},
};

use noq_udp::RecvMeta;
use tokio::sync::Notify;

use crate::quic::{driver::yield_once, handshakes::HandshakeBudget, sources::prefix};

/// Packets that may wait.
const MAX_HELD: usize = 4096;
/// Packets of one source that may wait, an IPv4 address or IPv6 /56.
const MAX_OF_SOURCE: usize = MAX_HELD / 16;

/// Packets of one address that go on together: a certificate and what proves it.
const MAX_TOGETHER: usize = 4;

/// Bytes of one; above what we let peers send.
const MAX_PACKET: usize = 2048;

/// The waiting packets of one socket. One thread uses it, so its lock is never contended.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// How many there are, the next ones included.
    held: AtomicUsize,
    state: Mutex<State>,
    arrived: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Packet>,
    /// The packets whose turn it is, of one address.
    next: VecDeque<Packet>,
    of_address: HashMap<SocketAddr, usize>,
    of_source: HashMap<IpAddr, usize>,
    /// Handshakes under way by the address of their client.
    under_way: HashMap<SocketAddr, usize>,
    reader: Option<Waker>,
}

#[derive(Debug)]
struct Packet {
    meta: RecvMeta,
    contents: Vec<u8>,
}

/// A client's handshake for as long as it is held.
#[derive(Debug)]
pub(crate) struct UnderWay {
    lane: Arc<Lane>,
    client: SocketAddr,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        less(&mut self.lane.state().under_way, self.client);
    }
}

impl Lane {
    pub(crate) fn is_empty(&self) -> bool {
        self.held.load(Relaxed) == 0
    }

    /// Notes that a client's handshake is under way until the returned value is dropped.
    pub(crate) fn begin(self: &Arc<Self>, client: SocketAddr) -> UnderWay {
        *self.state().under_way.entry(client).or_default() += 1;
        UnderWay { lane: self.clone(), client }
    }

    /// Whether a packet has to wait behind others of its address. Without a handshake under way it
    /// need not: by packets with its address, anybody could delay an established connection.
    pub(crate) fn follows(&self, address: SocketAddr) -> bool {
        let state = &*self.state();
        state.of_address.contains_key(&address) && state.under_way.contains_key(&address)
    }

    /// Takes a packet; `false` if there are too many, or it is too large.
    pub(crate) fn hold(&self, contents: &[u8], meta: &RecvMeta) -> bool {
        let state = &mut *self.state();
        let source = prefix(meta.addr.ip());
        let full = self.held.load(Relaxed) >= MAX_HELD
            || state.of_source.get(&source).is_some_and(|held| *held >= MAX_OF_SOURCE);
        if full || contents.len() > MAX_PACKET {
            return false;
        }
        *state.of_source.entry(source).or_default() += 1;
        *state.of_address.entry(meta.addr).or_default() += 1;
        let mut meta = *meta;
        (meta.len, meta.stride) = (contents.len(), contents.len());
        state.waiting.push_back(Packet { meta, contents: contents.to_vec() });
        self.held.fetch_add(1, Relaxed);
        self.arrived.notify_one();
        true
    }

    /// Gives the socket's reader the packets whose turn it is, and wakes it for the next ones.
    pub(crate) fn take(
        &self,
        cx: &Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> usize {
        let state = &mut *self.state();
        let mut taken = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some(packet) = state.next.pop_front() else {
                break;
            };
            let of_source = prefix(packet.meta.addr.ip());
            less(&mut state.of_address, packet.meta.addr);
            less(&mut state.of_source, of_source);
            buffer[..packet.contents.len()].copy_from_slice(&packet.contents);
            *meta = packet.meta;
            taken += 1;
        }
        self.held.fetch_sub(taken, Relaxed);
        if taken == 0 {
            state.reader = Some(cx.waker().clone());
        } else if state.next.is_empty() {
            self.taken.notify_one();
        }
        taken
    }

    /// Lets the packets go on in their order, for as long as the engine runs.
    pub(crate) async fn run(&self, budget: &HandshakeBudget) {
        loop {
            budget.ready().await;
            if !self.advance() {
                self.arrived.notified().await;
                continue;
            }
            self.taken.notified().await;
            // The driver that the packets were for has its turn before the next ones.
            yield_once().await;
        }
    }

    fn advance(&self) -> bool {
        let state = &mut *self.state();
        let Some(first) = state.waiting.pop_front() else {
            return false;
        };
        let address = first.meta.addr;
        state.next.push_back(first);
        while state.next.len() < MAX_TOGETHER
            && state.waiting.front().is_some_and(|packet| packet.meta.addr == address)
        {
            state.next.extend(state.waiting.pop_front());
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8, port: u16) -> RecvMeta {
        let mut meta = RecvMeta::default();
        meta.addr = SocketAddr::new([192, 0, 2, last].into(), port);
        meta
    }

    /// The ports and first bytes of what one receive into so many buffers gives.
    fn taken(lane: &Lane, buffers: usize) -> Vec<(u16, u8)> {
        let mut contents = vec![[0; MAX_PACKET]; buffers];
        let mut metas = vec![RecvMeta::default(); buffers];
        let mut slices: Vec<_> = contents.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let taken =
            lane.take(&Context::from_waker(Waker::noop()), &mut slices, &mut metas[..buffers]);
        (0..taken).map(|n| (metas[n].addr.port(), slices[n][0])).collect()
    }

    #[test]
    fn packets_go_on_in_their_order_and_together_if_sent_together() {
        let lane = Arc::new(Lane::default());
        for (n, port) in [7, 7, 8, 7, 7, 7, 7, 7].into_iter().enumerate() {
            assert!(lane.hold(&[n as u8; 9], &from(1, port)));
        }
        assert_eq!(taken(&lane, 8), [], "not before their turn");
        for turn in [&[(7, 0), (7, 1)][..], &[(8, 2)], &[(7, 3), (7, 4), (7, 5), (7, 6)]] {
            assert!(lane.advance());
            assert_eq!(taken(&lane, 8), turn);
            assert_eq!(taken(&lane, 8), []);
        }
        assert!(lane.hold(&[8; 9], &from(1, 7)) && lane.advance());
        assert_eq!(taken(&lane, 1), [(7, 7)], "no more than there are buffers");
        assert_eq!(taken(&lane, 1), [(7, 8)]);
        assert!(lane.is_empty() && !lane.advance());
    }

    #[test]
    fn who_has_a_handshake_under_way_waits_behind_its_own_packets() {
        let lane = Arc::new(Lane::default());
        let under_way = lane.begin(from(1, 4433).addr);
        assert!(lane.hold(&[1; 9], &from(1, 4433)));
        assert!(lane.follows(from(1, 4433).addr) && !lane.follows(from(1, 4434).addr));
        assert!(lane.advance() && lane.follows(from(1, 4433).addr));
        assert_eq!(taken(&lane, 1), [(4433, 1)]);
        assert!(lane.is_empty() && !lane.follows(from(1, 4433).addr));
        assert!(lane.hold(&[4; 9], &from(1, 4433)) && lane.follows(from(1, 4433).addr));
        drop(under_way);
        assert!(!lane.follows(from(1, 4433).addr), "in another's name");
        assert!(lane.advance() && !taken(&lane, 1).is_empty());
        let state = lane.state();
        assert!(state.of_source.is_empty() && state.under_way.is_empty());
    }

    #[test]
    fn so_many_wait_and_of_one_source_a_sixteenth() {
        let lane = Lane::default();
        for last in 1..=16 {
            let held = (0..5000).filter(|port| lane.hold(&[1], &from(last, *port))).count();
            assert_eq!(held, MAX_OF_SOURCE);
        }
        assert!(!lane.hold(&[1], &from(17, 1)));
        assert_eq!(lane.state().of_source.len(), 16, "who has no packet here is not remembered");
        assert!(lane.advance() && !taken(&lane, 1).is_empty());
        assert!(!lane.hold(&[1; MAX_PACKET + 1], &from(17, 1)));
        assert!(lane.hold(&[1; MAX_PACKET], &from(17, 1)));
    }
}
