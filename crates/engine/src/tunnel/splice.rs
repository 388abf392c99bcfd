//! Moves the bytes of one TCP flow between the userspace stack and a socket.
//!
//! The socket is read only while the flow has room, and the flow's window opens only when the
//! socket has taken the bytes: a slow reader on either side slows the writer on the other.

use std::{io, net::Shutdown, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};
use ztna_netstack::{TcpFlow, TcpState, Unreachable};

use super::{netstack::Splice, tx_queue::TURN};

/// Interval of keep-alives on a silent socket, as of the flow itself, so that neither end waits for
/// one that has vanished.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// And then again after this, nine times in vain before it is given up (tcp_keepalive_probes).
const KEEP_ALIVE_AGAIN: Duration = Duration::from_secs(15);
/// Bytes moved each way before the packets they make are sent.
const CHUNK: usize = 64 * 1024;

/// A flow of which one direction has ended ends when no byte has moved the other way for so long:
/// that other side may never notice the end, and such flows use up what there may be.
const HALF_CLOSED: Duration = Duration::from_secs(300);
/// Bytes of one side before its reset have this long to make progress towards the other side.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// Pause between two looks at whether the system has sent the last bytes.
const LOOK: Duration = Duration::from_millis(10);

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
    /// The socket was reset: the other side is reset after all bytes before.
    broken: bool,
    /// When bytes moved last.
    moved: Instant,
}

/// The cause that stopped a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    InOrder,
    Reset,
    Refused(Refused),
}

/// The way in which the other side refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It was reset during its handshake.
    Reset,
    /// The other side's end of the tunnel could not reach its application.
    Unreachable,
    /// The other side's end of the tunnel could not be reached.
    NoWay,
}

/// Runs until both directions have ended or one side has reset the other; returns how the other
/// side refused the connection, if it did.
pub(super) async fn run(splice: Splice, stream: TcpStream) -> Option<Refused> {
    // No further wait: segments have been gathered at the other end.
    let _ = stream.set_nodelay(true);
    let keep_alive =
        socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE_AGAIN);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keep_alive);
    let mut ends = Ends::new(stream);
    let end = pump(&splice, &mut ends).await;
    if end != End::InOrder {
        if !ends.broken {
            last_words_sent(&ends.stream).await;
        }
        // Closing with unread bytes or without lingering is a reset for the application, too.
        let socket = socket2::SockRef::from(&ends.stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
    match end {
        End::Refused(refused) => Some(refused),
        End::InOrder | End::Reset => None,
    }
}

async fn pump(splice: &Splice, ends: &mut Ends) -> End {
    let Splice { netstack, id, wake } = splice;
    let mut unsent = 0;
    loop {
        let now = std::time::Instant::now();
        let (flush, state, readable, writable) = {
            let mut stack = netstack.stack.borrow_mut();
            let Some(flow) = stack.tcp(*id) else {
                return End::Reset;
            };
            ends.exchange(flow);
            if flow.unsent() != unsent {
                unsent = flow.unsent();
                ends.moved = Instant::now();
            }
            if ends.is_over(unsent) {
                flow.abort();
            }
            let room = netstack.tx_queue.room().min(TURN);
            let flush = stack.flush(*id, room, now);
            let Some(flow) = stack.tcp(*id) else {
                return End::Reset;
            };
            if let Some(refused) = refused(flow) {
                return End::Refused(refused);
            }
            (flush, flow.state(), flow.readable(), flow.writable())
        };
        netstack.send_out();
        let more_to_write = ends.writing && readable > 0;
        match state {
            TcpState::Done => return End::InOrder,
            TcpState::Aborted => {
                ends.read_no_more();
                if !more_to_write || ends.patience_is_over() {
                    return End::Reset;
                }
            }
            TcpState::Opening | TcpState::Open => {}
        }
        if flush.blocked {
            netstack.tx_queue.wait(wake);
        }
        let more_to_read = ends.reading && writable > 0;
        if more_to_read && !ends.dry || more_to_write && !ends.full {
            tokio::task::yield_now().await;
            continue;
        }
        let timer = flush.deadline.map(Instant::from_std);
        let timer = timer.into_iter().chain(ends.patience()).min();
        tokio::select! {
            () = wake.notified() => {}
            _ = ends.stream.readable(), if more_to_read => {}
            _ = ends.stream.writable(), if more_to_write => {}
            // Also of a socket that is not read, or written to, any more.
            _ = ends.stream.ready(Interest::ERROR), if !ends.broken => ends.is_broken(),
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {}
        }
    }
}

/// The refusal of a connection that was begun here.
fn refused(flow: &TcpFlow) -> Option<Refused> {
    if flow.is_connected() || flow.state() != TcpState::Aborted {
        return None;
    }
    Some(match flow.unreachable() {
        Some(Unreachable::OnTheWay) => Refused::NoWay,
        Some(Unreachable::FarEnd) => Refused::Unreachable,
        None => Refused::Reset,
    })
}

/// Waits until the system has sent a socket's bytes, which a reset would discard; with a limit if
/// the other side takes none.
async fn last_words_sent(stream: &TcpStream) {
    let end = Instant::now() + LAST_WORDS;
    // Then a socket counts as writable only when it has sent everything.
    let set = socket2::SockRef::from(stream).set_tcp_notsent_lowat(1);
    let sent = || {
        let mut asked = [PollFd::new(stream, PollFlags::OUT)];
        // Of a socket that has failed, too.
        poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    };
    while set.is_ok() && !sent() && Instant::now() < end {
        sleep(LOOK).await;
    }
}

impl Ends {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            reading: true,
            writing: true,
            full: false,
            dry: false,
            broken: false,
            moved: Instant::now(),
        }
    }

    /// Notes that the socket was reset: it takes no more bytes, but may still give some.
    fn is_broken(&mut self) {
        if !self.broken {
            self.broken = true;
            self.writing = false;
            self.moved = Instant::now();
        }
    }

    /// The socket has no more bytes to give, or none that are wanted.
    fn read_no_more(&mut self) {
        if self.reading {
            self.reading = false;
            self.moved = Instant::now();
        }
    }

    /// Whether the flow is to be reset, where so many bytes are on their way to the other side.
    fn is_over(&self, unsent: usize) -> bool {
        self.broken && !self.reading && unsent == 0 || self.patience_is_over()
    }

    /// The moment before which bytes have to move in a half-closed flow.
    fn patience(&self) -> Option<Instant> {
        let patience = match (self.broken, self.reading && self.writing) {
            (true, _) => LAST_WORDS,
            (false, false) => HALF_CLOSED,
            (false, true) => return None,
        };
        Some(self.moved + patience)
    }

    fn patience_is_over(&self) -> bool {
        self.patience().is_some_and(|end| Instant::now() >= end)
    }

    /// Moves bytes both ways, as far as socket and flow go along.
    fn exchange(&mut self, flow: &mut TcpFlow) {
        let mut moved = 0;
        self.dry = false;
        while self.reading && flow.writable() > 0 && moved < CHUNK {
            let mut result = Ok(0);
            moved += flow.send(|room| {
                result = self.stream.try_read(room);
                result.as_ref().map_or(0, |n| *n)
            });
            match result {
                Ok(0) => {
                    self.read_no_more();
                    // A stream that a reset has cut off has no end.
                    if !self.broken {
                        flow.finish();
                    }
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.dry = true;
                    break;
                }
                Err(_) => {
                    self.read_no_more();
                    self.is_broken();
                }
            }
        }
        let mut any = moved > 0;
        moved = 0;
        self.full = false;
        while self.writing && flow.readable() > 0 && moved < CHUNK {
            let mut result = Ok(0);
            moved += flow.receive(|bytes| {
                result = self.stream.try_write(bytes);
                result.as_ref().map_or(0, |n| *n)
            });
            match result {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.full = true;
                    break;
                }
                Err(_) => self.is_broken(),
            }
        }
        any |= moved > 0;
        if self.broken {
            // With a full window the flow would not get the other side's acknowledgements either.
            while flow.receive(<[u8]>::len) > 0 {}
        }
        if any {
            self.moved = Instant::now();
        }
        if self.writing && flow.at_end() && flow.state() != TcpState::Aborted {
            self.writing = false;
            self.moved = Instant::now();
            let _ = socket2::SockRef::from(&self.stream).shutdown(Shutdown::Write);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ends() -> Ends {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        Ends::new(stream)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flow_of_which_one_direction_has_ended_is_given_up_after_minutes() {
        let mut ends = ends().await;
        tokio::time::advance(Duration::from_secs(86_400)).await;
        assert!(!ends.is_over(0), "a silent one may be silent for ever");
        ends.read_no_more();
        tokio::time::advance(HALF_CLOSED - Duration::from_secs(1)).await;
        assert!(!ends.is_over(0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(ends.is_over(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_waits_for_what_was_said_before_it() {
        let mut ends = ends().await;
        ends.is_broken();
        assert!(!ends.is_over(0), "the socket may have more to give");
        ends.read_no_more();
        assert!(!ends.is_over(1));
        assert!(ends.is_over(0));
        tokio::time::advance(LAST_WORDS).await;
        assert!(ends.is_over(1), "nobody takes it");
    }
}
