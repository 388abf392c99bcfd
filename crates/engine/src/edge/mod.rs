//! Edges: where packets enter and leave the engine on a client's side.
//!
//! An edge outlives relay connections, so what flows through it survives a reconnect.

mod config;

pub use config::{Backend, EdgeConfig, EdgeId, Forward, Transport, TunMap, TunRouting};
