//! The data plane of intermediate-server: QUIC connections, routes between them, and the packets
//! relayed along. It knows no Python.
//!
//! ```text
//! UDP socket -> noq endpoint -> connection task -> classify -> routes -> (translation) -> target
//! quic/udp.rs   quic/endpoint   relay/serve.rs     relay/forward.rs ............. relay/delivery.rs
//!                                    |  registration / connect / close
//!                                    v
//!                 boundary/outbox.rs -> control plane -> boundary/command.rs
//! ```
#![forbid(unsafe_code)]

mod boundary;
mod config;
mod engine;
mod error;
mod housekeeping;
mod panics;
mod queue;
mod quic;
mod relay;
pub mod settings;
mod shard;
mod shared;
mod signaling;
mod table;
mod thread;
pub mod tunnel;

pub use boundary::{
    command::{Command, ConnectConfig},
    counters, event,
    event::{
        CloseCause, ConnId, Event, Failure, FailureCause, Inspection, Notice, StreamEnd, Subject,
        Totals,
    },
    limits::{IdentityClass, Rates},
    outbox::Outbox,
};
pub use config::{ALPN, JOIN_ALPN, ListenConfig, MAX_JOIN, RelayConfig};
pub use engine::Engine;
pub use error::EngineError;
pub use quic::tls;
pub use relay::{
    classify, forward, nat,
    nat::{flow, pool},
    routes,
    routes::Target,
    service_address,
};
pub use signaling::frames;
pub(crate) use ztna_packet::{bucket, slots};
pub use ztna_packet::{checksum, icmp, packet, translate};
