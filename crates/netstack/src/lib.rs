//! The userspace TCP/IP stack of a tunnel, for agents and connectors without the right to a TUN
//! interface.
//!
//! No IO and no clock: packets and the time go in, packets come out, and the caller moves the bytes
//! between a flow and a socket. Every packet from the relay is taken for hostile, and everything
//! that a packet can make grow has a bound.
//!
//! ```text
//! relay -> Stack::receive -> Arrival -> the caller's sockets
//! the caller's sockets -> tcp() / send_udp() -> flush() -> PacketBuilder -> relay
//! ```
#![forbid(unsafe_code)]

mod config;
mod counters;
mod device;
mod echo;
mod flow;
mod fragments;
mod packet_builder;
mod paths;
mod routes;
mod services;
mod sources;
mod stack;
mod tcp;

pub use config::{Backend, Forward, Transport, TunMap};
pub use counters::{Counters, TunnelDrop};
pub use flow::{FlowId, FlowKey};
pub use packet_builder::{Outgoing, PacketBuilder};
pub use routes::{Outbound, TunRoutes};
pub use services::Services;
pub use stack::{Arrival, Flush, Limits, Refusal, Stack};
pub use tcp::{LONGEST_IDLE, TcpFlow, TcpState, Unreachable};

/// The wrapper of a service-routed datagram: 2F, the length of the id, the id.
pub fn wrapper(service: &[u8]) -> Vec<u8> {
    let length = u8::try_from(service.len()).unwrap_or(u8::MAX);
    [&[0x2F, length], &service[..usize::from(length)]].concat()
}
