//! The socket of a connector's UDP flow, and the flow's first packets.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, task::AbortHandle};
use ztna_netstack::Backend;

use super::connect::Health;

/// The first packets of a flow are repeated to the backend's next address when one refuses: so many,
/// of so many bytes, for so long. A later error does not concern them.
const FIRST_PACKETS: usize = 8;
const FIRST_BYTES: usize = 64 << 10;
const FIRST_TIME: Duration = Duration::from_secs(5);
/// Bytes held for that by all flows together.
const ALL_FIRST_BYTES: usize = 4 << 20;
/// A flow's way to its application.
#[derive(Debug)]
pub(super) struct UdpBackend {
    pub(super) backend: Backend,
    pub(super) socket: Rc<UdpSocket>,
    pub(super) reader: Option<AbortHandle>,
    /// The next address, for a failure of this one.
    pub(super) next: usize,
    pub(super) first: First,
    /// The application has answered on this socket.
    pub(super) answered: bool,
    pub(super) health: Rc<Health>,
}

impl UdpBackend {
    /// Reports the state of the present address.
    pub(super) fn tell(&self, error: Option<String>) {
        self.health.tell(&self.backend, self.backend.addresses[self.next - 1], error);
    }
}

impl Drop for UdpBackend {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

/// The first packets of a flow, until its application answers.
#[derive(Debug)]
pub(super) struct First {
    begun: Instant,
    pub(super) packets: Vec<Vec<u8>>,
    bytes: usize,
    /// Bytes held by all flows.
    pub(super) all: Rc<Cell<usize>>,
}

impl First {
    pub(super) fn new(all: Rc<Cell<usize>>) -> Self {
        Self { begun: Instant::now(), packets: Vec::new(), bytes: 0, all }
    }

    pub(super) fn is_over(&self) -> bool {
        self.begun.elapsed() > FIRST_TIME
    }

    pub(super) fn keep(&mut self, payload: &[u8]) {
        if self.is_over() {
            self.forget();
        } else if self.packets.len() < FIRST_PACKETS
            && self.bytes + payload.len() <= FIRST_BYTES
            && self.all.get() + payload.len() <= ALL_FIRST_BYTES
        {
            self.packets.push(payload.to_vec());
            self.bytes += payload.len();
            self.all.set(self.all.get() + payload.len());
        }
    }

    pub(super) fn forget(&mut self) {
        self.all.set(self.all.get() - self.bytes);
        (self.packets, self.bytes) = (Vec::new(), 0);
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_packets_have_a_bound_each_and_together() {
        let all = Rc::new(Cell::new(0));
        let mut flows: Vec<First> = (0..100).map(|_| First::new(all.clone())).collect();
        for flow in &mut flows {
            for _ in 0..20 {
                flow.keep(&[0; 20_000]);
            }
            assert!(flow.packets.len() <= 3);
        }
        assert!(all.get() <= ALL_FIRST_BYTES && all.get() > ALL_FIRST_BYTES - 20_000);
        drop(flows);
        assert_eq!(all.get(), 0);
    }
}
