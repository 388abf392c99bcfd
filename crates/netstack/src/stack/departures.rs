//! Flows that are opened from here.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{Flow, Stack, buffer};
use crate::{
    config::Transport,
    flow::{FlowId, FlowKey},
    tcp::TcpFlow,
};

/// First of the ports that flows are connected from (RFC 6335 section 6).
const FIRST_PORT: u16 = 49_152;

impl Stack {
    /// Sets the wrapper of packets to `destination`.
    pub fn set_wrapper(&mut self, destination: SocketAddr, service: &[u8]) {
        self.wrappers.insert(destination, crate::wrapper(service).into());
    }

    /// Opens a flow from `source` to `destination`, whose wrapper has been set. `None`: there is no
    /// room for it.
    pub fn open(
        &mut self,
        transport: Transport,
        source: IpAddr,
        destination: SocketAddr,
        now: Instant,
    ) -> Option<FlowId> {
        let wrapper = self.wrappers.get(&destination)?.clone();
        let local = self.free_port(transport, source, destination)?;
        if let Err(reason) = self.room(transport, destination.ip(), now) {
            self.counters.dropped(reason, 1);
            return None;
        }
        let key = FlowKey { transport, local, remote: destination };
        let flow = match transport {
            Transport::Udp => self.udp_flow(&key, false, wrapper, now),
            Transport::Tcp => {
                let buffer = buffer(self.tcp);
                let terms = self.terms(wrapper, buffer);
                match TcpFlow::connect(terms, local, destination, now) {
                    Some(flow) => Flow::Tcp(Box::new(flow)),
                    None => {
                        self.sources.end(destination.ip(), transport);
                        return None;
                    }
                }
            }
        };
        Some(self.insert(key, flow))
    }

    /// A port without an open flow to `remote`, searched from a random one on.
    fn free_port(
        &mut self,
        transport: Transport,
        source: IpAddr,
        remote: SocketAddr,
    ) -> Option<SocketAddr> {
        let range = u16::MAX - FIRST_PORT;
        let first = (self.random() % u64::from(range)) as u16;
        (0..range).map(|i| FIRST_PORT + (first + i) % range).find_map(|port| {
            let local = SocketAddr::new(source, port);
            self.flows.find(&FlowKey { transport, local, remote }).is_none().then_some(local)
        })
    }

    /// Shows `source` to a relay that has just been reached: without this, packets to flows that
    /// only listen would have no way back.
    pub fn announce(&mut self, source: IpAddr, destination: SocketAddr) {
        if let Some(wrapper) = self.wrappers.get(&destination) {
            self.out.echo_request(wrapper, source, destination.ip(), 0);
        }
    }
}
