//! Carries the bytes of one TCP flow between the userspace stack and a socket.
//!
//! The socket is read only while the flow has room, and the flow's window opens only when the
//! socket has taken the bytes: a slow reader on either side slows the writer on the other.

use std::{io, net::Shutdown, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};
use ztna_edge::{TcpFlow, TcpState};

use super::{link::TURN, user::Carrying};

/// A silent socket asks so often whether the other side still lives: as the flow itself does, so
/// that neither end of it waits for what has vanished without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// And then again after this, nine times in vain before it is given up (tcp_keepalive_probes).
const KEEP_ALIVE_AGAIN: Duration = Duration::from_secs(15);
/// Bytes moved each way before the packets they make are sent.
const CHUNK: usize = 64 * 1024;

/// One socket and how far each of its directions has come.
struct Ends {
    stream: TcpStream,
    /// The socket may give more bytes.
    reading: bool,
    /// The socket may take more bytes.
    writing: bool,
    /// The socket took less than it was offered.
    full: bool,
    /// The socket gave all it had.
    dry: bool,
}

/// What stopped a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    InOrder,
    Reset,
}

/// Runs until both directions have ended or one side has reset the other.
pub(super) async fn carry(carrying: Carrying, stream: TcpStream) {
    // Nothing here is worth waiting for more: segments have been waited for at the other end.
    let _ = stream.set_nodelay(true);
    let keep_alive =
        socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE_AGAIN);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keep_alive);
    let mut ends = Ends { stream, reading: true, writing: true, full: false, dry: false };
    if run(&carrying, &mut ends).await == End::Reset {
        // Closing with unread bytes or without lingering is a reset for the application, too.
        let socket = socket2::SockRef::from(&ends.stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

async fn run(carrying: &Carrying, ends: &mut Ends) -> End {
    let Carrying { user, id, wake } = carrying;
    loop {
        let now = std::time::Instant::now();
        let (flush, state, readable, writable) = {
            let mut stack = user.stack.borrow_mut();
            let Some(flow) = stack.tcp(*id) else {
                return End::Reset;
            };
            ends.exchange(flow);
            let room = user.link.room().min(TURN);
            let flush = stack.flush(*id, room, now);
            let Some(flow) = stack.tcp(*id) else {
                return End::Reset;
            };
            (flush, flow.state(), flow.readable(), flow.writable())
        };
        user.send_out();
        match state {
            TcpState::Done => return End::InOrder,
            TcpState::Aborted => return End::Reset,
            TcpState::Opening | TcpState::Open => {}
        }
        if flush.blocked {
            user.link.wait(wake);
        }
        let more_to_read = ends.reading && writable > 0;
        let more_to_write = ends.writing && readable > 0;
        if more_to_read && !ends.dry || more_to_write && !ends.full {
            tokio::task::yield_now().await;
            continue;
        }
        let timer = flush.deadline.map(Instant::from_std);
        tokio::select! {
            () = wake.notified() => {}
            _ = ends.stream.readable(), if more_to_read => {}
            _ = ends.stream.writable(), if more_to_write => {}
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {}
        }
    }
}

impl Ends {
    /// Moves bytes both ways, as far as socket and flow go along.
    fn exchange(&mut self, flow: &mut TcpFlow) {
        let (mut moved, stream) = (0, &self.stream);
        self.dry = false;
        while self.reading && flow.writable() > 0 && moved < CHUNK {
            let mut result = Ok(0);
            moved += flow.send(|room| {
                result = stream.try_read(room);
                result.as_ref().map_or(0, |n| *n)
            });
            match result {
                Ok(0) => {
                    self.reading = false;
                    flow.finish();
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.dry = true;
                    break;
                }
                Err(_) => {
                    self.reading = false;
                    flow.abort();
                }
            }
        }
        moved = 0;
        self.full = false;
        while self.writing && flow.readable() > 0 && moved < CHUNK {
            let mut result = Ok(0);
            moved += flow.receive(|bytes| {
                result = stream.try_write(bytes);
                result.as_ref().map_or(0, |n| *n)
            });
            match result {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.full = true;
                    break;
                }
                Err(_) => {
                    self.writing = false;
                    flow.abort();
                }
            }
        }
        if self.writing && flow.at_end() && flow.state() != TcpState::Aborted {
            self.writing = false;
            let _ = socket2::SockRef::from(stream).shutdown(Shutdown::Write);
        }
    }
}
