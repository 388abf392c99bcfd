//! Where packets wait for the end of a driver's turn, so that what one turn sends to one peer
//! leaves in one system call: noq writes at most ten packets at a time.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use noq_udp::{EcnCodepoint, Transmit};

use crate::socket::Udp;

/// Bytes in one system call; the kernel takes no UDP payload above 65,507.
const MAX_BYTES: usize = 65_000;

/// The packets of the turn under way; one for each engine thread.
#[derive(Debug, Default)]
pub(crate) struct Stage(Mutex<Staged>);

#[derive(Debug, Default)]
struct Staged {
    head: Option<Head>,
    bytes: Vec<u8>,
    /// A task waits for room in the socket.
    waiting: bool,
}

/// What all packets on the stage have in common.
#[derive(Debug)]
struct Head {
    udp: Arc<Udp>,
    destination: SocketAddr,
    src_ip: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    segment: usize,
}

impl Stage {
    /// Takes packets of a turn; a packet by itself is sent at once, behind those already here.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full; nothing has been taken then.
    pub(crate) fn put(&self, udp: &Arc<Udp>, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut staged = self.lock();
        if staged.fits(udp, transmit) {
            staged.bytes.extend_from_slice(transmit.contents);
            return Ok(());
        }
        staged.send()?;
        let Some(segment) = transmit.segment_size else {
            return udp.try_send(transmit);
        };
        staged.bytes.extend_from_slice(transmit.contents);
        let Transmit { destination, src_ip, ecn, .. } = *transmit;
        staged.head = Some(Head { udp: udp.clone(), destination, src_ip, ecn, segment });
        Ok(())
    }

    /// Sends what a turn has left here; what a full socket does not take follows when it can.
    pub(crate) fn flush(self: &Arc<Self>) {
        let mut staged = self.lock();
        if staged.send().is_err() && !std::mem::replace(&mut staged.waiting, true) {
            tokio::task::spawn_local(self.clone().resume());
        }
    }

    /// Packets that wait here.
    pub(crate) fn len(&self) -> usize {
        let staged = self.lock();
        staged.head.as_ref().map_or(0, |head| staged.bytes.len().div_ceil(head.segment))
    }

    async fn resume(self: Arc<Self>) {
        let udp = self.lock().head.as_ref().map(|head| head.udp.clone());
        if let Some(udp) = udp {
            udp.writable().await;
        }
        self.lock().waiting = false;
        self.flush();
    }

    fn lock(&self) -> MutexGuard<'_, Staged> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staged {
    /// Whether packets can follow those already here: a batch is one size, but for its last packet.
    fn fits(&self, udp: &Arc<Udp>, transmit: &Transmit<'_>) -> bool {
        let Some(head) = &self.head else {
            return false;
        };
        let len = transmit.contents.len();
        let same_size = match transmit.segment_size {
            Some(segment) => segment == head.segment,
            None => len <= head.segment,
        };
        let total = self.bytes.len() + len;
        same_size
            && self.bytes.len().is_multiple_of(head.segment)
            && total <= MAX_BYTES.min(head.segment * udp.max_segments().get())
            && Arc::ptr_eq(udp, &head.udp)
            && head.destination == transmit.destination
            && head.src_ip == transmit.src_ip
            && head.ecn == transmit.ecn
    }

    fn send(&mut self) -> io::Result<()> {
        let Some(Head { udp, destination, src_ip, ecn, segment }) = &self.head else {
            return Ok(());
        };
        udp.try_send(&Transmit {
            destination: *destination,
            src_ip: *src_ip,
            ecn: *ecn,
            contents: &self.bytes,
            segment_size: Some(*segment),
        })?;
        self.bytes.clear();
        self.head = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::counters::Counters;

    /// A stage, a socket to send from and one that receives.
    async fn stage() -> (Arc<Stage>, Arc<Udp>, UdpSocket) {
        let socket = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (from, to) = (socket(), socket());
        from.set_nonblocking(true).unwrap();
        to.set_nonblocking(true).unwrap();
        let udp = Udp::new(from, Arc::<Counters>::default()).unwrap();
        udp.writable().await;
        (Arc::default(), udp, to)
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
        let (stage, udp, to) = stage().await;
        let batch = |first: u8| [[first; 100], [first + 1; 100]].concat();
        stage.put(&udp, &transmit(&to, &batch(1), Some(100))).unwrap();
        stage.put(&udp, &transmit(&to, &batch(3), Some(100))).unwrap();
        stage.put(&udp, &transmit(&to, &[5; 60], None)).unwrap();
        assert_eq!((stage.len(), received(&to)), (5, vec![]));
        // The last one was short: nothing may follow it in one batch.
        stage.put(&udp, &transmit(&to, &batch(6), Some(100))).unwrap();
        assert_eq!(stage.len(), 2);
        stage.flush();
        let marks: Vec<(u8, usize)> = received(&to).iter().map(|p| (p[0], p.len())).collect();
        let sizes = |n: usize| if n == 5 { 60 } else { 100 };
        let expected: Vec<(u8, usize)> = (1..=7).map(|n| (n as u8, sizes(n))).collect();
        assert_eq!((marks, stage.len()), (expected, 0));
    }

    #[tokio::test]
    async fn a_packet_by_itself_and_one_for_another_peer_do_not_wait() {
        let (stage, udp, to) = stage().await;
        stage.put(&udp, &transmit(&to, &[1; 50], None)).unwrap();
        assert_eq!(received(&to).len(), 1);
        stage.put(&udp, &transmit(&to, &[2; 100], Some(50))).unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        stage.put(&udp, &transmit(&other, &[3; 100], Some(50))).unwrap();
        assert_eq!((stage.len(), received(&to).len()), (2, 2));
    }

    #[tokio::test]
    async fn a_batch_never_outgrows_one_system_call() {
        let (stage, udp, to) = stage().await;
        let ten = vec![7; 13_500];
        for _ in 0..5 {
            stage.put(&udp, &transmit(&to, &ten, Some(1350))).unwrap();
        }
        assert_eq!(stage.len(), 10, "four batches of ten are all that fit");
        assert_eq!(received(&to).len(), 40);
    }
}
