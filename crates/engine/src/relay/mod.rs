//! The relay: packets of a server's connections go to other connections.
//!
//! ```text
//! serve.rs -> forward.rs (classify.rs, routes.rs, nat) -> delivery.rs (limiter.rs) -> send queue
//!     |                                                       | a crowded target
//!     +---------------------- backpressure.rs <---------------+
//! ```

pub(crate) mod backpressure;
pub mod classify;
pub(crate) mod delivery;
pub mod forward;
pub(crate) mod limiter;
pub mod nat;
pub mod routes;
pub(crate) mod serve;
pub mod service_address;
pub(crate) mod token_buckets;
pub(crate) mod usage;
