//! The egress: packets wait here for the end of a driver's turn, so that those of one turn to one
//! peer leave in one system call. noq writes at most ten packets at a time.
//!
//! Each socket has a batch of its own: a full socket delays no packets of another.

use std::{
    fmt,
    future::Future,
    io,
    num::NonZeroUsize,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use noq::UdpSender;
use noq_udp::Transmit;
use tokio::time::timeout;

use crate::quic::udp::Udp;

/// How long a batch waits for room in its socket. QUIC has sent its packets again by then, and a
/// socket that its endpoint has left must not be kept for ever.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Packets that the first transmit of a connection may have: noq keeps a buffer for so many, and makes
/// it larger at the first transmit of more. A batch has the rest of a handshake's answer.
const FIRST_SEGMENTS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// The sockets whose batches leave at the end of the turn; one for each engine thread.
#[derive(Debug, Default)]
pub(crate) struct Egress(Mutex<Vec<Arc<Udp>>>);

impl Egress {
    /// Takes packets of a turn; a single packet is sent at once, behind the ones in its socket's
    /// batch.
    ///
    /// # Errors
    /// `WouldBlock` when this socket is full; no packet has been taken then.
    pub(crate) fn put(&self, udp: &Arc<Udp>, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut batch = udp.batch();
        if batch.append(transmit, udp.max_segments().get()) {
            return Ok(());
        }
        batch.send(|packets| udp.try_send(packets))?;
        let Some(segment) = transmit.segment_size else {
            return udp.try_send(transmit);
        };
        batch.begin(transmit, segment);
        if !std::mem::replace(&mut batch.listed, true) {
            self.lock().push(udp.clone());
        }
        Ok(())
    }

    /// Sends the packets of a turn; the ones for a full socket follow when it has room.
    pub(crate) fn flush(&self) {
        while let Some(udp) = self.next() {
            let mut batch = udp.batch();
            batch.listed = false;
            let left = batch.send(|packets| udp.try_send(packets)).is_ok();
            if !left && !std::mem::replace(&mut batch.waiting, true) {
                tokio::task::spawn_local(resume(udp.clone()));
            }
        }
    }

    /// Packets that wait here.
    pub(crate) fn len(&self) -> usize {
        self.lock().iter().map(|udp| udp.batch().len()).sum()
    }

    fn next(&self) -> Option<Arc<Udp>> {
        self.lock().pop()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Udp>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a batch once its socket has room, and gives it up after a long wait.
async fn resume(udp: Arc<Udp>) {
    let mut failed = false;
    while timeout(LONGEST_WAIT, udp.room(failed)).await.is_ok() {
        let mut batch = udp.batch();
        if batch.send(|packets| udp.try_send(packets)).is_ok() {
            batch.waiting = false;
            return;
        }
        // Another sender was quicker.
        failed = true;
    }
    let mut batch = udp.batch();
    udp.given_up(batch.len());
    batch.clear();
    batch.waiting = false;
}

type Room = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The sender of one connection, which waits for its own socket alone.
pub(crate) struct Sender {
    udp: Arc<Udp>,
    egress: Arc<Egress>,
    /// Something has been sent.
    begun: bool,
    /// Made when the socket was full. The mutex is never contended: it makes the future `Sync`.
    room: Mutex<Option<Room>>,
}

impl Sender {
    pub(crate) fn new(udp: Arc<Udp>, egress: Arc<Egress>) -> Self {
        Self { udp, egress, begun: false, room: Mutex::new(None) }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("udp", &self.udp).finish_non_exhaustive()
    }
}

impl UdpSender for Sender {
    fn poll_send(
        self: Pin<&mut Self>,
        transmit: &Transmit<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.begun = true;
        let waiting = this.room.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut failed = false;
        loop {
            if let Some(room) = waiting {
                ready!(room.as_mut().poll(cx));
                *waiting = None;
            }
            match this.egress.put(&this.udp, transmit) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(_) => {
                    let udp = this.udp.clone();
                    // A wrong report of room by the kernel must lead to a pause and not to a busy
                    // loop.
                    let again = std::mem::replace(&mut failed, true);
                    *waiting = Some(Box::pin(async move { udp.room(again).await }));
                }
            }
        }
    }

    fn max_transmit_segments(&self) -> NonZeroUsize {
        let most = self.udp.max_segments();
        if self.begun { most } else { most.min(FIRST_SEGMENTS) }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::UdpSocket, sync::atomic::Ordering, task::Waker};

    use tokio::task::{LocalSet, yield_now};

    use super::*;
    use crate::boundary::counters::Counters;

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    async fn udp(counters: &Arc<Counters>) -> Arc<Udp> {
        let udp = Udp::new(socket(), counters.clone()).unwrap();
        udp.room(false).await;
        udp
    }

    /// An egress, a socket to send from and one that receives.
    async fn egress() -> (Arc<Egress>, Arc<Udp>, UdpSocket) {
        (Arc::default(), udp(&Arc::default()).await, socket())
    }

    /// Two sockets to send from by one egress, of which the first is full, and one that receives.
    struct Pair {
        egress: Arc<Egress>,
        full: Arc<Udp>,
        other: Arc<Udp>,
        to: UdpSocket,
        counters: Arc<Counters>,
    }

    impl Pair {
        async fn new() -> Self {
            let counters = Arc::<Counters>::default();
            let (full, other) = (udp(&counters).await, udp(&counters).await);
            full.full.store(true, Ordering::Relaxed);
            Self { egress: Arc::default(), full, other, to: socket(), counters }
        }

        /// Packets that a turn of a connection of the full socket leaves there.
        fn fill(&self) {
            self.egress.put(&self.full, &transmit(&self.to, &[1; 200], Some(100))).unwrap();
            self.egress.flush();
        }

        /// Lets the kernel have room again, and say so: it does whenever something arrives.
        fn drain(&self) {
            self.full.full.store(false, Ordering::Relaxed);
            self.to.send_to(b"x", self.full.local_addr().unwrap()).unwrap();
        }

        fn sender(&self, udp: &Arc<Udp>) -> Pin<Box<Sender>> {
            Box::pin(Sender::new(udp.clone(), self.egress.clone()))
        }
    }

    fn transmit<'a>(to: &UdpSocket, contents: &'a [u8], segment: Option<usize>) -> Transmit<'a> {
        let destination = to.local_addr().unwrap();
        Transmit { destination, src_ip: None, ecn: None, contents, segment_size: segment }
    }

    fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2000];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())).collect()
    }

    #[tokio::test]
    async fn packets_of_one_turn_wait_for_its_end_and_keep_their_order() {
        let (egress, udp, to) = egress().await;
        let batch = |first: u8| [[first; 100], [first + 1; 100]].concat();
        egress.put(&udp, &transmit(&to, &batch(1), Some(100))).unwrap();
        egress.put(&udp, &transmit(&to, &batch(3), Some(100))).unwrap();
        egress.put(&udp, &transmit(&to, &[5; 60], None)).unwrap();
        assert_eq!((egress.len(), received(&to)), (5, vec![]));
        // The last one was short: nothing may follow it in one batch.
        egress.put(&udp, &transmit(&to, &batch(6), Some(100))).unwrap();
        assert_eq!(egress.len(), 2);
        egress.flush();
        let marks: Vec<(u8, usize)> = received(&to).iter().map(|p| (p[0], p.len())).collect();
        let sizes = |n: usize| if n == 5 { 60 } else { 100 };
        let expected: Vec<(u8, usize)> = (1..=7).map(|n| (n as u8, sizes(n))).collect();
        assert_eq!((marks, egress.len()), (expected, 0));
    }

    #[tokio::test]
    async fn a_packet_by_itself_and_one_for_another_peer_do_not_wait() {
        let (egress, udp, to) = egress().await;
        egress.put(&udp, &transmit(&to, &[1; 50], None)).unwrap();
        assert_eq!(received(&to).len(), 1);
        egress.put(&udp, &transmit(&to, &[2; 100], Some(50))).unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        egress.put(&udp, &transmit(&other, &[3; 100], Some(50))).unwrap();
        assert_eq!((egress.len(), received(&to).len()), (2, 2));
    }

    #[tokio::test]
    async fn a_batch_never_outgrows_one_system_call() {
        let (egress, udp, to) = egress().await;
        let ten = vec![7; 13_500];
        for _ in 0..5 {
            egress.put(&udp, &transmit(&to, &ten, Some(1350))).unwrap();
        }
        assert_eq!(egress.len(), 10, "four batches of ten are all that fit");
        assert_eq!(received(&to).len(), 40);
    }

    #[tokio::test]
    async fn the_first_transmit_of_a_connection_is_a_small_one() {
        let (egress, udp, to) = egress().await;
        let mut sender = Box::pin(Sender::new(udp.clone(), egress));
        assert!(sender.max_transmit_segments() <= FIRST_SEGMENTS);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(sender.as_mut().poll_send(&transmit(&to, &[1; 50], None), &mut cx).is_ready());
        assert_eq!(sender.max_transmit_segments(), udp.max_segments());
    }

    #[tokio::test]
    async fn a_full_socket_keeps_nobody_waiting_who_sends_by_another() {
        let tasks = LocalSet::new();
        let pair = tasks.run_until(Pair::new()).await;
        let test = async {
            pair.fill();
            // More than its batch takes waits for this socket alone.
            let other_size = transmit(&pair.to, &[2; 50], Some(25));
            assert!(pair.egress.put(&pair.full, &other_size).is_err());
            let mut blocked = pair.sender(&pair.full);
            let mut free = pair.sender(&pair.other);
            let mut cx = Context::from_waker(Waker::noop());
            for turn in 0..100 {
                assert!(blocked.as_mut().poll_send(&other_size, &mut cx).is_pending());
                for contents in [[3; 200].as_slice(), &[3; 70]] {
                    let segment = (contents.len() > 100).then_some(100);
                    let sent = transmit(&pair.to, contents, segment);
                    assert!(matches!(free.as_mut().poll_send(&sent, &mut cx), Poll::Ready(Ok(()))));
                }
                pair.egress.flush();
                assert_eq!(received(&pair.to).len(), 3, "turn {turn}");
            }
            // Everything that waited follows in its order.
            pair.drain();
            poll_fn(|cx| blocked.as_mut().poll_send(&other_size, cx)).await.unwrap();
            pair.egress.flush();
            let sizes: Vec<usize> = received(&pair.to).iter().map(Vec::len).collect();
            assert_eq!(sizes, [100, 100, 25, 25]);
        };
        tasks.run_until(test).await;
    }

    #[tokio::test]
    async fn a_batch_that_found_no_room_leaves_without_another_turn() {
        let tasks = LocalSet::new();
        let pair = tasks.run_until(Pair::new()).await;
        let test = async {
            pair.fill();
            yield_now().await;
            assert_eq!(received(&pair.to).len(), 0);
            pair.drain();
            while Arc::strong_count(&pair.full) > 1 {
                yield_now().await;
            }
            assert_eq!(received(&pair.to).len(), 2);
        };
        tasks.run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_without_room_is_given_up_in_the_end_and_its_socket_let_go() {
        let tasks = LocalSet::new();
        let pair = tasks.run_until(Pair::new()).await;
        pair.egress.put(&pair.full, &transmit(&pair.to, &[1; 250], Some(100))).unwrap();
        // Alone, with the clock at rest while there is anything else to do.
        tasks.run_until(async { pair.egress.flush() }).await;
        tasks.await;
        assert_eq!(Arc::strong_count(&pair.full), 1);
        assert_eq!(pair.counters.udp_dropped_socket_full.get(), 3);
    }
}
