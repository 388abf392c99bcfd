//! QUIC: sockets, endpoints and handshakes, and a connection up to the DATAGRAMs it brings.
//!
//! ```text
//! udp.rs -> ingress.rs -> (lane.rs) -> endpoint.rs | dial.rs -> receive.rs -> relay | tunnel
//!        <- egress.rs <- driver.rs <- the send queue of a connection
//! ```

pub(crate) mod admission;
pub(crate) mod ask;
pub(crate) mod batch;
pub(crate) mod client_chain;
pub(crate) mod client_leaf;
pub(crate) mod dial;
pub(crate) mod driver;
pub(crate) mod egress;
pub(crate) mod endpoint;
pub(crate) mod failure;
pub(crate) mod handshakes;
pub(crate) mod ingress;
pub(crate) mod join;
pub(crate) mod joins;
pub(crate) mod lane;
pub(crate) mod listener;
pub(crate) mod outstanding;
pub(crate) mod pinned;
pub(crate) mod receive;
pub(crate) mod retry;
pub(crate) mod sources;
pub mod tls;
pub(crate) mod transport;
pub(crate) mod udp;

/// Length of our connection ids. Shorter ones would let peers write longer DATAGRAMs than the
/// other leg can carry.
pub(crate) const CID_LEN: usize = 20;
/// The only version spoken: QUIC version 1 (RFC 9000).
pub(crate) const VERSION: u32 = 1;
