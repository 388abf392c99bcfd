//! QUIC: sockets, endpoints, handshakes, and what a connection is made with.

/// Length of our connection ids. Shorter ones would let peers write longer DATAGRAMs than the
/// other leg can carry.
pub(crate) const CID_LEN: usize = 20;
/// The only version spoken: QUIC version 1 (RFC 9000).
pub(crate) const VERSION: u32 = 1;
