//! noq's drivers as tasks of the engine thread: in one queue with the tasks that they wake, so that
//! each gets its turn in order.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use noq::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

use crate::quic::{
    egress::Egress,
    handshakes::{self, UnderWay},
};

/// Packets after which noq ends a driver's turn although it has more to send.
const FULL_TURN: usize = 20;

/// Spawns on the `LocalSet` of the engine thread. Packets of a driver's turn leave at its end.
#[derive(Debug)]
pub(crate) struct LocalTasks(pub(crate) Arc<Egress>);

impl Runtime for LocalTasks {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, mut driver: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let egress = self.0.clone();
        let mut handshake = handshakes::take_accepting();
        tokio::task::spawn_local(poll_fn(move |cx| {
            let measured = handshake.as_ref().and_then(UnderWay::measure);
            let mut end = driver.as_mut().poll(cx);
            // Twice as much in one system call.
            if end.is_pending() && egress.len() == FULL_TURN {
                end = driver.as_mut().poll(cx);
            }
            egress.flush();
            let over = measured.is_none();
            drop(measured);
            if over {
                handshake = None;
            }
            end
        }));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Box<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// Lets every other task that is ready run once.
///
/// Cheaper than tokio's `yield_now`, which waits for a look at the sockets too.
pub(crate) async fn yield_once() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
