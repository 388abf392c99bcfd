//! noq's drivers as tasks of the engine thread: in one queue with the tasks they wake, so that each
//! gets its turn in order.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::Poll,
    time::Instant,
};

use noq::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

/// Spawns on the `LocalSet` of the engine thread.
#[derive(Debug)]
pub(crate) struct LocalTasks;

impl Runtime for LocalTasks {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::task::spawn_local(future);
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
pub(crate) async fn turn() {
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
