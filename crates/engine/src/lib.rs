//! The data plane of intermediate-server: QUIC connections, routes between them, and the packets
//! relayed along. It knows no Python.
//!
//! ```text
//! UDP socket -> noq endpoint -> connection task -> classify -> routes -> (translation) -> target
//! socket.rs     endpoint.rs     serve.rs           forward.rs ......................  delivery.rs
//!                                    |  registration / connect / close
//!                                    v
//!                         outbox.rs -> control plane -> command.rs
//! ```
#![forbid(unsafe_code)]

mod admission;
mod backpressure;
mod batch;
mod boundary;
pub mod classify;
mod client_chain;
mod command;
mod config;
pub mod counters;
mod delivery;
mod dial;
mod driver;
mod egress;
mod endpoint;
mod engine;
mod error;
pub mod event;
mod failure;
pub mod flow;
mod flows;
pub mod forward;
mod handshakes;
mod housekeeping;
mod ingress;
mod lane;
mod limiter;
mod listener;
pub mod nat;
mod outbox;
mod outstanding;
mod panics;
mod pinned;
pub mod pool;
mod queue;
mod quic;
mod receive;
pub mod routes;
mod serve;
pub mod service_address;
mod shard;
mod shared;
mod socket;
mod table;
mod thread;
pub mod tls;
mod token;
mod token_buckets;
mod transport;
pub mod tunnel;
mod usage;

pub use boundary::limits::{IdentityClass, Rates};
pub use command::{Command, ConnectConfig};
pub use config::{ListenConfig, RelayConfig};
pub use engine::Engine;
pub use error::EngineError;
pub use event::{
    CloseCause, ConnId, Event, Failure, FailureCause, Inspection, Notice, Subject, Totals,
};
pub use outbox::Outbox;
pub use routes::Target;
pub(crate) use ztna_packet::bucket;
pub use ztna_packet::{checksum, icmp, packet, translate};
